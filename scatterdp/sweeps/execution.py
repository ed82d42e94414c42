"""Carry a sweep out in its folder: what is missing is run, and after every run the record, the tables and the accounting are written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from tqdm import tqdm

from scatterdp.errors import UserError
from scatterdp.sweeps.cluster import Workers
from scatterdp.sweeps.folder import SweepFolder
from scatterdp.sweeps.outline import told
from scatterdp.sweeps.plans import PlannedRun, describe
from scatterdp.sweeps.publication import publish
from scatterdp.sweeps.record import RunEntry, SweepRecord
from scatterdp.sweeps.running import carry_out_all
from scatterdp.sweeps.sweep import Sweep
from scatterdp.sweeps.table import best_groups, write_tables
from scatterdp.sweeps.work import has_looked, outcome_of


def execute(sweep: Sweep, folder: SweepFolder, workers: AbstractContextManager[Workers]) -> SweepRecord:
    """Run what is missing of a sweep.

    Args:
        sweep: what to run.
        folder: where; made when it is new.
        workers: entered when there is something to run.

    Returns:
        The finished record.

    Raises:
        UserError: another process runs it, the folder holds something else or cannot be written, or no worker can be had.
    """
    folder.check(sweep.text, sweep.random_mean)
    with folder.locked():
        known = folder.check(sweep.text, sweep.random_mean)  # again: it may have changed before it was ours
        record = known or sweep.new_record()
        journal = _Journal(sweep, folder, record)
        missing = journal.take_up()
        with workers if missing else nullcontext() as found:  # nothing is written for workers that cannot be had
            if known is None:
                with _writing(folder):
                    folder.begin(sweep.text)
            journal.write()
            if found is not None:
                try:
                    with journal.progress():
                        carry_out_all(
                            missing,
                            found,
                            command=record.command,
                            folder=folder.path,
                            on_change=journal.note,
                            on_wait=journal.look,
                        )
                except BaseException:
                    journal.stop()
                    raise
        journal.finish()
    return record


#: What a run saw has been paid for once; with its key and its steps gone, another try would be another run.
_GONE = "its folder, or what it held, is gone, and its budget is spent; bring the folder back, or sweep this combination anew into another --out"


class _Journal:
    """Writes down where the sweep is."""

    def __init__(self, sweep: Sweep, folder: SweepFolder, record: SweepRecord) -> None:
        self.sweep, self.folder, self.record = sweep, folder, record
        run_dirs = [folder.path / entry.run_dir for entry in record.runs]
        self.planned = sweep.planned([entry.changes for entry in record.runs], run_dirs)
        self.candidates = self.planned if sweep.random_mean is None else sweep.candidates()
        self.bar: tqdm | None = None

    def take_up(self) -> list[tuple[RunEntry, PlannedRun]]:
        """Bring the record up to what the folder says, and find out what is missing.

        Of a random search that has finished nothing is: a failed trial is an output, its best may be out, and another trial might make a second best.
        """
        if self.sweep.random_mean is not None and self.record.finished:
            return []
        missing = []
        for entry, planned in zip(self.record.runs, self.planned, strict=True):
            run_dir = self.folder.path / entry.run_dir
            describe(entry, planned)
            entry.looked = self._has_looked(entry)
            if (run_dir / "summary.json").exists() and not (run_dir / "checkpoint.pt").exists():
                entry.state = "done"
                for name, value in outcome_of(run_dir).items():
                    setattr(entry, name, value)
            elif entry.looked and not has_looked(run_dir):
                entry.state, entry.error = "failed", _GONE
            elif planned.plan is None:
                entry.state, entry.error = "failed", planned.error
            else:
                entry.state, entry.error = "waiting", None
                missing.append((entry, planned))
        self.record.finished = False
        return missing

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Show a bar with the time that is left."""
        ended = self.record.count("done") + self.record.count("failed")
        with tqdm(
            total=self.record.num_runs, initial=ended, unit="run", desc=self.record.name, smoothing=0
        ) as self.bar:
            yield

    def note(self, entry: RunEntry) -> None:
        """A run has begun or ended."""
        if entry.state == "running":
            self.write(accounting=False)
            return
        self.write()
        if self.bar is not None:
            said = (
                f"failed: {entry.error}"
                if entry.error
                else f"{self.record.score.replace('_', ' ')} {self.record.scores(entry):.4f}"
            )
            self.bar.write(f"{told(entry.changes) or entry.name}: {said}", file=sys.stdout)
            self.bar.update()

    def look(self) -> None:
        """Write down which runs have begun to look at the data: what happens to their folders then, they have."""
        if any(self._has_looked(entry) and not entry.looked for entry in self.record.runs):
            self.write(accounting=False)

    def _has_looked(self, entry: RunEntry) -> bool:
        return entry.looked or has_looked(self.folder.path / entry.run_dir)

    def stop(self) -> None:
        """The sweep ends before its runs do."""
        for entry in self.record.runs:
            if entry.state == "running":
                entry.state = "waiting"
        with suppress(UserError):  # the disk may be why
            self.write()

    def finish(self) -> None:
        """All runs have ended."""
        self.record.finished = True
        self.write()
        groups = best_groups(self.record)
        if self.sweep.random_mean is not None and groups:
            (best,) = groups[0]
            costs = [planned.cost for planned in self.candidates if planned.cost is not None]
            with _writing(self.folder):
                publish(self.record, best, costs, self.folder.path)

    def write(self, *, accounting: bool = True) -> None:
        """Write the record and, unless a run has only begun, what it all costs and the tables."""
        for entry in self.record.runs:
            entry.looked = self._has_looked(entry)
        if accounting:
            looked = [planned for entry, planned in zip(self.record.runs, self.planned, strict=True) if entry.looked]
            self.record.selection = self.sweep.cost(looked, self.candidates)
        with _writing(self.folder):
            self.record.save(self.folder.path)
            if accounting:
                write_tables(self.record, self.folder.path)


@contextmanager
def _writing(folder: SweepFolder) -> Iterator[None]:
    """Tell a disk that is full, or gone, as one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"out={folder.path}: cannot be written ({error.strerror}); what is finished is kept: make room, and the same command goes on from there"
        ) from error
