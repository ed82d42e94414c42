"""Follow a running sweep in the terminal: a table that changes as results land, and ends when the sweep does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scatterdp.privacy.certificate import rounded_up
from scatterdp.sweeps.folder import is_running
from scatterdp.sweeps.outline import told
from scatterdp.sweeps.record import RunEntry, SweepRecord
from scatterdp.sweeps.table import best_groups

_SECONDS = 1.0
_TAIL_BYTES = 16384
_COLOURS = {"waiting": "dim", "running": "yellow", "done": "green", "failed": "red"}
_MOST_WAITING = 3  # that are listed


def follow(folder: Path, *, once: bool = False, console: Console | None = None) -> None:
    """Show a sweep until it ends.

    Args:
        folder: the sweep's.
        once: show it as it is and return.
        console: where; the terminal by default.

    Raises:
        ConfigError: not a sweep's folder.
    """
    console = console or Console()
    record = SweepRecord.load(folder)
    if once or record.finished or not is_running(folder):
        console.print(_picture(record, folder, is_running(folder)))
        return
    with Live(_picture(record, folder, True), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            running = is_running(folder)  # before the record is read: what is written last is then seen
            record = SweepRecord.load(folder)
            live.update(_picture(record, folder, running), refresh=True)
            if record.finished or not running:
                return
            time.sleep(_SECONDS)


def _picture(record: SweepRecord, folder: Path, running: bool) -> Group:
    table = Table("run", "state", "epoch", "test accuracy", "ε", "seconds", "what it is", title=record.name)
    best = {entry.name for entries in best_groups(record) for entry in entries}
    waiting = [entry for entry in record.runs if entry.state == "waiting"]
    for entry in record.runs:
        if entry.state == "waiting" and entry not in waiting[:_MOST_WAITING]:
            continue
        star = "★ " if entry.name in best else ""
        table.add_row(f"{star}{entry.name}", *_row(entry, folder, running), style=_COLOURS[entry.state])
    hidden = len(waiting) - _MOST_WAITING
    counts = ", ".join(
        f"{record.count(state)} {_told_state(state, running)}" for state in ("done", "running", "waiting", "failed")
    )
    if record.finished:
        end = "finished"
    else:
        end = "running" if running else "stopped before its end: start the same sweep again and it goes on from there"
    parts: list[Any] = [table]
    if hidden > 0:
        parts.append(Text(f"… and {hidden} more that wait"))
    parts.append(Text(f"{counts}; {end}"))
    if record.finished and record.selection:
        parts.append(Text(record.selection["statement"]))
    return Group(*parts)


def _told_state(state: str, running: bool) -> str:
    """A state as the record has it, unless nobody is there to run anything."""
    return "stopped" if state == "running" and not running else state


def _row(entry: RunEntry, folder: Path, running: bool) -> list[str]:
    last = _last_metrics(folder / entry.run_dir) if entry.state == "running" else {}
    accuracy = last.get("test_accuracy", entry.test_accuracy)
    epsilon = last.get("epsilon", entry.epsilon)
    seconds = last.get("seconds", entry.seconds)
    epochs = "" if entry.epochs is None else str(entry.epochs)
    epoch = f"{last.get('epoch', 0)}/{epochs}" if entry.state == "running" else epochs
    return [
        _told_state(entry.state, running),
        epoch,
        "" if accuracy is None else f"{accuracy:.4f}",
        "" if epsilon is None else rounded_up(epsilon),
        "" if seconds is None else f"{seconds:.0f}",
        entry.error or told(entry.changes),
    ]


def _last_metrics(run_dir: Path) -> dict[str, Any]:
    """The last complete row of a run that is under way; empty before the first."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")
        return json.loads(lines[-2])
    except (OSError, IndexError, ValueError):
        return {}
