"""Tables from records: columns, marks, means and the best."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from scatterdp.sweeps.record import RunEntry, SweepRecord
from scatterdp.sweeps.table import COLUMNS, Spread, as_csv, as_markdown, best_groups, best_in_words


def entry(number: int, epsilon: float, accuracy: float | None, **changes) -> RunEntry:
    return RunEntry(
        name=f"{number:03}",
        changes={"target_epsilon": epsilon, **changes},
        run_dir=f"runs/{number:03}",
        state="done" if accuracy is not None else "failed",
        error=None if accuracy is not None else "a | b\nc",
        arch="resnet20",
        target_epsilon=epsilon,
        max_grad_norm=0.8333,
        lr=0.01,
        epochs=25,
        test_accuracy=accuracy,
        epsilon=epsilon - 0.00005,
        seconds=3.6,
    )


def record(*runs: RunEntry, **changes) -> SweepRecord:
    values: dict[str, Any] = {
        "name": "x",
        "command": "cnns",
        "delta": 1e-5,
        "score": "test_accuracy",
        "num_runs": len(runs),
    }
    values |= {"runs": list(runs)} | changes
    return SweepRecord(**values)


class TestColumns:
    def test_are_the_published_ones_first(self):
        header = "Arch,Epsilon,Grad Clip,Max LR,Epochs,Training Accuracy,Validation Accuracy,Test Accuracy,Measured Epsilon,Seconds,Run Folder,Error"
        assert as_csv(record()).startswith(header)
        assert f"| {' | '.join(COLUMNS)} |" in as_markdown(record())

    def test_values_stand_in_their_columns(self):
        (row,) = csv.DictReader(io.StringIO(as_csv(record(entry(1, 2.0, 0.29, momentum=0.5)))))
        assert [row[name] for name in COLUMNS] == ["resnet20", "2.0", "0.8333", "0.01", "25", "", "", "0.29"]
        assert row["momentum"] == "0.5"
        line = "| resnet20 | 2 | 0.8333 | 0.01 | 25 |  |  | 0.2900 | 2.0000 | 4 | runs/001 |  |"
        assert line in as_markdown(record(entry(1, 2.0, 0.29)))

    @pytest.mark.parametrize(
        ("is_private", "names"),
        [(False, "Training Accuracy; Validation Accuracy"), (True, "Training Accuracy"), (None, "Training Accuracy")],
    )
    def test_what_no_guarantee_covers_is_named(self, is_private, names):
        first = entry(1, 2.0, 0.3)
        first.training_accuracy, first.validation_accuracy = 0.4, None if is_private is None else 0.5
        without = entry(2, 2.0, 0.3)
        found = record(first, without, validation_is_private=is_private)
        rows = list(csv.DictReader(io.StringIO(as_csv(found))))
        assert [row["Not Private"] for row in rows] == [names, ""]
        assert as_markdown(found).count("0.4000 †") == 1
        assert as_markdown(found).count("0.5000 †") == (is_private is False)

    def test_errors_break_no_table(self):
        assert "| a \\| b c |" in as_markdown(record(entry(1, 2.0, None)))
        (row,) = csv.DictReader(io.StringIO(as_csv(record(entry(1, 2.0, None)))))
        assert row["Error"] == "a | b\nc"


class TestBest:
    def test_is_one_for_each_epsilon_and_the_earlier_wins_ties(self):
        runs = [
            entry(1, 5.0, 0.4, momentum=1),
            entry(2, 2.0, 0.3, momentum=1),
            entry(3, 2.0, 0.3, momentum=2),
            entry(4, 5.0, 0.5, momentum=2),
            entry(5, 10.0, None),
        ]
        assert [[run.name for run in group] for group in best_groups(record(*runs))] == [["002"], ["004"]]
        assert (
            best_in_words(record(*runs))[1]
            == "Epsilon = 5: resnet20, grad clip = 0.8333, max lr = 0.01, epochs = 25, momentum = 2, Test Accuracy: 0.5000"
        )

    def test_is_by_the_mean_over_seeds(self):
        runs = [
            entry(1, 2.0, 0.9, momentum=1, seed=0),
            entry(2, 2.0, 0.1, momentum=1, seed=1),
            entry(3, 2.0, 0.6, momentum=2, seed=0),
            entry(4, 2.0, 0.6, momentum=2, seed=1),
        ]
        assert [run.name for run in best_groups(record(*runs))[0]] == ["003", "004"]
        assert "Test Accuracy: 0.6000 ± 0.0000" in best_in_words(record(*runs))[0]

    def test_is_by_validation_accuracy_where_that_is_the_score(self):
        first, second = entry(1, 2.0, 0.9, momentum=1), entry(2, 2.0, 0.1, momentum=2)
        first.validation_accuracy, second.validation_accuracy = 0.5, 1.02
        found = record(first, second, score="validation_accuracy", validation_is_private=True)
        assert best_groups(found) == [[second]]
        assert "Validation Accuracy: 1.0200, Test Accuracy: 0.1000" in best_in_words(found)[0]

    def test_of_a_random_search_is_one_run(self):
        runs = [entry(1, 2.0, 0.3), entry(2, 5.0, 0.5), entry(3, 5.0, 0.1)]
        assert [[run.name for run in group] for group in best_groups(record(*runs, random_mean=3.0))] == [["002"]]


class TestSpread:
    def test_is_mean_and_sample_deviation(self):
        assert str(Spread.of([0.1, 0.2, 0.3])) == "0.2000 ± 0.1000"
        assert str(Spread.of([0.25])) == "0.2500"
        assert Spread.of([]) is None

    @pytest.mark.parametrize("count", [1, 2])
    def test_counts(self, count):
        assert Spread.of([0.5] * count) == Spread(count, 0.5, 0.0 if count > 1 else None)
