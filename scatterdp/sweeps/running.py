"""Give runs to workers and write down what comes of them, until each is done or has failed.

No more runs are handed out than there are workers: a run that only waits in a worker's queue would count as suspect when that worker is killed. A run whose worker died is handed
to another, by ``dask``, up to three times; what it finds in the run's folder decides where it goes on (:mod:`scatterdp.sweeps.work`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distributed import Future, KilledWorker, wait

from scatterdp.errors import UserError
from scatterdp.sweeps.cluster import Workers
from scatterdp.sweeps.plans import PlannedRun
from scatterdp.sweeps.record import RunEntry
from scatterdp.sweeps.work import carry_out, has_looked

_LOOK_SECONDS = 1.0


def carry_out_all(
    runs: Sequence[tuple[RunEntry, PlannedRun]],
    workers: Workers,
    *,
    command: str,
    folder: Path,
    on_change: Callable[[RunEntry], None],
    on_wait: Callable[[], None],
) -> None:
    """Run what waits.

    Args:
        runs: those that are not finished, in the order in which they are to begin.
        workers: who does them.
        command: of the outline.
        folder: the sweep's.
        on_change: called after an entry has changed its state.
        on_wait: called now and then while runs are under way.

    Raises:
        UserError: the scheduler is gone.
    """
    waiting = list(reversed(runs))
    active: dict[Future, RunEntry] = {}
    while waiting or active:
        while waiting and len(active) < max(1, workers.count()):
            entry, planned = waiting.pop()
            entry.state, entry.error = "running", None
            on_change(entry)
            log = folder / "logs" / f"{entry.name}.txt"
            future = workers.client.submit(
                carry_out,
                command,
                planned.config.to_json(),
                str(log),
                workers.threads,
                key=f"run-{entry.name}-{id(active)}",
                pure=False,
                resources=workers.resources or None,
            )
            active[future] = entry
        try:
            waited: Any = wait(list(active), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
        except TimeoutError:
            _check_alive(workers)
            on_wait()
            continue
        for future in waited.done:
            entry = active.pop(future)
            _note(entry, future, folder)
            on_change(entry)


def _note(entry: RunEntry, future: Future, folder: Path) -> None:
    """Write what came of a run into its entry."""
    run_dir = folder / entry.run_dir
    if future.status == "cancelled":
        raise UserError("the scheduler is gone or has dropped a run; the same command goes on from there")
    error = future.exception() if future.status == "error" else None
    if error is not None:
        entry.state, entry.looked = "failed", entry.looked or has_looked(run_dir)
        entry.error = (
            f"its worker died four times, perhaps out of memory (see logs/{entry.name}.txt)"
            if isinstance(error, KilledWorker)
            else f"{type(error).__name__}: {error}"
        )
        return
    outcome = future.result()
    outcome["looked"] |= entry.looked
    entry.state = "done" if outcome["error"] is None else "failed"
    for name, value in outcome.items():
        setattr(entry, name, value)


def _check_alive(workers: Workers) -> None:
    if workers.client.status != "running":
        raise UserError("the scheduler is gone; what is finished is kept, the same command goes on from there")
