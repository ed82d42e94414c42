"""The results table: every run, the mean over seeds, the best for each ε; as CSV for programs and Markdown for people."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scatterdp.privacy.certificate import rounded_up
from scatterdp.sweeps.record import RunEntry, SweepRecord
from scatterdp.writing import write_whole

#: The columns of published tables of this kind, in their order.
COLUMNS = (
    "Arch",
    "Epsilon",
    "Grad Clip",
    "Max LR",
    "Epochs",
    "Training Accuracy",
    "Validation Accuracy",
    "Test Accuracy",
)
NOT_PRIVATE = "Not Private"  # which accuracies of the row no guarantee covers
FURTHER = ("Measured Epsilon", "Seconds", "Run Folder", "Error")
OVER_SEEDS = ("Seeds", "Test Accuracy Mean", "Test Accuracy Std")

_IN_COLUMNS = {"arch", "target_epsilon", "max_grad_norm", "lr", "epochs"}  # that a column has already


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of so many values; the deviation of one value is None."""

    count: int
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there are no values."""
        if not values:
            return None
        return cls(len(values), statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.deviation is None else f" ± {self.deviation:.4f}")


def write_tables(record: SweepRecord, folder: Path) -> None:
    """Write ``results.csv`` and ``results.md``, each whole or not at all."""
    write_whole(folder / "results.csv", as_csv(record))
    write_whole(folder / "results.md", as_markdown(record))


def as_csv(record: SweepRecord) -> str:
    """One row a run; the mean over the seeds of its combination stands in each of their rows, its accuracies without a guarantee under :data:`NOT_PRIVATE`."""
    others = _others(record)
    groups = _groups(record)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *FURTHER, NOT_PRIVATE, "State", "Seed", *others, *OVER_SEEDS])
    for entry in record.runs:
        spread = Spread.of(_values(groups[_key(entry)], "test_accuracy"))
        measured = [entry.epsilon, entry.seconds, entry.run_dir, entry.error]
        over = [spread.count, spread.mean, spread.deviation] if spread else [0, None, None]
        varied = [entry.changes.get(name) for name in others]
        exact = "; ".join(_not_private(record, entry))
        row = [*_common(entry), *measured, exact, entry.state, entry.changes.get("seed"), *varied, *over]
        writer.writerow(["" if value is None else value for value in row])
    return file.getvalue()


def as_markdown(record: SweepRecord) -> str:
    """Every run, then means over seeds where there are several, the best for each ε, and what it cost."""
    private_file = record.random_mean is not None
    done, failed = record.count("done"), record.count("failed")
    parts = [
        f"# {record.name}",
        f"{record.num_runs} runs of `scatterdp.{record.command}`: {done} done, {failed} failed, {record.num_runs - done - failed} to come.",
    ]
    if private_file:
        parts.append(
            "**A private file.** The number of runs was drawn at random and is a secret; only what is in the folder `best` may be published."
        )
    parts.append(_table(record))
    parts += [f"† {note}" for note in _notes(record)]
    if any("seed" in entry.changes for entry in record.runs):
        parts += ["## Means over seeds", _means(record)]
    lines = best_in_words(record)
    if lines:
        title = "The best" if private_file else "The best for each ε"
        parts += [f"## {title}", f"By {_score_in_words(record)}:", "\n".join(f"* {line}" for line in lines)]
    if record.selection:
        parts += ["## What it cost", record.selection["statement"]]
    return "\n\n".join(parts) + "\n"


def best_groups(record: SweepRecord) -> list[list[RunEntry]]:
    """The runs of the best combination for each ε (in a random search: the best run of all), by mean score over seeds; the earlier wins ties."""
    best: dict[float | None, tuple[float, list[RunEntry]]] = {}
    groups = [[entry] for entry in record.runs] if record.random_mean is not None else list(_groups(record).values())
    for entries in groups:
        scores = [score for entry in entries if entry.state == "done" and (score := record.scores(entry)) is not None]
        if not scores:
            continue
        mean = statistics.mean(scores)
        which = None if record.random_mean is not None else _epsilon(entries[0])
        if which not in best or mean > best[which][0]:
            best[which] = mean, entries
    return [entries for _, (_, entries) in sorted(best.items(), key=lambda item: item[0] or math.inf)]


def best_in_words(record: SweepRecord) -> list[str]:
    """A line for each of :func:`best_groups`."""
    return [_in_words(record, entries) for entries in best_groups(record)]


def _table(record: SweepRecord) -> str:
    others = _others(record)
    seeds = ["Seed †"] if any("seed" in entry.changes for entry in record.runs) else []
    rows = []
    for entry in record.runs:
        varied = [entry.changes.get(name) for name in others]
        seed = [entry.changes.get("seed")] if seeds else []
        measured = None if entry.epsilon is None else rounded_up(entry.epsilon)
        seconds = None if entry.seconds is None else f"{entry.seconds:.0f}"
        error = entry.error or ("" if entry.state == "done" else entry.state)
        rows.append([*_marked(record, entry), measured, seconds, entry.run_dir, error, *seed, *varied])
    return _markdown([*COLUMNS, *FURTHER, *seeds, *others], rows)


def _marked(record: SweepRecord, entry: RunEntry) -> list[Any]:
    """The common columns, with a mark at what no guarantee covers."""
    *facts, training, validation, test = _common(entry)
    exact = _not_private(record, entry)
    accuracies = zip(COLUMNS[-3:], (training, validation, test), strict=True)
    return [
        *facts,
        *(None if value is None else f"{value:.4f}" + " †" * (name in exact) for name, value in accuracies),
    ]


def _not_private(record: SweepRecord, entry: RunEntry) -> list[str]:
    """Names of the accuracies that are computed from private examples without noise."""
    names = []
    if entry.training_accuracy is not None:
        names.append("Training Accuracy")
    if entry.validation_accuracy is not None and record.validation_is_private is False:
        names.append("Validation Accuracy")
    return names


def _notes(record: SweepRecord) -> list[str]:
    notes = []
    if any("seed" in entry.changes for entry in record.runs):
        notes.append(
            "Whoever knows a seed can subtract the noise: of runs on unpublished data, the seeds (also in results.csv, sweep.json and the runs' config.json) are "
            "not for publication."
        )
    if any(entry.training_accuracy is not None for entry in record.runs):
        notes.append(
            "Training accuracy is computed on the private data without noise: outside the guarantee, not for publication."
        )
    if record.validation_is_private is False:
        notes.append(
            "Validation accuracy is computed on held-out private examples without noise: outside the guarantee, not for publication."
        )
    return notes


def _means(record: SweepRecord) -> str:
    others = _others(record)
    rows = []
    for entries in _groups(record).values():
        facts = _common(entries[0])[:5]
        accuracies = [
            Spread.of(_values(entries, name)) for name in ("training_accuracy", "validation_accuracy", "test_accuracy")
        ]
        varied = [entries[0].changes.get(name) for name in others]
        rows.append([*facts, *accuracies, len(_values(entries, "test_accuracy")), *varied])
    return _markdown([*COLUMNS, "Seeds", *others], rows)


def _in_words(record: SweepRecord, entries: list[RunEntry]) -> str:
    first = entries[0]
    arch, epsilon, clip, lr, epochs = (_cell(value) for value in _common(first)[:5])
    others = [f"{name} = {first.changes[name]}" for name in _others(record) if name in first.changes]
    said = [arch, f"grad clip = {clip}", f"max lr = {lr}", f"epochs = {epochs}", *others]
    if record.score != "test_accuracy":
        said.append(f"Validation Accuracy: {Spread.of(_values(entries, 'validation_accuracy'))}")
    said.append(f"Test Accuracy: {Spread.of(_values(entries, 'test_accuracy'))}")
    return f"Epsilon = {epsilon}: {', '.join(said)}"


def _score_in_words(record: SweepRecord) -> str:
    if record.score == "test_accuracy":
        return "accuracy on the test data, which are taken as public"
    noise = (
        "with noise, inside the budget" if record.validation_is_private else "**without noise: outside the guarantee**"
    )
    return f"accuracy on held-out private examples, {noise}"


def _common(entry: RunEntry) -> list[Any]:
    """The values of :data:`COLUMNS`."""
    return [
        entry.arch,
        _epsilon(entry),
        entry.max_grad_norm,
        entry.lr,
        entry.epochs,
        entry.training_accuracy,
        entry.validation_accuracy,
        entry.test_accuracy,
    ]


def _epsilon(entry: RunEntry) -> float | None:
    """What was asked for, or what was spent where a noise multiplier was given."""
    if entry.target_epsilon is not None:
        return entry.target_epsilon
    return None if entry.epsilon is None else float(rounded_up(entry.epsilon))


def _others(record: SweepRecord) -> list[str]:
    """What varies and has no column of its own."""
    names = dict.fromkeys(name for entry in record.runs for name in entry.combination)
    return [name for name in names if name not in _IN_COLUMNS]


def _groups(record: SweepRecord) -> dict[str, list[RunEntry]]:
    groups: dict[str, list[RunEntry]] = {}
    for entry in record.runs:
        groups.setdefault(_key(entry), []).append(entry)
    return groups


def _key(entry: RunEntry) -> str:
    return repr(sorted(entry.combination.items()))


def _values(entries: Sequence[RunEntry], name: str) -> list[float]:
    return [value for entry in entries if entry.state == "done" and (value := getattr(entry, name)) is not None]


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += [
        "| " + " | ".join(_cell(value).replace("|", "\\|").replace("\n", " ") for value in row) + " |" for row in rows
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
