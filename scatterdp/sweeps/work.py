"""What a worker does: one run, begun, gone on with, or found complete.

It may be the run's first worker or the next after one that was killed: the run's folder says which. A run that has released anything goes on from its checkpoint,
so nothing is drawn twice.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from scatterdp.errors import RunLockedError, UserError

_ONE_AT_A_TIME = threading.Lock()  # output, the number of threads and peak memory are the process's
_RETRY_SECONDS = 1.0
_WAIT_FOR_FEATURES = 7 * 24 * 3600.0


def carry_out(command: str, config: dict[str, Any], log: str, threads: int | None) -> dict[str, Any]:
    """Bring one run to its end.

    Args:
        command: a key of :data:`scatterdp.sweeps.outline.COMMANDS`.
        config: its ``to_json()``, with the run folder in it.
        log: file that what the run prints is added to.
        threads: of torch; None leaves them as they are.

    Returns:
        ``{"error": None, "looked": True, …}`` with what the run's folder says of it (:func:`outcome_of`), or its error in a sentence. Nothing is raised: an error is a result.
    """
    run_dir = Path(config["run_dir"])
    with _ONE_AT_A_TIME:
        try:
            with (
                Path(log).open("a", encoding="utf-8", buffering=1) as file,
                contextlib.redirect_stdout(file),
                contextlib.redirect_stderr(file),
            ):
                try:
                    _to_its_end(command, config, run_dir, threads)
                except UserError as error:
                    print(f"error: {error}")
                    return _failed(str(error), run_dir)
                except Exception as error:
                    traceback.print_exc()
                    return _failed(f"{type(error).__name__}: {error} (see logs/{Path(log).name})", run_dir)
            return outcome_of(run_dir)
        except (OSError, ValueError, KeyError) as error:
            return _failed(f"{run_dir.parent.parent}: cannot be written or read on this worker ({error})", run_dir)


def _to_its_end(command: str, values: dict[str, Any], run_dir: Path, threads: int | None) -> None:
    import torch

    from scatterdp import experiment
    from scatterdp.sweeps.outline import COMMANDS

    if threads is not None:
        torch.set_num_threads(threads)
    config_class = COMMANDS[command]
    while not (run_dir / "summary.json").exists():
        # All that a kill between the folder and its config leaves; nothing has been released then.
        (run_dir / "config.json.tmp").unlink(missing_ok=True)
        begun = (run_dir / "config.json").exists()
        config = config_class(resume=run_dir) if begun else config_class.from_json(json.dumps(values))
        try:
            experiment.run(config, wait_for_features=_WAIT_FOR_FEATURES)
        except RunLockedError:
            time.sleep(_RETRY_SECONDS)  # a worker that is thought dead may still be at it
    if (run_dir / "checkpoint.pt").exists():
        from scatterdp.records import RunFolder

        RunFolder(run_dir).finish()  # killed between its summary and this: the checkpoint holds the run's key


def outcome_of(run_dir: Path) -> dict[str, Any]:
    """What the folder of a finished run says of it.

    Raises:
        OSError, KeyError, ValueError: it is not that of a finished run.
    """
    summary = json.loads((run_dir / "summary.json").read_bytes())
    rows = (run_dir / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1]) if rows else {}
    validation = summary.get("validation_accuracy", summary.get("validation_accuracy_not_private"))
    return {
        "error": None,
        "looked": True,
        "test_accuracy": summary["test_accuracy"],
        "validation_accuracy": validation,
        "training_accuracy": last.get("train_accuracy_not_private"),
        "epsilon": summary["epsilon"],
        "seconds": round(summary["seconds_extract"] + summary["seconds_train"], 3),
    }


def has_looked(run_dir: Path) -> bool:
    """Whether a run may have released anything: it had got as far as its metrics, or its checkpoint."""
    return (run_dir / "metrics.jsonl").exists() or (run_dir / "checkpoint.pt").exists()


def _failed(error: str, run_dir: Path) -> dict[str, Any]:
    return {"error": error, "looked": has_looked(run_dir)}
