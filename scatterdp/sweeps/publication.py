"""What may be published of a random search: a folder ``best/`` that tells the best model, its guarantee and nothing else of the search.

| file | content |
|---|---|
| ``model.safetensors``, ``model_ema.safetensors`` | of the best run |
| ``best.json`` | in what its config differs, its score, ε and δ of the choice, a statement |
| ``certificate.json`` | where all candidates release the same: the guarantee and a ledger that it follows from |
| ``certificate.txt`` | otherwise: the statement, for a bound that no single event gives |

The certificate in the best run's own folder counts that run as if it had been the only one, and its config names the run's number, which says that there were at
least so many: neither goes with the model.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scatterdp.errors import UserError
from scatterdp.privacy.certificate import LIMITS, make_certificate
from scatterdp.privacy.ledger import Ledger, LedgerEntry, event_to_json
from scatterdp.privacy.tuning import NumberOfTrials
from scatterdp.sweeps.record import RunEntry, SweepRecord
from scatterdp.sweeps.selection import statement_of_best
from scatterdp.training.plan import TrainingPlan
from scatterdp.writing import json_text, write_whole

NAME = "best"
SECRETS = "The number of trials must stay secret: so must how long the search took, and every other file of it."

_MODELS = ("model.safetensors", "model_ema.safetensors")
_ONLY_THIS = (
    " The certificate in the run's own folder counts this run as if it had been the only one, and its config.json and the name of its folder tell of the "
    "number of runs: none of them must go with the published model; publish the files of this folder, and nothing else."
)


def publish(record: SweepRecord, best: RunEntry, candidates: Sequence[TrainingPlan], folder: Path) -> None:
    """Make ``best/`` in the sweep's folder, whole or not at all. One that is there stays: a search has one best.

    Args:
        record: of a random search that has finished.
        best: its best run.
        candidates: what each combination of the outline releases, drawn or not.
        folder: the sweep's.

    Raises:
        UserError: the best run's folder is gone, or its certificate cannot be read.
        OSError: the folder cannot be written.
    """
    path, run_dir = folder / NAME, folder / best.run_dir
    if path.exists():
        return
    own = _certificate_in(run_dir)
    unfinished = folder / f".{NAME}.unfinished"  # the sweep's folder is locked: what is there, a kill has left
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        for name in _MODELS:
            shutil.copyfile(run_dir / name, unfinished / name)
        said = _said(record, best)
        certificate = certificate_of_best(record.selection, own, candidates)
        write_whole(unfinished / "best.json", json_text(said))
        if certificate is not None:
            write_whole(unfinished / "certificate.json", json_text(certificate))
        else:
            write_whole(unfinished / "certificate.txt", said["statement"] + "\n")
        os.replace(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def certificate_of_best(
    selection: dict[str, Any], own: dict[str, Any], candidates: Sequence[TrainingPlan]
) -> dict[str, Any] | None:
    """The certificate of the best of a random number of trials, whose ε follows from its ledger.

    Args:
        selection: from :func:`scatterdp.sweeps.selection.selection_cost`.
        own: the best run's certificate, as if it had been the only run.
        candidates: what each combination of the outline releases.

    Returns:
        The certificate by Rényi divergences; None where candidates release different things, for then the bound is that of the worst
        one at each order and of no event; where the run's ledger is not that of its plan; where nothing is guaranteed.
    """
    if selection["epsilon_of_best"] is None or not candidates:
        return None
    if len({json.dumps(event_to_json(plan.event())) for plan in {plan.cost_only for plan in candidates}}) > 1:
        return None
    trials = NumberOfTrials(mean=selection["mean_trials"], shape=selection["shape"])
    trial = Ledger.from_json(own["ledger"])
    details = {"trials": trials.to_json(), "releases": trial.to_json(), "candidates": len(candidates)}
    entry = LedgerEntry("best of a random number of trials", trials.event(trial.event), details)
    further = [limit for limit in own["limits"] if limit not in (*LIMITS, *own["assumptions"])]
    certificate = make_certificate(
        Ledger([entry]),
        delta=selection["delta"],
        accountant="rdp",  # the theorem is about Rényi divergences
        adjacency=selection["adjacency"],
        sampler={"kind": "composed", "num_examples": own["data"]["num_train"], "adjacency": selection["adjacency"]},
        key=own["noise_source"]["origin"],
        data=own["data"],
        features=own["features"],
        not_private=own["not_private"],
        model={"name": "random search", "candidates": len(candidates), "score": selection["score"]},
        computation=own.get("computation"),
        more_limits=[SECRETS, *further],
        assumptions=own["assumptions"],
    )
    epsilon = certificate["epsilon"]
    same = epsilon is not None and math.isclose(epsilon, selection["epsilon_of_best"], rel_tol=1e-6)
    return certificate if same else None


def _said(record: SweepRecord, best: RunEntry) -> dict[str, Any]:
    """What may be said of the best: nothing that tells how many runs there were, not even its own number."""
    selection = record.selection
    return {
        "changes": best.changes,
        record.score: record.scores(best),
        "test_accuracy": best.test_accuracy,
        "epsilon": selection["epsilon_of_best"],
        "delta": selection["delta"],
        "statement": statement_of_best(selection) + _ONLY_THIS,
    }


def _certificate_in(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / "certificate.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"out={run_dir.parent.parent}: the certificate of the best run, {run_dir}, cannot be read ({error}), so nothing can be published; bring the run's "
            "folder back"
        ) from error
