"""The published command, start to end: in processes of its own where that matters, else in this one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import (
    FILES,
    assert_same_weights,
    claims,
    disk_full_at,
    files_of_at_most,
    interrupted_in_epoch,
    names,
    read_json,
)
from safetensors import safe_open
from safetensors.torch import load_file

from scatterdp import baselines, experiment
from scatterdp.cache import cache_path
from scatterdp.config import BaselinesConfig
from scatterdp.datasets import load_dataset
from scatterdp.errors import UserError
from scatterdp.extractors import make_extractor
from scatterdp.extractors.scatternet import ScatterNet
from scatterdp.heads import Standardize, group_normalizer, linear_head
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.randomness import RandomKey
from scatterdp.recipes import generic_recipe
from scatterdp.records import RunFolder
from scatterdp.training import fit as fit_module
from scatterdp.training.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
QUICK = ("--dataset=digits", "--epochs=2", "--noise_multiplier=4", "--device=cpu")
LIMIT = 300  # seconds for a process that should need ten


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: Any
    out: str
    err: str


def in_process(*arguments: str, script: str | None = None, folder: Path) -> subprocess.Popen[str]:
    how = ["-m", "scatterdp.baselines"] if script is None else ["-c", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *how, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finished(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=LIMIT)
    return Outcome(process.returncode, out, err)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder (None for a folder)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_same_model(a: Path, b: Path) -> None:
    """Bit for bit, and the same certificate and rows."""
    assert_same_weights(a, b)
    assert claims(a) == claims(b)
    assert without_seconds(read_rows(a)) == without_seconds(read_rows(b))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(
    work: Path, digits_features_dir: Path, capsys: pytest.CaptureFixture[str], accounting_once: None
) -> Callable[..., Outcome]:
    """The command in this process; the digits' features are there already."""

    def call(*arguments: str) -> Outcome:
        resumes = any(argument.startswith("--resume") for argument in arguments)
        place = () if resumes else (f"--features_dir={digits_features_dir}",)
        capsys.readouterr()
        try:
            code: Any = baselines.main([*place, *arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def own_images(work: Path) -> Path:
    """A person's own ``.npz``: 150 digits to train and 60 to test."""
    digits = load_dataset("digits")
    path = work / "own.npz"
    np.savez(
        path,
        x_train=digits.x_train[:150],
        y_train=digits.y_train[:150],
        x_test=digits.x_test[:60],
        y_test=digits.y_test[:60],
    )
    return path


@dataclasses.dataclass(frozen=True)
class WholeRun:
    outcome: Outcome
    folder: Path
    features_dir: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    """``python -m scatterdp.baselines --dataset=digits``, nothing prepared."""
    work = tmp_path_factory.mktemp("whole")
    process = in_process(
        "--dataset=digits", "--seed=0", "--run_dir=a run", "--features_dir=cached", "--device=cpu", folder=work
    )
    return WholeRun(finished(process), work / "a run", work / "cached")


class TestWholeRun:
    def test_says_accuracy_epsilon_and_where_the_run_folder_is(self, whole: WholeRun):
        assert whole.outcome.code == 0
        assert "Traceback" not in whole.outcome.err
        lines = whole.outcome.out.splitlines()
        summary = read_json(whole.folder / "summary.json")
        assert lines[-1] == "run folder: a run"
        assert re.match(
            r"ε = 2\.9\d\d\d at δ = 1e-05 by pld \(pld 2\.9\d+, rdp 3\.\d+, rdp_classic 3\.\d+\)$", lines[-2]
        )
        assert lines[-3] == (
            f"test accuracy {summary['test_accuracy']:.4f} (averaged weights {summary['test_accuracy_ema']:.4f})"
        )
        assert lines[0] == ("digits: 1437 training and 360 test images of 1×8×8, 10 classes; features 81×2×2")
        assert sum(line.startswith("epoch ") for line in lines) == 30
        assert "NOT PRIVATE" not in whole.outcome.out
        assert "1797" in whole.outcome.err  # the progress of the extraction

    def test_leaves_its_files_and_no_other(self, whole: WholeRun):
        assert names(whole.folder) == FILES
        assert names(whole.folder.parent) == {"a run", "cached"}

    def test_summary(self, whole: WholeRun):
        summary = read_json(whole.folder / "summary.json")
        assert summary.keys() >= {
            "test_accuracy",
            "test_accuracy_ema",
            "epsilon",
            "delta",
            "accountant",
            "noise_multiplier",
            "steps",
            "sample_rate",
            "seconds_extract",
            "seconds_train",
            "peak_memory_bytes",
        }
        assert summary["test_accuracy"] > 0.85
        assert summary["test_accuracy_ema"] > 0.85
        assert 2.99 < summary["epsilon"] <= 3
        assert (summary["delta"], summary["accountant"], summary["private"]) == (1e-5, "pld", True)
        assert (summary["steps"], summary["sample_rate"]) == (2 * 30, 512 / 1437)
        assert 3.9 < summary["noise_multiplier"] < 4.1
        assert 0 < summary["seconds_extract"] < LIMIT
        assert 0 < summary["seconds_train"] < LIMIT
        assert 10**8 < summary["peak_memory_bytes"] < 10**10

    def test_epsilon_can_be_recomputed_from_the_certificate(self, whole: WholeRun):
        certificate, summary = (read_json(whole.folder / f"{name}.json") for name in ("certificate", "summary"))
        assert certificate["private"] is True
        for name in ("epsilon", "delta", "accountant", "epsilon_by_accountant"):
            assert certificate[name] == summary[name]
        (entry,) = certificate["ledger"]
        sampled = entry["event"]["event"]
        event = dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(
                sampled["sampling_probability"],
                dp_accounting.GaussianDpEvent(sampled["event"]["noise_multiplier"]),
            ),
            entry["event"]["count"],
        )
        assert entry["event"]["count"] == summary["steps"]
        assert sampled["sampling_probability"] == summary["sample_rate"]
        assert sampled["event"]["noise_multiplier"] == summary["noise_multiplier"]
        accountant = dp_accounting.rdp.RdpAccountant().compose(event)
        assert certificate["epsilon_by_accountant"]["rdp"] == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
        assert certificate["epsilon"] <= certificate["epsilon_by_accountant"]["rdp"]
        assert certificate["data"]["fingerprint"] == load_dataset("digits").fingerprint
        assert "settings were chosen by the test accuracy of models" in certificate["statement"]

    def test_a_row_an_epoch(self, whole: WholeRun):
        rows, summary = read_rows(whole.folder), read_json(whole.folder / "summary.json")
        assert [(row["epoch"], row["step"]) for row in rows] == [(i, 2 * i) for i in range(1, 31)]
        epsilons = [row["epsilon"] for row in rows]
        assert epsilons == sorted(epsilons)
        assert epsilons[-1] == pytest.approx(summary["epsilon"], rel=1e-9)
        assert rows[-1]["test_accuracy"] == summary["test_accuracy"]
        assert not any("not_private" in name for row in rows for name in row)

    def test_config_is_the_command(self, whole: WholeRun):
        config = BaselinesConfig.from_json((whole.folder / "config.json").read_text())
        assert config == BaselinesConfig(
            dataset="digits", seed=0, run_dir=Path("a run"), features_dir=Path("cached"), device="cpu"
        )

    @pytest.mark.parametrize(
        ("name", "field"), [("model.safetensors", "test_accuracy"), ("model_ema.safetensors", "test_accuracy_ema")]
    )
    def test_weights_reproduce_the_accuracy(self, whole: WholeRun, name, field):
        with safe_open(whole.folder / name, "pt") as file:
            metadata = file.metadata()
        assert "digits" not in metadata  # facts, no data
        head = linear_head(group_normalizer(81, 27), (81, 2, 2), 10)
        head.load_state_dict(load_file(whole.folder / name))
        digits = load_dataset("digits")
        extractor = make_extractor("scatternet", digits.image_shape)
        images = torch.from_numpy(digits.x_test[:, None].astype(np.float32) / 255)
        with torch.no_grad():
            predicted = head(extractor(images)).argmax(1).numpy()
        assert np.mean(predicted == digits.y_test) == read_json(whole.folder / "summary.json")[field]

    def test_averaged_weights_are_others(self, whole: WholeRun):
        last, average = (load_file(whole.folder / name) for name in ("model.safetensors", "model_ema.safetensors"))
        assert last.keys() == average.keys() == {"classifier.weight", "classifier.bias"}
        for name, value in last.items():
            assert 0 < (value - average[name]).norm() < value.norm()

    def test_model_says_how_it_was_made(self, whole: WholeRun):
        with safe_open(whole.folder / "model.safetensors", "pt") as file:
            text = " ".join(file.metadata().values())
        for fact in ('"batch_size": 512', '"noise_multiplier": 4.0', '"scatternet"', "[81, 2, 2]", '"9"'):
            assert fact in text.replace('\\"', '"')

    def test_plot(self, whole: WholeRun):
        with Image.open(whole.folder / "accuracy_epsilon.png") as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 50

    def test_second_run_reuses_the_cache_and_gives_the_same_model(
        self, whole: WholeRun, work: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ):
        (cache,) = whole.features_dir.glob("*.h5")
        before = cache.stat().st_mtime_ns, cache.stat().st_ino

        def extracts(*_):
            raise AssertionError("features are extracted a second time")

        monkeypatch.setattr(ScatterNet, "__call__", extracts)
        arguments = ["--dataset=digits", "--seed=0", f"--features_dir={whole.features_dir}", "--device=cpu"]
        assert baselines.main([*arguments, "--run_dir=second"]) == 0
        assert (cache.stat().st_mtime_ns, cache.stat().st_ino) == before
        assert f"features: cached in {whole.features_dir}" in capsys.readouterr().out
        assert_same_model(whole.folder, work / "second")
        for name in ("model.safetensors", "model_ema.safetensors"):
            assert (whole.folder / name).read_bytes() == (work / "second" / name).read_bytes()

    def test_to_go_on_with_a_complete_run_is_refused(self, whole: WholeRun, run):
        before = contents(whole.folder)
        outcome = run(f"--resume={whole.folder}")
        assert outcome.code == 2
        assert outcome.err == (
            f"error: resume={whole.folder}: this run is complete; start another with a new --run_dir\n"
        )
        assert contents(whole.folder) == before


class TestKilled:
    SCRIPT = (
        "import sys\n"
        "from scatterdp import baselines\n"
        "from scatterdp.training import fit\n"
        "fit.CHECKPOINT_SECONDS = 0\n"
        "sys.exit(baselines.main(sys.argv[1:]))\n"
    )

    def test_a_killed_run_goes_on_to_the_same_end(self, run, work: Path, digits_features_dir: Path):
        arguments = [
            "--dataset=digits",
            "--epochs=24",
            "--noise_multiplier=4",
            "--input_norm=BN",
            "--seed=5",
            "--device=cpu",
            f"--features_dir={digits_features_dir}",
        ]
        process = in_process(*arguments, "--run_dir=killed", script=self.SCRIPT, folder=work)
        rows, deadline = work / "killed" / "metrics.jsonl", time.monotonic() + LIMIT
        try:
            while not (rows.exists() and rows.read_bytes().count(b"\n") >= 5):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
        assert finished(process).code == -signal.SIGKILL
        assert names(work / "killed") - {"checkpoint.pt.tmp"} == {"checkpoint.pt", "config.json", "metrics.jsonl"}
        step = Checkpoint.load(work / "killed" / "checkpoint.pt").training["step"]
        assert 8 <= step < 48

        with RunFolder(work / "killed").locked():
            outcome = run("--resume=killed")
        assert outcome.code == 2
        assert outcome.err == "error: run_dir=killed: another live process is running this run; wait for it\n"

        outcome = finished(in_process("--resume=killed", folder=work))
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith("resuming killed\n")
        assert f"epoch {step // 2}:" not in outcome.out
        assert f"epoch {step // 2 + 1}:" in outcome.out
        assert names(work / "killed") == FILES

        assert run(*arguments, "--run_dir=whole").code == 0
        assert_same_model(work / "killed", work / "whole")
        killed, whole = (read_json(work / folder / "summary.json") for folder in ("killed", "whole"))
        measured = {"seconds_extract", "seconds_train", "peak_memory_bytes"}
        assert {k: v for k, v in killed.items() if k not in measured} == {
            k: v for k, v in whole.items() if k not in measured
        }

    @pytest.fixture
    def interrupted(self, run, work: Path, own_images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A run on a person's own images, interrupted in its third epoch."""
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        with interrupted_in_epoch(3):
            outcome = run(f"--dataset={own_images}", "--epochs=5", "--noise_multiplier=4", "--run_dir=run")
        assert outcome.code == 130
        assert outcome.err.splitlines()[-1] == ("interrupted: go on with python -m scatterdp.baselines --resume=run")
        assert names(work / "run") == {"checkpoint.pt", "config.json", "metrics.jsonl"}
        return work / "run"

    def test_an_interrupted_run_goes_on(self, run, interrupted: Path):
        outcome = run("--resume=run")
        assert outcome.code == 0, outcome.err
        assert names(interrupted) == FILES
        assert [row["epoch"] for row in read_rows(interrupted)] == [1, 2, 3, 4, 5]

    def test_a_run_stopped_before_its_first_checkpoint_begins_anew(self, run, interrupted: Path):
        (interrupted / "checkpoint.pt").unlink()
        (interrupted / "metrics.jsonl").write_text("")
        outcome = run("--resume=run")
        assert outcome.code == 0, outcome.err
        assert names(interrupted) == FILES
        assert [row["epoch"] for row in read_rows(interrupted)] == [1, 2, 3, 4, 5]

    def test_a_run_that_has_told_something_needs_its_checkpoint(self, run, interrupted: Path):
        (interrupted / "checkpoint.pt").unlink()
        before = contents(interrupted)
        outcome = run("--resume=run")
        assert outcome.code == 2
        assert outcome.err == "error: resume=run: has no checkpoint.pt; start the run anew in another --run_dir\n"
        assert contents(interrupted) == before

    def test_damaged_features_are_not_trained_on(self, run, interrupted: Path, digits_features_dir: Path):
        dataset = load_dataset(read_json(interrupted / "config.json")["dataset"])
        extractor = make_extractor("scatternet", dataset.image_shape)
        cache = cache_path(dataset, extractor, features_dir=digits_features_dir)
        whole = cache.read_bytes()
        damaged = bytearray(whole)
        damaged[len(damaged) // 2] ^= 1
        cache.write_bytes(damaged)
        try:
            outcome = run("--resume=run")
        finally:  # other tests share the folder
            cache.write_bytes(whole)
        assert outcome.code == 2
        assert "do not match their digest; remove it with `python -m scatterdp cache rm" in outcome.err

    def test_other_flags_beside_resume_are_refused(self, run, interrupted: Path):
        before = contents(interrupted)
        outcome = run("--resume=run", "--epochs=7")
        assert outcome.code == 2
        assert outcome.err == (
            "error: epochs=7 beside resume=run: a run goes on with its own config, leave epochs out\n"
        )
        default = run("--resume=run", "--dataset=cifar10")
        assert default.code == 2
        assert default.err.startswith("error: dataset=cifar10 beside resume=run: a run goes on with its own config")
        assert contents(interrupted) == before

    def test_data_that_have_changed_are_refused(self, run, interrupted: Path, own_images: Path):
        before = contents(interrupted)
        with np.load(own_images) as arrays:
            values = dict(arrays)
        values["x_train"][0, 0, 0] ^= 1
        np.savez(own_images, **values)
        outcome = run("--resume=run")
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1] == (
            "error: resume: data, settings, device or versions are not those that the run began with; "
            "its noise must not be used for anything else: restore them, or start a new run"
        )
        after = contents(interrupted)
        assert after["checkpoint.pt"] == before["checkpoint.pt"]
        assert names(interrupted) == {"checkpoint.pt", "config.json", "metrics.jsonl"}

    def test_a_damaged_checkpoint_is_refused(self, run, interrupted: Path):
        (interrupted / "checkpoint.pt").write_bytes((interrupted / "checkpoint.pt").read_bytes()[:500])
        outcome = run("--resume=run")
        assert outcome.code == 2
        assert "error: run/checkpoint.pt: damaged checkpoint" in outcome.err
        assert "start the run anew in another --run_dir" in outcome.err

    def test_a_recipe_that_has_changed_is_refused(self, run, interrupted: Path, monkeypatch: pytest.MonkeyPatch):
        """The certificate would charge the steps that are done by the noise of the new recipe."""
        recipe = dataclasses.replace(generic_recipe(150), max_grad_norm=0.01)
        monkeypatch.setattr("scatterdp.recipes.generic_recipe", lambda num_examples: recipe)
        before = contents(interrupted)
        outcome = run("--resume=run")
        assert outcome.code == 2
        assert outcome.err.startswith("error: resume: data, settings, device or versions are not those")
        assert contents(interrupted)["checkpoint.pt"] == before["checkpoint.pt"]


class TestFullDisk:
    AGAIN = "error: run_dir=run: cannot be written (File too large); make room, and go on with python -m scatterdp.baselines --resume=run"

    def test_nothing_is_left_of_a_run_that_could_not_begin(self, run, work: Path):
        with files_of_at_most(100):
            outcome = run(*QUICK, "--run_dir=a/run")
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1] == (
            "error: run_dir=a/run: cannot be written (File too large); make room, or give another --run_dir"
        )
        assert list(work.iterdir()) == []

    def test_a_run_without_a_checkpoint_goes_on(self, run, work: Path):
        with files_of_at_most(5_000):
            outcome = run(*QUICK, "--run_dir=run")
        assert (outcome.code, outcome.err.splitlines()[-1]) == (2, self.AGAIN)
        assert names(work / "run") == {"config.json", "metrics.jsonl"}
        self.goes_on(run, work)

    @pytest.mark.parametrize("name", ["test_predictions.npz", "model_ema.safetensors", "summary.json"])
    def test_a_run_with_a_checkpoint_goes_on(self, run, work: Path, name):
        with disk_full_at(name):
            outcome = run(*QUICK, "--run_dir=run")
        assert (outcome.code, outcome.err.splitlines()[-1]) == (2, self.AGAIN)
        assert "checkpoint.pt" in names(work / "run")
        assert names(work / "run") <= {*FILES, "checkpoint.pt"} - {name}
        self.goes_on(run, work)

    def test_logistic_regression_begins_anew(self, run, work: Path, own_images: Path):
        with disk_full_at("certificate.json"):
            outcome = run(f"--dataset={own_images}", "--optim=LR", "--run_dir=run")
        assert (outcome.code, outcome.err.splitlines()[-1]) == (2, self.AGAIN)
        assert len(read_rows(work / "run")) == 5
        self.goes_on(run, work)
        assert len(read_rows(work / "run")) == 5

    def test_a_metrics_row_that_is_not_written_is_not_shown(self, run, work: Path, monkeypatch):
        append = RunFolder.append_metrics

        def full(folder: RunFolder, row: dict[str, Any]) -> None:
            with files_of_at_most(0 if row["epoch"] == 1 else 2**40):
                append(folder, row)

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "append_metrics", full)
            outcome = run(*QUICK, "--run_dir=run")
        assert (outcome.code, outcome.err.splitlines()[-1]) == (2, self.AGAIN)
        assert "epoch 1" not in outcome.out
        self.goes_on(run, work)

    def test_a_run_is_complete_without_its_picture(self, run, work: Path):
        with files_of_at_most(50_000):
            outcome = run(*QUICK, "--run_dir=run")
        assert outcome.code == 0
        assert "warning: accuracy_epsilon.png cannot be written (File too large)" in outcome.err
        assert names(work / "run") == FILES - {"accuracy_epsilon.png"}

    def goes_on(self, run, work: Path) -> None:
        outcome = run("--resume=run")
        assert outcome.code == 0, outcome.err
        assert names(work / "run") == FILES


def folder_with_one_class(work: Path) -> str:
    for split in ("train", "test"):
        (work / "images" / split / "cats").mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(work / "images" / split / "cats" / "1.png")
    return "--dataset=images"


def npz_with(**changes: Any) -> Callable[[Path], str]:
    def make(work: Path) -> str:
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {
            "x_train": rng.random((20, 8, 8), np.float32),
            "y_train": np.arange(20) % 3,
            "x_test": rng.random((9, 8, 8), np.float32),
            "y_test": np.arange(9) % 3,
        }
        for name, change in changes.items():
            arrays[name] = change(arrays[name].copy())
        np.savez(work / "own.npz", **arrays)
        return "--dataset=own.npz"

    return make


def put(place: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


def a_file(work: Path) -> str:
    (work / "file").write_text("mine")
    return "--seed=0"


def a_run_folder(work: Path) -> str:
    (work / "taken").mkdir()
    (work / "taken" / "notes.txt").write_text("mine")
    return "--run_dir=taken"


Given = str | Callable[[Path], str]
BAD: dict[str, tuple[tuple[Given, ...], str]] = {
    "unknown data set": (("--dataset=cifra10",), "--dataset=cifra10: unknown, did you mean cifar10?"),
    "missing file": (("--dataset=own.npz",), "--dataset=own.npz: no such file or folder"),
    "unknown flag": (("--dataset=digits", "--learning_rate=4"), "--learning_rate=4"),
    "bad choice": (("--dataset=digits", "--optim=sgd"), "'sgd'"),
    "bad type": (("--dataset=digits", "--epochs=ten"), "'ten'"),
    "batch larger than N": (
        ("--dataset=digits", "--batch_size=1438"),
        "batch_size=1438: expected 1 to 1437, the number of training examples",
    ),
    "batch of nothing": (("--dataset=digits", "--batch_size=0"), "batch_size=0: expected a whole number ≥ 1"),
    "negative batch": (("--dataset=digits", "--batch_size=-4"), "batch_size=-4: expected a whole number ≥ 1"),
    "noise and target": (
        ("--dataset=digits", "--noise_multiplier=4", "--target_epsilon=2"),
        "noise_multiplier=4.0 and target_epsilon=2.0: each determines the other, give one of them",
    ),
    "statistics beyond the budget": (
        ("--dataset=digits", "--input_norm=BN", "--bn_noise_multiplier=0.3", "--target_epsilon=1"),
        "target_epsilon=1.0: what is spent beside training (statistics, validation) is already ε = 30.",
    ),
    "budget below one step": (
        ("--dataset=digits", "--noise_multiplier=1", "--max_epsilon=0.01"),
        "max_epsilon=0.01: one step already spends more (δ = 1e-05); raise max_epsilon or noise_multiplier",
    ),
    "no CUDA": ((*QUICK[:3], "--device=cuda"), "device=cuda: this machine shows 0 CUDA devices; use --device=cpu"),
    "no such device": ((*QUICK[:3], "--device=tpu"), "device='tpu': expected auto, cpu, cuda or cuda:N"),
    "run folder is taken": ((*QUICK, a_run_folder), "run_dir=taken: is there already and is left alone"),
    "run folder in a file": ((*QUICK, a_file, "--run_dir=file/run"), "run_dir=file/run: "),
    "features in a file": ((*QUICK, a_file, "--features_dir=file"), "features_dir=file: cannot be written"),
    "logs in a file": ((*QUICK, a_file, "--logdir=file"), "logdir=file: "),
    "logs of a run that does not begin": (("--dataset=nope", "--logdir=logs"), "--dataset=nope: unknown"),
    "NaN in an image": (
        (npz_with(x_train=put((3, 2, 1), math.nan)),),
        "own.npz: x_train has 1 values that are not in [0, 1] (NaN included), rescale them",
    ),
    "label out of range": (
        (npz_with(y_test=put((4,), 7)),),
        "own.npz: labels out of range: y_test has labels from 0 to 7, expected 0 to 2",
    ),
    "negative label": ((npz_with(y_train=put((4,), -1)),), "own.npz: labels out of range: y_train"),
    "one class": ((folder_with_one_class,), "holds 1 class folder(s), a classifier needs at least two"),
    "groups that do not divide": (
        (*QUICK, "--num_groups=7"),
        "num_groups=7: does not divide the 81 channels; choose one of 1, 3, 9, 27, 81",
    ),
    "groups without group norm": (
        (*QUICK, "--input_norm=BN", "--num_groups=3"),
        "num_groups=3: has no effect with input_norm=BN; leave it out or give --input_norm=GroupNorm",
    ),
    "noise for logistic regression": (
        ("--dataset=digits", "--optim=LR", "--noise_multiplier=4"),
        "noise_multiplier=4.0: has no effect with optim=LR, which is not private",
    ),
    "augmentation for logistic regression": (
        ("--dataset=digits", "--optim=LR", "--augment"),
        "augment",
    ),
    "momentum for Adam": ((*QUICK, "--optim=Adam", "--momentum=0.5"), "momentum=0.5"),
    "too much noise": (("--dataset=digits", "--epochs=1", "--noise_multiplier=1e300"), "noise_multiplier=1e+300"),
    "resume of nothing": (("--resume=nowhere",), "resume=nowhere: not a run folder (no config.json in it)"),
}


FRAMED = {"unknown flag", "bad choice", "bad type"}  # told by the parser of flags, with a hint at --help


def plain(message: str) -> str:
    """A message without frame and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]|-{3,}", " ", message).split())


class TestBadInput:
    @pytest.mark.parametrize("case", BAD)
    def test_one_sentence_exit_code_2_and_nothing_left_behind(self, run, work: Path, monkeypatch, case):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        given, expected = BAD[case]
        arguments = [argument if isinstance(argument, str) else argument(work) for argument in given]
        before = contents(work)
        outcome = run(*arguments)
        assert outcome.code == 2
        assert expected in plain(outcome.err)
        assert "Traceback" not in outcome.err
        if case not in FRAMED:
            assert re.fullmatch(r"error: [^\n]+\n", outcome.err)
        assert contents(work) == before

    def test_a_taken_run_folder_is_told_before_any_work(self, run, work: Path, monkeypatch):
        monkeypatch.setattr(experiment, "load_together", None)
        outcome = run(*QUICK, a_run_folder(work))
        assert outcome.code == 2
        assert outcome.out == ""

    def test_the_exit_code_is_returned(self, work: Path, capsys):
        assert baselines.main(["--batch_size=0"]) == 2
        assert capsys.readouterr().err == "error: batch_size=0: expected a whole number ≥ 1\n"

    def test_as_a_process(self, work: Path):
        arguments = folder_with_one_class(work)
        before = contents(work)
        outcome = finished(in_process(arguments, folder=work))
        assert outcome.code == 2
        assert re.fullmatch(r"error: [^\n]+ holds 1 class folder\(s\), a classifier needs at least two\n", outcome.err)
        assert outcome.out == ""
        assert contents(work) == before

    def test_large_delta_is_warned_about_and_used(self, run, work: Path):
        outcome = run(*QUICK, "--target_delta=0.01", "--run_dir=run")
        assert outcome.code == 0
        assert outcome.err == (
            "warning: δ = 0.01 is not below 1/N = 0.0007: it would allow publishing an example outright; "
            "give a smaller --target_delta\n"
        )
        assert read_json(work / "run" / "certificate.json")["delta"] == 0.01

    def test_bugs_keep_their_traceback(self, run, monkeypatch):
        def fails(*_, **__):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(experiment, "load_together", fails)
        with pytest.raises(ZeroDivisionError):
            run(*QUICK)


class TestFlags:
    def test_help(self, run):
        outcome = run("--help")
        assert outcome.code == 0
        assert "python -m scatterdp.baselines --dataset=digits" in outcome.out

    def test_run_folder_by_default(self, run, work: Path):
        for _ in range(2):
            outcome = run(*QUICK)
            assert (outcome.code, outcome.err) == (0, "")  # δ = 1e-5 is below 1/1437: no warning
        folders = list((work / "runs").iterdir())
        assert len(folders) == 2
        for folder in folders:
            assert re.fullmatch(r"digits-\d{8}-\d{6}-\d{6}", folder.name)
            assert names(folder) == FILES

    def test_seeds_repeat_runs_and_runs_without_seed_differ(self, run, work: Path):
        for name, seed in (("a", ["--seed=1"]), ("b", ["--seed=1"]), ("c", ["--seed=2"]), ("d", []), ("e", [])):
            assert run(*QUICK, *seed, f"--run_dir={name}").code == 0
        assert_same_model(work / "a", work / "b")
        weights = [load_file(work / name / "model.safetensors")["classifier.weight"] for name in "acde"]
        assert all(
            not torch.isclose(first, second).all() for i, first in enumerate(weights) for second in weights[i + 1 :]
        )
        sources = {name: read_json(work / name / "certificate.json")["noise_source"] for name in "ad"}
        assert sources["a"]["key"] == "derived from a seed that the user gave"
        assert sources["a"]["cryptographic"] is False
        assert sources["d"]["key"] == "256 bits from the operating system"
        assert sources["d"]["cryptographic"] is True

    @pytest.mark.parametrize("seed", [[], ["--seed=3"]])
    def test_the_key_is_in_no_file_that_is_left(self, run, work: Path, monkeypatch, seed):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        known = RandomKey.from_system()
        monkeypatch.setattr(RandomKey, "from_system", classmethod(lambda cls: known))
        keys, save = [known if not seed else RandomKey.from_seed(3)], Checkpoint.save

        def noted(checkpoint: Checkpoint, path: Path) -> None:
            keys.append(checkpoint.key)
            save(checkpoint, path)
            assert checkpoint.key.secret.hex().encode() in path.read_bytes()

        monkeypatch.setattr(Checkpoint, "save", noted)
        outcome = run(*QUICK, *seed, "--run_dir=run")
        assert outcome.code == 0
        assert len(keys) == 4
        everything = contents(work) | {"out": outcome.out.encode(), "err": outcome.err.encode()}
        for name, content in everything.items():
            for key in keys:
                assert content is None or key.secret.hex().encode() not in content, name
                assert content is None or key.secret not in content, name

    def test_max_epsilon_stops_as_late_as_it_may(self, run, work: Path):
        outcome = run("--dataset=digits", "--noise_multiplier=4", "--max_epsilon=1", "--run_dir=run", "--device=cpu")
        assert outcome.code == 0
        summary = read_json(work / "run" / "summary.json")
        assert summary["epsilon"] <= 1
        one_more = dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(512 / 1437, dp_accounting.GaussianDpEvent(4.0)), summary["steps"] + 1
        )
        assert epsilon_of(one_more, delta=1e-5) > 1
        assert read_rows(work / "run")[-1]["step"] == summary["steps"] < 60
        assert summary["noise_multiplier"] == 4

    def test_target_epsilon_is_met_by_the_asked_accountant(self, run, work: Path):
        outcome = run(
            "--dataset=digits", "--epochs=2", "--target_epsilon=1", "--accountant=rdp_classic", "--run_dir=run"
        )
        assert outcome.code == 0
        assert "(solved)" in outcome.out
        summary = read_json(work / "run" / "summary.json")
        assert summary["accountant"] == "rdp_classic"
        assert 0.99 < summary["epsilon"] <= 1
        assert summary["epsilon"] == summary["epsilon_by_accountant"]["rdp_classic"]

    def test_bn_is_in_model_ledger_and_epsilon(self, run, work: Path):
        assert run(*QUICK, "--input_norm=BN", "--bn_noise_multiplier=5", "--run_dir=run").code == 0
        certificate = read_json(work / "run" / "certificate.json")
        assert [entry["name"] for entry in certificate["ledger"]] == ["channel statistics", "training"]
        assert certificate["ledger"][0]["event"] == {
            "type": "SelfComposedDpEvent",
            "count": 2,
            "event": {"type": "GaussianDpEvent", "noise_multiplier": 5.0},
        }
        training = dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(512 / 1437, dp_accounting.GaussianDpEvent(4.0)), 4
        )
        assert certificate["epsilon"] > epsilon_of(training, delta=1e-5) + 0.1
        state = load_file(work / "run" / "model.safetensors")
        head = linear_head(Standardize(torch.zeros(81), torch.ones(81)), (81, 2, 2), 10)
        head.load_state_dict(state)
        assert (state["normalizer.scale"] > 0).all()

    def test_gn_is_short_for_group_norm(self, run, work: Path):
        for name, norm in (("long", "GroupNorm"), ("short", "GN")):
            assert run(*QUICK, f"--input_norm={norm}", "--seed=0", f"--run_dir={name}").code == 0
        assert_same_model(work / "long", work / "short")

    def test_full_batch_is_the_plain_gaussian_mechanism(self, run, work: Path):
        assert run(*QUICK, "--batch_size=1437", "--run_dir=run").code == 0
        certificate = read_json(work / "run" / "certificate.json")
        assert certificate["sampler"]["kind"] == "full"
        assert certificate["ledger"][0]["event"] == {
            "type": "SelfComposedDpEvent",
            "count": 2,
            "event": {"type": "GaussianDpEvent", "noise_multiplier": 4.0},
        }

    def test_shuffled_batches_claim_no_amplification(self, run, work: Path):
        assert run(*QUICK, "--sampling=shuffle", "--run_dir=run").code == 0
        text = (work / "run" / "certificate.json").read_text()
        assert "PoissonSampled" not in text
        certificate = json.loads(text)
        assert certificate["sampler"]["kind"] == "shuffle"
        assert "zero-out" in certificate["adjacency"]
        plain_gaussian = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(4.0), 2)
        assert certificate["epsilon"] == pytest.approx(epsilon_of(plain_gaussian, delta=1e-5), rel=1e-6)

    @pytest.mark.parametrize("optim", [["--optim=Adam", "--lr=0.05"], ["--nesterov"], ["--momentum=0"]])
    def test_optimizers(self, run, work: Path, optim):
        assert run(*QUICK, *optim, "--run_dir=run").code == 0
        assert read_json(work / "run" / "summary.json")["test_accuracy"] > 0.5

    def test_mini_batch_size_has_no_meaning(self, run, work: Path):
        """But for rounding; without noise, which is another one for another rounding."""
        for size in ("1437", "17"):
            outcome = run(
                "--dataset=digits",
                "--epochs=5",
                "--batch_size=1437",
                "--noise_multiplier=0",
                "--seed=0",
                f"--mini_batch_size={size}",
                f"--run_dir={size}",
            )
            assert outcome.code == 0
        first, second = (load_file(work / size / "model.safetensors") for size in ("1437", "17"))
        torch.testing.assert_close(first["classifier.weight"], second["classifier.weight"], rtol=1e-4, atol=1e-5)
        assert claims(work / "17") == claims(work / "1437")

    def test_the_line_says_what_had_no_noise(self, run):
        outcome = run(
            "--dataset=digits", "--epochs=1", "--noise_multiplier=2", "--input_norm=BN", "--bn_noise_multiplier=0"
        )
        assert outcome.code == 0
        assert "\nNOT PRIVATE (statistics without noise, bn_noise_multiplier=0): test accuracy 0." in outcome.out

    def test_without_noise_nothing_is_claimed(self, run, work: Path):
        outcome = run("--dataset=digits", "--epochs=2", "--noise_multiplier=0", "--run_dir=run")
        assert outcome.code == 0
        assert re.search(r"^NOT PRIVATE \(no noise\): test accuracy 0\.\d{4}$", outcome.out, re.MULTILINE)
        assert not re.search(r"ε = \d", outcome.out)
        certificate = read_json(work / "run" / "certificate.json")
        assert (certificate["private"], certificate["epsilon"]) == (False, None)
        assert {row["epsilon"] for row in read_rows(work / "run")} == {None}

    def test_logistic_regression_says_that_it_is_not_private(self, run, work: Path, own_images: Path):
        outcome = run(f"--dataset={own_images}", "--optim=LR", "--run_dir=run")
        assert outcome.code == 0
        assert "optim=LR: logistic regression, NOT PRIVATE" in outcome.out
        assert outcome.out.count("NOT PRIVATE: C = ") == 5
        assert not re.search(r"ε = \d", outcome.out)
        certificate, summary = (read_json(work / "run" / f"{name}.json") for name in ("certificate", "summary"))
        assert (certificate["private"], certificate["epsilon"]) == (False, None)
        assert (summary["private"], summary["epsilon"], summary["sample_rate"]) == (False, None, None)
        assert "everything" in certificate["not_private"]
        assert summary["test_accuracy"] > 0.8  # chance: 0.1
        assert names(work / "run") == FILES
        head = linear_head(group_normalizer(81, 27), (81, 2, 2), 10)
        head.load_state_dict(load_file(work / "run" / "model.safetensors"))

    def test_train_metrics_are_marked(self, run, work: Path):
        assert run(*QUICK, "--seed=0", "--run_dir=without").code == 0
        outcome = run(*QUICK, "--seed=0", "--train_metrics", "--run_dir=with")
        assert outcome.code == 0
        assert outcome.out.count("; NOT PRIVATE: train accuracy 0.") == 2
        marked = ["train_accuracy_not_private", "train_loss_not_private"]
        for row in read_rows(work / "with"):
            assert [name for name in row if "train" in name] == marked
            assert 0.3 < row["train_accuracy_not_private"] <= 1
            assert 0 < row["train_loss_not_private"] < 3
        assert read_json(work / "with" / "certificate.json")["not_private"][-2:] == marked
        assert "train" not in (work / "without" / "metrics.jsonl").read_text()
        assert not any("train" in n for n in read_json(work / "without" / "certificate.json")["not_private"])
        with_metrics, without = (load_file(work / name / "model.safetensors") for name in ("with", "without"))
        assert torch.equal(with_metrics["classifier.weight"], without["classifier.weight"])

    def test_tensorboard_reads_the_same_numbers_back(self, run, work: Path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        assert run(*QUICK, "--train_metrics", "--logdir=logs", "--run_dir=run").code == 0
        events = EventAccumulator("logs").Reload()
        rows = read_rows(work / "run")
        assert set(events.Tags()["scalars"]) == set(rows[0]) - {"epoch", "step"}
        for name in ("test_accuracy", "test_accuracy_ema", "epsilon", "train_loss_not_private"):
            scalars = events.Scalars(name)
            assert [scalar.step for scalar in scalars] == [row["step"] for row in rows]
            assert [scalar.value for scalar in scalars] == pytest.approx([row[name] for row in rows], rel=1e-6)

    def test_augmentation_is_a_function_of_the_seed(self, run, work: Path, own_images: Path):
        arguments = (f"--dataset={own_images}", "--batch_size=50", "--epochs=2", "--noise_multiplier=1", "--seed=0")
        for name, augment in (("a", ["--augment"]), ("b", ["--augment"]), ("c", [])):
            assert run(*arguments, *augment, f"--run_dir={name}").code == 0
        assert_same_model(work / "a", work / "b")
        with_it, without = (load_file(work / name / "model.safetensors")["classifier.weight"] for name in "ac")
        assert not torch.allclose(with_it, without, atol=1e-3)
        assert read_json(work / "a" / "certificate.json")["features"]["augmented"] is True
        assert read_json(work / "c" / "certificate.json")["features"]["augmented"] is False

    def test_augmentation_learns_the_digits(self, run, work: Path):
        """Little, since a crop by up to 4 of 8 pixels leaves little of a digit; chance is 0.1."""
        outcome = run(
            "--dataset=digits", "--augment", "--epochs=4", "--noise_multiplier=1", "--seed=0", "--run_dir=run"
        )
        assert outcome.code == 0
        assert read_json(work / "run" / "summary.json")["test_accuracy"] > 0.2

    def test_half_precision_is_close(self, run, work: Path, own_images: Path):
        for dtype in ("float32", "float16"):
            outcome = run(
                f"--dataset={own_images}",
                "--epochs=20",
                "--noise_multiplier=0",
                f"--feature_dtype={dtype}",
                f"--run_dir={dtype}",
            )
            assert outcome.code == 0
            assert read_json(work / dtype / "certificate.json")["features"]["dtype"] == dtype
        first, second = (load_file(work / d / "model.safetensors")["classifier.weight"] for d in ("float32", "float16"))
        assert (first - second).norm() < 0.02 * first.norm()
        accuracies = [read_json(work / dtype / "summary.json")["test_accuracy"] for dtype in ("float32", "float16")]
        assert abs(accuracies[0] - accuracies[1]) <= 2 / 60
        assert min(accuracies) > 0.6

    def test_own_images_are_named_by_a_commitment_and_get_the_generic_recipe(self, run, work: Path, own_images: Path):
        fingerprint = load_dataset(str(own_images)).fingerprint
        outcome = run(f"--dataset={own_images}", "--epochs=2", "--noise_multiplier=4", "--run_dir=run")
        assert outcome.code == 0
        certificate = read_json(work / "run" / "certificate.json")
        assert certificate["data"]["name"] == "own"
        assert certificate["assumptions"] == []
        assert re.fullmatch("[0-9a-f]{64}", certificate["data"]["commitment"])
        assert certificate["sampler"]["kind"] == "full"
        for name, content in contents(work / "run").items():
            assert content is None or fingerprint.encode() not in content, name

    def test_own_images_in_a_file_called_like_a_published_set_get_the_generic_recipe_too(
        self, run, work: Path, own_images: Path
    ):
        own_images.rename(work / "cifar10.npz")
        outcome = run("--dataset=cifar10.npz", "--epochs=2", "--noise_multiplier=4", "--run_dir=run")
        assert outcome.code == 0
        certificate = read_json(work / "run" / "certificate.json")
        assert [entry["name"] for entry in certificate["ledger"]] == ["training"]
        assert "fingerprint" not in certificate["data"]

    def test_a_folder_of_images(self, run, work: Path):
        digits = load_dataset("digits")
        for split, count in (("train", 60), ("test", 30)):
            x, y = digits.split(split)
            for i in range(count):
                path = work / "my digits" / split / f"class {y[i]}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(x[i]).save(path)
        outcome = run("--dataset=my digits", "--noise_multiplier=2", "--epochs=10", "--run_dir=run")
        assert outcome.code == 0
        assert "60 training and 30 test images" in outcome.out
        certificate = read_json(work / "run" / "certificate.json")
        assert certificate["data"]["classes"] == [f"class {i}" for i in range(10)]
        assert read_json(work / "run" / "summary.json")["test_accuracy"] > 0.3


def test_no_run_folder_before_there_are_features(run, work: Path, monkeypatch: pytest.MonkeyPatch):
    def stops(*_: Any) -> torch.Tensor:
        raise UserError("stop here")

    monkeypatch.setattr(ScatterNet, "__call__", stops)
    outcome = run(*QUICK, "--features_dir=new", "--run_dir=run")
    assert outcome.code == 2
    assert outcome.err.endswith("error: stop here\n")
    assert not (work / "run").exists()
    assert not list((work / "new").glob("*.h5"))
