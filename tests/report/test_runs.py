"""Run folders as they are found: what is read, and what is named instead."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scatterdp import baselines
from scatterdp.datasets import load_dataset
from scatterdp.errors import UserError
from scatterdp.report.runs import Run, find_runs, read_run, unique


@pytest.fixture
def runs(finished_runs, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished_runs, tmp_path / "runs"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def reasons(found) -> dict[str, str]:
    return {one.name: one.reason for one in found.without_result}


class TestReadRun:
    def test_reads_what_the_run_left(self, finished_runs):
        run = read_run(finished_runs / "seed0", "first")
        summary = json.loads((finished_runs / "seed0" / "summary.json").read_text())
        assert (run.name, run.dataset, run.model, run.features) == ("first", "digits", "linear", "scatternet")
        assert run.accuracy == summary["test_accuracy"]
        assert run.averaged_accuracy == summary["test_accuracy_ema"]
        assert run.epsilon == pytest.approx(summary["epsilon"])
        assert run.seconds == summary["seconds_train"]
        assert (run.seed, run.is_published) == (0, True)
        assert [row["epoch"] for row in run.metrics] == [1, 2]
        assert run.checked.disagreements == []

    def test_predictions_are_those_of_the_accuracy(self, finished_runs):
        run = read_run(finished_runs / "seed0", "first")
        labels = load_dataset("digits").y_test
        assert run.predicted is not None
        assert np.mean(run.predicted == labels) == run.accuracy
        assert run.confusion is not None
        assert run.confusion[:, 2].sum() == len(labels)
        for true, predicted, count in run.confusion:
            assert count == np.sum((labels == true) & (run.predicted == predicted))

    def test_someones_own_examples_are_counted_but_not_listed(self, finished_runs):
        run = read_run(finished_runs / "own", "own")
        assert not run.is_published
        assert run.predicted is None
        assert run.confusion is not None
        diagonal = run.confusion[run.confusion[:, 0] == run.confusion[:, 1], 2].sum()
        assert diagonal / run.confusion[:, 2].sum() == run.accuracy
        assert "test_predictions" in run.certificate["not_private"]

    @pytest.mark.parametrize("file", ["config.json", "summary.json", "certificate.json"])
    @pytest.mark.parametrize(("content", "message"), [("{", "Expecting property name"), ("[]", "expected an object")])
    def test_a_damaged_file_is_named(self, runs, file, content, message):
        (runs / "seed0" / file).write_text(content)
        with pytest.raises(UserError, match=f"^its {re.escape(file)} is damaged \\({message}"):
            read_run(runs / "seed0", "run")

    @pytest.mark.parametrize(
        "changes",
        [
            {"data": {}},
            {"data": {"name": 3, "num_train": 1437, "classes": []}},
            {"features": None},
            {"ledger": [{"name": "x"}]},
            {"limits": None},
            {"schema": 99},
            {"delta": "small"},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_a_certificate_of_another_form_is_no_traceback(self, runs, changes):
        change(runs / "seed0" / "certificate.json", **changes)
        with pytest.raises(UserError, match=r"^its certificate"):
            read_run(runs / "seed0", "run")

    def test_a_certificate_that_disagrees_is_read_and_marked(self, runs):
        path = runs / "seed0" / "certificate.json"
        certificate = json.loads(path.read_text())
        certificate["ledger"][1]["event"]["count"] -= 1
        path.write_text(json.dumps(certificate))
        assert any("claims ε" in sentence for sentence in read_run(runs / "seed0", "run").checked.disagreements)

    def test_lines_of_the_metrics_that_cannot_be_read_are_left_out(self, runs):
        path = runs / "seed0" / "metrics.jsonl"
        path.write_text(path.read_text() + '[1]\n{"epoch": 3, "test_accu')
        assert [row["epoch"] for row in read_run(runs / "seed0", "run").metrics] == [1, 2]
        path.unlink()
        assert read_run(runs / "seed0", "run").metrics == []

    @pytest.mark.parametrize("kind", ["garbage", "missing", "class", "shape", "cut"])
    def test_predictions_that_do_not_fit_are_none(self, runs, kind):
        path = runs / "seed0" / "test_predictions.npz"
        content = path.read_bytes()
        path.unlink()
        if kind == "garbage":
            path.write_bytes(b"PK not really")
        elif kind == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif kind == "class":
            np.savez(path, confusion=np.array([[0, 10, 3]]), predicted=np.array([0, -1]))
        elif kind == "shape":
            np.savez(path, confusion=np.zeros((2, 2), np.int64), predicted=np.zeros(3))
        run = read_run(runs / "seed0", "run")
        assert (run.confusion, run.predicted) == (None, None)

    def test_logistic_regression(self, tmp_path, digits_features_dir):
        flags = ["--dataset=digits", "--optim=LR", f"--features_dir={digits_features_dir}"]
        assert baselines.main([*flags, f"--run_dir={tmp_path / 'lr'}"]) == 0
        run = read_run(tmp_path / "lr", "lr")
        assert (run.model, run.epsilon, run.checked.disagreements) == ("logistic regression", None, [])
        assert run.predicted is not None
        assert np.mean(run.predicted == load_dataset("digits").y_test) == run.accuracy


class TestFindRuns:
    def test_in_folders_of_folders(self, finished_runs):
        found = find_runs([finished_runs.parent])
        assert [run.name for run in found.runs] == ["own", "seed0", "seed1"]
        assert found.without_result == []

    def test_a_run_that_is_given_twice_is_read_once(self, finished_runs):
        found = find_runs([finished_runs / "seed0", finished_runs, finished_runs / "seed0"])
        assert [run.name for run in found.runs] == ["seed0", "own", "seed1"]

    def test_runs_of_one_name_are_numbered(self, finished_runs, runs):
        found = find_runs([finished_runs / "seed0", runs / "seed0"])
        assert [run.name for run in found.runs] == ["seed0", "seed0-2"]

    def test_a_given_folder_is_named_from_inside_too(self, finished_runs, monkeypatch):
        monkeypatch.chdir(finished_runs / "seed0")
        assert [run.name for run in find_runs([Path()]).runs] == ["seed0"]

    def test_what_gives_no_result_is_named(self, runs):
        (runs / "seed0" / "summary.json").unlink()
        (runs / "seed0" / "checkpoint.pt").touch()
        (runs / "own" / "summary.json").unlink()
        (runs / "a.log").touch()
        (runs / ".x.123.unfinished").mkdir()
        (runs / ".x.123.unfinished" / "config.json").write_text("{}")
        found = find_runs([runs, runs / "a.log"])
        assert [run.name for run in found.runs] == ["seed1"]
        told = reasons(found)
        assert told.keys() == {"own", "seed0", str(runs / "a.log")}
        assert "--resume of this run" in told["seed0"]
        assert "no summary.json" in told["own"]

    def test_nothing_usable_is_one_sentence(self, tmp_path, runs):
        with pytest.raises(UserError, match=f"^runs={re.escape(str(tmp_path / 'none'))}: no such folder"):
            find_runs([tmp_path / "none"])
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="no run folder is there"):
            find_runs([tmp_path / "empty"])
        for run in runs.iterdir():
            (run / "summary.json").unlink()
        with pytest.raises(UserError, match="no finished run there \\(own: it is not finished"):
            find_runs([runs])


class TestSweeps:
    def sweep(self, folder: Path, **record) -> None:
        (folder / "sweep.json").write_text(json.dumps(record))

    def test_failed_runs_are_told_with_their_error(self, runs):
        shutil.copytree(runs / "seed0", runs / "third")
        (runs / "third" / "summary.json").unlink()
        entries = [
            {"name": "seed0", "state": "done", "error": None, "run_dir": "runs/seed0"},
            {"name": "seed1", "state": "done", "error": "once, then it was retried", "run_dir": "runs/seed1"},
            {"name": "third", "state": "failed", "error": "out of memory", "run_dir": "runs/third"},
            {"name": "never", "state": "failed", "error": "target_epsilon=0.1: too small"},
            "nonsense",
            {},
        ]
        self.sweep(runs.parent, runs=entries, selection={"statement": "Choosing cost ε = 4."})
        found = find_runs([runs.parent])
        assert [run.name for run in found.runs] == ["own", "seed0", "seed1"]
        assert reasons(found) == {
            "third": "it failed: out of memory",
            "never": "it failed: target_epsilon=0.1: too small",
        }
        assert [(sweep.name, sweep.selection) for sweep in found.sweeps] == [
            (runs.parent.name, {"statement": "Choosing cost ε = 4."})
        ]

    @pytest.mark.parametrize("content", ["{", "[]", '{"runs": 3, "selection": "free"}', '{"runs": [{"error": 1}]}'])
    def test_a_sweeps_file_of_another_form_stops_nothing(self, runs, content):
        (runs.parent / "sweep.json").write_text(content)
        assert len(find_runs([runs.parent]).runs) == 3

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_a_damaged_record_of_a_sweep_is_told(self, runs, content):
        (runs.parent / "sweep.json").write_text(content)
        told = reasons(find_runs([runs.parent]))[f"sweep {runs.parent.name}"]
        assert told == "its sweep.json is damaged: what all runs and the choice among them cost is not known"

    def test_a_folder_of_sweeps(self, runs, tmp_path):
        self.sweep(tmp_path, runs=[], selection={})
        found = find_runs([tmp_path.parent / tmp_path.name])
        assert [sweep.selection for sweep in found.sweeps] == [{}]


def test_a_fit_of_someones_features(own_fit):
    run = read_run(own_fit, "fit")
    assert isinstance(run, Run)
    assert run.model == "class means"
    assert run.features == "given"
    assert run.metrics == []
    assert run.plan == {}
    assert run.accuracy is not None


def test_names_that_are_taken():
    taken: set[str] = set()
    assert [unique("a", taken) for _ in range(3)] == ["a", "a-2", "a-3"]
