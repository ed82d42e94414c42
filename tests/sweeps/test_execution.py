"""Sweeps in this process: what is run, written, kept and taken up again."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from run_folders import files_of_at_most

from scatterdp import experiment
from scatterdp.commands import certificate as certificate_command
from scatterdp.errors import ConfigError, UserError
from scatterdp.privacy.certificate import rounded_up
from scatterdp.privacy.tuning import NumberOfTrials
from scatterdp.records import RunFolder
from scatterdp.sweeps import execution
from scatterdp.sweeps import record as record_module
from scatterdp.sweeps.execution import execute
from scatterdp.sweeps.folder import SweepFolder, is_running
from scatterdp.sweeps.record import RunEntry, SweepRecord
from scatterdp.sweeps.sweep import distinct_budgets
from scatterdp.sweeps.table import COLUMNS
from tests.sweeps.conftest import QUICK

HELD_OUT = QUICK.replace("[config]", "validation = 0.1\nvalidation_noise_multiplier = 4\n[config]")


@pytest.fixture
def folder(tmp_path) -> SweepFolder:
    return SweepFolder(tmp_path / "sweep")


def known(value: float | None) -> float:
    assert value is not None
    return value


def rows(folder: SweepFolder) -> list[dict[str, str]]:
    with (folder.path / "results.csv").open() as file:
        return list(csv.DictReader(file))


def never_begun(folder: SweepFolder, entry: RunEntry) -> Path:
    """As if the sweep had been killed before this run; returns where its folder was."""
    run_dir = folder.path / entry.run_dir
    shutil.rmtree(run_dir)
    record = SweepRecord.load(folder.path)
    mine = next(each for each in record.runs if each.name == entry.name)
    mine.state, mine.looked = "waiting", False
    record.save(folder.path)
    return run_dir


class TestExecute:
    def test_every_run_leaves_a_run_folder_and_a_row(self, make_sweep, folder, workers):
        record = execute(make_sweep(), folder, workers)
        assert [entry.changes for entry in record.runs] == make_sweep().outline.runs()
        assert SweepRecord.load(folder.path) == record
        assert record.finished
        assert record.count("done") == 2
        table = rows(folder)
        assert list(table[0])[:8] == list(COLUMNS)
        for entry, row in zip(record.runs, table, strict=True):
            summary = json.loads((folder.path / entry.run_dir / "summary.json").read_text())
            assert float(row["Test Accuracy"]) == entry.test_accuracy == summary["test_accuracy"]
            assert float(row["Measured Epsilon"]) == entry.epsilon == summary["epsilon"]
            assert float(row["Max LR"]) == entry.lr
            assert float(row["noise_multiplier"]) == entry.changes["noise_multiplier"]
            assert row["Run Folder"] == entry.run_dir
            assert row["Training Accuracy"] == row["Validation Accuracy"] == row["Error"] == ""
            assert "test accuracy" in (folder.path / "logs" / f"{entry.name}.txt").read_text()
        assert len(list((folder.path.parent / "features").glob("*.h5"))) == 1
        assert record.selection["runs_that_looked"] == 2
        assert not is_running(folder.path)

    def test_a_second_start_runs_nothing_again(self, make_sweep, folder, workers, monkeypatch):
        first = execute(make_sweep(), folder, workers)
        monkeypatch.setattr(experiment, "run", lambda *a, **k: pytest.fail("ran again"))
        assert execute(make_sweep(), folder, workers) == first

    def test_only_what_is_missing_is_run(self, make_sweep, folder, workers):
        first = execute(make_sweep(), folder, workers)
        never_begun(folder, first.runs[1])
        before = [
            (folder.path / entry.run_dir / "summary.json").stat().st_mtime_ns
            for entry in first.runs
            if entry is not first.runs[1]
        ]
        again = execute(make_sweep(), folder, workers)
        after = [
            (folder.path / entry.run_dir / "summary.json").stat().st_mtime_ns
            for entry in first.runs
            if entry is not first.runs[1]
        ]
        assert before == after
        assert again.count("done") == 2

    def test_a_run_whose_folder_is_gone_has_spent_its_budget_and_is_not_run_again(self, make_sweep, folder, workers):
        first = execute(make_sweep(), folder, workers)
        kept = folder.path / first.runs[1].run_dir
        kept.rename(folder.path / "kept")
        again = execute(make_sweep(), folder, workers)
        assert [entry.state for entry in again.runs] == ["done", "failed"]
        assert "its budget is spent" in (again.runs[1].error or "")
        assert again.selection["runs_that_looked"] == 2
        assert not kept.exists()
        (folder.path / "kept").rename(kept)
        assert execute(make_sweep(), folder, workers).count("done") == 2

    def test_a_run_that_was_stopped_after_it_had_looked_has_spent_though_its_folder_goes(
        self, make_sweep, folder, workers, monkeypatch
    ):
        carry_out_all, append = execution.carry_out_all, RunFolder.append_metrics

        def half_way(runs, workers, *, command, folder, on_change, on_wait):
            entry, planned = runs[0]
            entry.state = "running"
            on_change(entry)
            experiment.run(planned.config)

        def interrupted(self, row):
            append(self, row)
            raise KeyboardInterrupt

        monkeypatch.setattr(execution, "carry_out_all", half_way)
        monkeypatch.setattr(RunFolder, "append_metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(make_sweep(), folder, workers)
        monkeypatch.setattr(RunFolder, "append_metrics", append)
        monkeypatch.setattr(execution, "carry_out_all", carry_out_all)
        gone, _ = SweepRecord.load(folder.path).runs
        assert gone.looked
        shutil.rmtree(folder.path / gone.run_dir)
        again = execute(make_sweep(), folder, workers)
        assert [entry.state for entry in again.runs] == ["failed", "done"]
        assert again.selection["runs_that_looked"] == 2

    def test_that_a_run_looks_is_written_while_it_goes_on(self, make_sweep, folder, workers, monkeypatch):
        seen = []

        def half_way(runs, workers, *, command, folder: Path, on_change, on_wait):
            entry, _ = runs[0]
            entry.state = "running"
            on_change(entry)
            run_dir = folder / entry.run_dir
            on_wait()
            run_dir.mkdir(parents=True)
            (run_dir / "metrics.jsonl").touch()
            on_wait()
            seen.append(SweepRecord.load(folder).runs[0].looked)

        monkeypatch.setattr(execution, "carry_out_all", half_way)
        execute(make_sweep(), folder, workers)
        assert seen == [True]

    def test_a_run_that_was_killed_before_its_config_begins_anew(self, make_sweep, folder, workers):
        sweep = make_sweep(QUICK.replace("[3, 4]", "[3]"))
        record = execute(sweep, folder, workers)
        run_dir = never_begun(folder, record.runs[0])
        run_dir.mkdir()
        (run_dir / "config.json.tmp").write_text("{")
        assert execute(sweep, folder, workers).count("done") == 1

    def test_a_checkpoint_that_a_kill_left_beside_a_complete_run_is_removed(self, make_sweep, folder, workers):
        sweep = make_sweep(QUICK.replace("[3, 4]", "[3]"))
        record = execute(sweep, folder, workers)
        checkpoint = folder.path / record.runs[0].run_dir / "checkpoint.pt"
        checkpoint.write_bytes(b"the key")
        assert execute(sweep, folder, workers).count("done") == 1
        assert not checkpoint.exists()

    def test_a_failing_run_is_recorded_and_tried_again_with_the_next_start(
        self, make_sweep, folder, workers, monkeypatch
    ):
        run = experiment.run

        def fails(config, **arguments):
            if config.noise_multiplier == 3:
                raise ZeroDivisionError("by nothing")
            return run(config, **arguments)

        monkeypatch.setattr(experiment, "run", fails)
        record = execute(make_sweep(), folder, workers)
        assert [entry.state for entry in record.runs] == ["failed", "done"]
        assert str(record.runs[0].error).startswith("ZeroDivisionError: by nothing (see logs/001-")
        assert not record.runs[0].looked
        assert record.selection["runs_that_looked"] == 1
        assert "Traceback" in (folder.path / "logs" / f"{record.runs[0].name}.txt").read_text()
        assert rows(folder)[0]["Error"] == record.runs[0].error
        monkeypatch.setattr(experiment, "run", run)
        assert execute(make_sweep(), folder, workers).count("done") == 2

    def test_a_run_that_fails_after_it_has_looked_is_counted(self, make_sweep, folder, workers, monkeypatch):
        monkeypatch.setattr(experiment, "_record", lambda *a: 1 / 0)
        record = execute(make_sweep(), folder, workers)
        assert record.count("failed") == 2
        assert record.selection["runs_that_looked"] == 2
        assert record.selection["epsilon_composed"] > record.selection["epsilon_if_tuning_were_free"] > 0

    def test_a_cell_whose_statistics_exceed_the_budget_fails_and_the_rest_goes_on(self, make_sweep, folder, workers):
        text = (
            QUICK.replace('"pixels"', '"scatternet"')
            .replace('"none"', '"BN"')
            .replace("noise_multiplier = [3, 4]", "bn_noise_multiplier = [0.5, 20]")
        )
        record = execute(make_sweep(text), folder, workers)
        assert [entry.state for entry in record.runs] == ["failed", "done"]
        assert "already ε = " in str(record.runs[0].error)
        assert record.selection["runs_that_looked"] == 1
        assert not (folder.path / record.runs[0].run_dir).exists()

    def test_validation_accuracy_is_noisy_and_chooses(self, make_sweep, folder, workers):
        record = execute(make_sweep(HELD_OUT), folder, workers)
        assert record.validation_is_private is True
        best = max(record.runs, key=lambda entry: known(entry.validation_accuracy))
        text = (folder.path / "results.md").read_text()
        assert f"Validation Accuracy: {best.validation_accuracy:.4f}" in text
        assert "with noise, inside the budget" in text
        assert "†" not in text

    def test_exact_scores_are_marked(self, make_sweep, folder, workers):
        text = HELD_OUT.replace("validation_noise_multiplier = 4\n", "").replace(
            "[grid]", "train_metrics = true\n[grid]"
        )
        record = execute(make_sweep(text), folder, workers)
        assert record.validation_is_private is False
        assert record.selection["epsilon_of_best"] is None
        said = (folder.path / "results.md").read_text()
        assert f"| {record.runs[0].training_accuracy:.4f} † | {record.runs[0].validation_accuracy:.4f} † |" in said
        assert "Training accuracy is computed on the private data without noise" in said
        assert "without any guarantee" in said

    def test_seeds_are_runs_of_their_own_with_a_mean(self, make_sweep, folder, workers):
        text = "seeds = [0, 1]\n" + QUICK.replace("[3, 4]", "[3]")
        record = execute(make_sweep(text), folder, workers)
        accuracies = [known(entry.test_accuracy) for entry in record.runs[:2]]
        assert accuracies[0] != accuracies[1]
        row = rows(folder)[0]
        assert (row["Seed"], row["Seeds"]) == ("0", "2")
        assert float(row["Test Accuracy Mean"]) == pytest.approx(sum(accuracies) / 2)
        assert float(row["Test Accuracy Std"]) == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
        assert f"{sum(accuracies) / 2:.4f} ± " in (folder.path / "results.md").read_text()
        assert "from seeds" in record.selection["statement"]
        said = (folder.path / "results.md").read_text()
        assert "| Seed † |" in said
        assert "† Whoever knows a seed can subtract the noise" in said


class TestFolder:
    def test_two_sweeps_on_one_folder_are_refused(self, make_sweep, folder, workers):
        sweep = make_sweep()
        with folder.locked(), pytest.raises(UserError, match="another live process runs this sweep"):
            execute(sweep, folder, workers)
        assert not folder.has_begun

    def test_another_outline_is_refused_and_comments_do_not_matter(self, make_sweep, folder, workers):
        sweep = make_sweep()
        execute(sweep, folder, workers)
        before = {
            path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"
        }
        with pytest.raises(ConfigError, match="another outline"):
            execute(make_sweep(QUICK.replace("[3, 4]", "[3, 5]")), folder, workers)
        with pytest.raises(ConfigError, match="same outline, but a grid"):
            execute(make_sweep(random_mean=2.0), folder, workers)
        assert before == {path: path.stat().st_mtime_ns for path in before}
        assert folder.check("# the same\n" + QUICK, None) is not None

    def test_a_folder_with_something_else_is_left_alone(self, make_sweep, folder, workers):
        folder.path.mkdir()
        (folder.path / "thesis.tex").write_text("mine")
        with pytest.raises(ConfigError, match=r"no sweep \(thesis.tex\)"):
            execute(make_sweep(), folder, workers)
        assert os.listdir(folder.path) == ["thesis.tex"]

    @pytest.mark.parametrize("content", ["", "{}", '{"schema": 2}', "[]", '{"schema": 1, "runs": [{"name": 1}]}'])
    def test_a_damaged_record_is_refused(self, make_sweep, folder, workers, content):
        folder.path.mkdir()
        (folder.path / "sweep.json").write_text(content)
        with pytest.raises(ConfigError, match=r"sweep.json is (damaged|of another version)"):
            execute(make_sweep(), folder, workers)

    def test_a_full_disk_is_one_sentence_and_the_next_start_goes_on(self, make_sweep, folder, workers, monkeypatch):
        write, count = record_module.write_whole, []

        def full(path, text):
            count.append(path)
            if len(count) > 5:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, text)

        for user in (record_module, execution.write_tables.__globals__):
            if isinstance(user, dict):
                monkeypatch.setitem(user, "write_whole", full)
            else:
                monkeypatch.setattr(user, "write_whole", full)
        with pytest.raises(UserError, match=r"No space left on device.*same command goes on"):
            execute(make_sweep(), folder, workers)
        monkeypatch.undo()
        assert execute(make_sweep(), folder, workers).count("done") == 2

    def test_a_disk_full_before_the_first_record_leaves_what_the_next_start_takes(
        self, make_sweep, folder, workers, monkeypatch
    ):
        write = record_module.write_whole

        def full(path, text):
            with files_of_at_most(10):
                write(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(record_module, "write_whole", full)
            with pytest.raises(UserError, match=r"File too large.*same command goes on"):
                execute(make_sweep(), folder, workers)
        assert set(os.listdir(folder.path)) - {".lock"} == {"outline.toml", "runs", "logs"}
        assert execute(make_sweep(), folder, workers).count("done") == 2

    def test_a_run_for_which_the_disk_is_full_fails_alone(self, make_sweep, folder, workers, monkeypatch):
        write = RunFolder.write_model

        def full(self, *arguments):
            if self.path.name.startswith("002"):
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, *arguments)

        monkeypatch.setattr(RunFolder, "write_model", full)
        record = execute(make_sweep(), folder, workers)
        assert [entry.state for entry in record.runs] == ["done", "failed"]
        assert "No space left on device" in str(record.runs[1].error)
        assert record.runs[1].looked


class TestRandom:
    def test_a_random_number_of_candidates_is_run_and_kept(self, make_sweep, folder, workers, monkeypatch):
        monkeypatch.setattr(NumberOfTrials, "draw", lambda self, key: 3)
        record = execute(make_sweep(HELD_OUT, random_mean=2.0), folder, workers)
        assert record.num_runs == len(record.runs) == 3
        assert all(entry.changes in make_sweep().outline.runs() for entry in record.runs)
        monkeypatch.setattr(NumberOfTrials, "draw", lambda self, key: pytest.fail("drawn again"))
        assert execute(make_sweep(HELD_OUT, random_mean=2.0), folder, workers) == record
        best = max(record.runs, key=lambda entry: known(entry.validation_accuracy))
        published = json.loads((folder.path / "best" / "best.json").read_text())
        assert published["changes"] == best.changes
        assert published["validation_accuracy"] == best.validation_accuracy
        assert (
            published["epsilon"]
            == record.selection["epsilon_of_best"]
            > record.selection["epsilon_if_tuning_were_free"]
        )
        # Nothing that tells how many there were.
        assert published.keys() == {"changes", "validation_accuracy", "test_accuracy", "epsilon", "delta", "statement"}
        assert "A private file" in (folder.path / "results.md").read_text()

    def test_the_best_goes_with_a_certificate_of_the_whole_search(
        self, make_sweep, folder, workers, monkeypatch, capsys
    ):
        monkeypatch.setattr(NumberOfTrials, "draw", lambda self, key: 3)
        text = HELD_OUT.replace("noise_multiplier = [3, 4]", "noise_multiplier = [3]\nlr = [0.5, 1]")
        record = execute(make_sweep(text, random_mean=2.0), folder, workers)
        published, best = folder.path / "best", max(record.runs, key=lambda entry: known(entry.validation_accuracy))
        assert set(os.listdir(published)) == {
            "best.json", "certificate.json", "model.safetensors", "model_ema.safetensors",
        }  # fmt: skip
        for name in ("model.safetensors", "model_ema.safetensors"):
            assert (published / name).read_bytes() == (folder.path / best.run_dir / name).read_bytes()
        for name in os.listdir(published):
            content = (published / name).read_bytes()
            assert best.name.encode() not in content
            assert b"run_dir" not in content
        certificate = json.loads((published / "certificate.json").read_text())
        assert certificate["epsilon"] == pytest.approx(record.selection["epsilon_of_best"], rel=1e-9)
        assert certificate["epsilon"] > known(best.epsilon)
        assert [entry["event"]["type"] for entry in certificate["ledger"]] == ["RepeatAndSelectDpEvent"]
        assert "must go with the published model" in json.loads((published / "best.json").read_text())["statement"]
        capsys.readouterr()
        assert certificate_command.run([str(published)]) == 0
        assert "the best of a random number of trials, 2 on average" in capsys.readouterr().out

    def test_candidates_that_differ_in_what_they_release_have_a_statement_and_no_certificate(
        self, make_sweep, folder, workers, monkeypatch
    ):
        monkeypatch.setattr(NumberOfTrials, "draw", lambda self, key: 1)
        record = execute(make_sweep(random_mean=2.0), folder, workers)
        assert set(os.listdir(folder.path / "best")) == {
            "best.json", "certificate.txt", "model.safetensors", "model_ema.safetensors",
        }  # fmt: skip
        statement = (folder.path / "best" / "certificate.txt").read_text()
        assert f"ε = {rounded_up(record.selection['epsilon_of_best'])}" in statement
        with pytest.raises(ConfigError, match=r"no ledger to check; read what holds in .*certificate\.txt"):
            certificate_command.run([str(folder.path / "best")])

    def test_what_is_published_is_there_whole_or_not_at_all(self, make_sweep, folder, workers, monkeypatch):
        monkeypatch.setattr(NumberOfTrials, "draw", lambda self, key: 1)
        copy = shutil.copyfile

        def full(source, target):
            if target.name == "model_ema.safetensors":
                raise OSError(errno.ENOSPC, "No space left on device")
            return copy(source, target)

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(UserError, match="No space left on device"):
            execute(make_sweep(random_mean=2.0), folder, workers)
        assert not [name for name in os.listdir(folder.path) if "best" in name]
        monkeypatch.setattr(shutil, "copyfile", copy)
        execute(make_sweep(random_mean=2.0), folder, workers)
        assert len(os.listdir(folder.path / "best")) == 4

    def test_a_finished_search_tries_nothing_again(self, make_sweep, folder, workers, monkeypatch):
        monkeypatch.setattr(NumberOfTrials, "draw", lambda self, key: 2)
        write = RunFolder.write_model

        def full(self, *arguments):
            if self.path.name.startswith("001"):
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, *arguments)

        monkeypatch.setattr(RunFolder, "write_model", full)
        record = execute(make_sweep(random_mean=2.0), folder, workers)
        assert [entry.state for entry in record.runs] == ["failed", "done"]
        model = (folder.path / "best" / "model.safetensors").read_bytes()
        monkeypatch.setattr(RunFolder, "write_model", write)
        monkeypatch.setattr(experiment, "run", lambda *a, **k: pytest.fail("ran again"))
        assert execute(make_sweep(random_mean=2.0), folder, workers) == record
        shutil.rmtree(folder.path / record.runs[1].run_dir)  # nor what is gone
        assert execute(make_sweep(random_mean=2.0), folder, workers).count("done") == 1
        assert (folder.path / "best" / "model.safetensors").read_bytes() == model

    def test_equal_candidates_have_their_own_noise(self, make_sweep, folder, workers, monkeypatch):
        monkeypatch.setattr(NumberOfTrials, "draw", lambda self, key: 3)
        text = QUICK.replace("[3, 4]", "[3]")
        record = execute(make_sweep(text, random_mean=2.0), folder, workers)
        models = {(folder.path / entry.run_dir / "model.safetensors").read_bytes() for entry in record.runs}
        assert len(models) == 3

    def test_the_number_is_that_of_the_distribution(self, make_sweep):
        sweep = make_sweep(random_mean=3.0)
        counts = [len(sweep.new_changes()) for _ in range(600)]
        assert min(counts) >= 1
        assert abs(sum(counts) / 600 - 3.0) < 4 * (3.0 * 2.0 / 600) ** 0.5  # a geometric number's variance is m(m-1)

    @pytest.mark.parametrize(
        ("text", "mean", "message"),
        [
            ("seeds = [0]\n" + QUICK, 3.0, r"seeds=\[0\]; leave seeds out"),
            (
                HELD_OUT.replace("validation_noise_multiplier = 4\n", ""),
                3.0,
                "give the outline a validation_noise_multiplier",
            ),
            (QUICK.replace("noise_multiplier = [3, 4]", 'optim = ["SGD", "LR"]'), 3.0, "optim=LR is not private"),
            (QUICK, 0.5, "random=0.5: expected"),
        ],
    )
    def test_what_would_void_the_bound_is_refused(self, make_sweep, text, mean, message):
        with pytest.raises(ConfigError, match=message):
            make_sweep(text, random_mean=mean)


class TestPlans:
    def test_a_budget_is_solved_for_once(self, make_sweep, monkeypatch):
        from scatterdp.training import plan

        calls = []
        calibrate = plan.calibrate_noise_multiplier
        monkeypatch.setattr(plan, "calibrate_noise_multiplier", lambda *a, **k: calls.append(k) or calibrate(*a, **k))
        text = QUICK.replace(
            "noise_multiplier = [3, 4]",
            'target_epsilon = [3.11, 4.11]\nmax_grad_norm = [0.1, 0.2]\nlr = [1, 2]\naccountant = ["rdp"]',
        )
        planned = make_sweep(text).candidates()
        assert len(planned) == 8
        assert len(calls) == distinct_budgets(planned) == 2
        assert {run.plan.sigma for run in planned if run.plan is not None} == {
            planned[0].plan.sigma,
            planned[-1].plan.sigma,
        }

    def test_plans_that_cost_the_same_are_equal_in_what_they_release(self, make_sweep):
        for run in make_sweep().candidates():
            assert run.plan.cost_only.event() == run.plan.event()
            assert dataclasses.replace(run.plan, epochs=7).cost_only != run.plan.cost_only
