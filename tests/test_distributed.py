"""The commands under ``torchrun``: one run folder, one certificate, one sentence; kills, and going on after them."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import FILES, assert_same_weights, claims, interrupted_in_epoch, names, read_json
from safetensors.torch import load_file

import scatterdp
from scatterdp import __main__, baselines
from scatterdp.privacy.checking import check_certificate
from scatterdp.training import fit as fit_module
from scatterdp.training.checkpoint import Checkpoint

LIMIT = 120.0
ARGUMENTS = [
    "--dataset=digits",
    "--epochs=60",
    "--batch_size=256",
    "--noise_multiplier=6",
    "--input_norm=BN",
    "--bn_noise_multiplier=8",
    "--seed=5",
    "--device=cpu",
]
Started = subprocess.Popen[str]


def ended(launcher: Started) -> tuple[int, str]:
    out, _ = launcher.communicate(timeout=LIMIT)
    return launcher.returncode, out


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_killed_process_ends_the_run_and_resume_ends_as_if_nothing_had_happened(
    torchrun: Callable[..., Started],
    worker_of: Callable[[Started, int], int],
    work: Path,
    digits_features_dir: Path,
    accounting_once: None,
    capsys: pytest.CaptureFixture[str],
):
    arguments = [*ARGUMENTS, f"--features_dir={digits_features_dir}"]
    launcher = torchrun(2, "scatterdp.baselines", *arguments, "--run_dir=killed", cwd=work)
    rows, begin = work / "killed" / "metrics.jsonl", time.monotonic()
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 3):
        assert launcher.poll() is None, ended(launcher)
        assert time.monotonic() - begin < LIMIT
        time.sleep(0.005)
    os.kill(worker_of(launcher, 1), signal.SIGKILL)
    code, out = ended(launcher)
    assert code != 0
    told = [line for line in out.splitlines() if "--resume=killed" in line and "traceback" not in line]
    assert len(told) == 1, out
    assert told[0].endswith("go on with torchrun --nproc_per_node=2 -m scatterdp.baselines --resume=killed")
    assert names(work / "killed") - {"checkpoint.pt.tmp"} == {"checkpoint.pt", "config.json", "metrics.jsonl"}
    checkpoint = Checkpoint.load(work / "killed" / "checkpoint.pt")
    assert checkpoint.history == ((0, 2),)
    shown = rows.read_text().splitlines()
    assert 3 <= len(shown) < 60

    if len(shown) > len(checkpoint.metrics):  # it is saved every five seconds, and these take less
        assert baselines.main(["--resume=killed"]) == 2
        assert f"2 processes has shown epoch {len(shown)} and" in capsys.readouterr().err
        assert rows.read_text().splitlines() == shown

    code, out = ended(torchrun(2, "scatterdp.baselines", "--resume=killed", cwd=work))
    assert code == 0, out
    assert out.count("run folder: killed") == 1
    assert names(work / "killed") == FILES

    code, out = ended(torchrun(2, "scatterdp.baselines", *arguments, "--run_dir=whole", cwd=work))
    assert code == 0, out
    assert out.count("epoch 60:") == out.count("features: ") == 1
    assert names(work / "whole") == FILES
    assert_same_weights(work / "killed", work / "whole")
    assert claims(work / "killed") == claims(work / "whole")

    certificate = read_json(work / "whole" / "certificate.json")
    assert check_certificate(certificate).disagreements == []
    assert certificate["computation"]["processes"] == [{"number": 2, "from_step": 0}]
    assert baselines.main([*arguments, "--run_dir=alone"]) == 0
    alone = claims(work / "alone")
    for name in ("epsilon", "epsilon_by_accountant", "ledger", "sampler", "statement"):
        assert certificate[name] == alone[name]
    for key in ("normalizer.mean", "normalizer.scale"):  # one release, whoever adds it up
        assert torch.equal(*(load_file(work / run / "model.safetensors")[key] for run in ("whole", "alone")))


class TestAnotherNumberOfProcesses:
    @pytest.fixture
    def left_by_two(
        self, work: Path, digits_features_dir: Path, monkeypatch: pytest.MonkeyPatch, accounting_once: None
    ) -> Path:
        """A run that was stopped in its third epoch, as if two processes had computed it."""
        with monkeypatch.context() as patch:
            patch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
            arguments = ["--dataset=digits", "--epochs=5", "--noise_multiplier=4", "--run_dir=run"]
            with interrupted_in_epoch(3):
                assert baselines.main([*arguments, f"--features_dir={digits_features_dir}"]) == 130
        checkpoint = Checkpoint.load(work / "run" / "checkpoint.pt")
        dataclasses.replace(checkpoint, history=((0, 2),)).save(work / "run" / "checkpoint.pt")
        return work / "run"

    def test_goes_on_where_nothing_was_shown_since(self, left_by_two: Path):
        assert baselines.main(["--resume=run"]) == 0
        certificate = read_json(left_by_two / "certificate.json")
        assert certificate["computation"]["processes"] == [
            {"number": 2, "from_step": 0},
            {"number": 1, "from_step": 2 * (1437 // read_json(left_by_two / "summary.json")["plan"]["batch_size"])},
        ]

    def test_is_refused_where_an_epoch_was_shown(self, left_by_two: Path, capsys: pytest.CaptureFixture[str]):
        shown = left_by_two / "metrics.jsonl"
        with shown.open("a") as file:
            file.write('{"epoch": 3}\n')
        before = shown.read_bytes()
        for _ in range(2):
            assert baselines.main(["--resume=run"]) == 2
            assert capsys.readouterr().err.splitlines()[-1] == (
                "error: resume: a run of 2 processes has shown epoch 3 and its last checkpoint is of epoch 2; 1 processes would do what is "
                "between them a second time with other noise, go on with 2"
            )
            assert shown.read_bytes() == before

    def test_is_refused_when_the_epoch_is_forgotten(self, left_by_two: Path):
        """A run that goes on forgets the rows beyond its checkpoint, and may be killed before it is there again."""
        with (left_by_two / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 3}\n')
        assert baselines.main(["--resume=run"]) == 2  # notes it
        (left_by_two / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
        assert baselines.main(["--resume=run"]) == 2


def test_a_wrong_flag_is_told_once(torchrun: Callable[..., Started], work: Path):
    code, out = ended(torchrun(2, "scatterdp.baselines", "--lr=much", cwd=work))
    assert code != 0
    assert out.count("Error parsing --lr") == 1
    assert "exitcode  : 2 " in out
    assert list(work.iterdir()) == []


def test_a_full_disk_is_told_once(torchrun: Callable[..., Started], work: Path, digits_features_dir: Path):
    flags = [
        "--dataset=digits",
        "--epochs=1",
        "--noise_multiplier=4",
        f"--features_dir={digits_features_dir}",
        "--run_dir=run",
    ]
    code, out = ended(
        torchrun(
            2,
            "scatterdp.baselines",
            *flags,
            cwd=work,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000)),
        )
    )
    assert code != 0
    sentence = (
        "error: run_dir=run: cannot be written (File too large); make room, and go on with torchrun --nproc_per_node=2 -m "
        "scatterdp.baselines --resume=run"
    )
    assert [line for line in out.splitlines() if line.startswith("error:")] == [sentence]
    assert "exitcode  : 2 " in out
    assert f"traceback : {sentence}" in out  # in torchrun's own report
    assert names(work / "run") == {"config.json", "metrics.jsonl"}


def test_what_one_process_does_is_refused_once(torchrun: Callable[..., Started], work: Path):
    code, out = ended(torchrun(2, "scatterdp.baselines", "--dataset=digits", "--optim=LR", cwd=work))
    assert code != 0
    sentence = "error: optim=LR: runs in one process, and 2 were started; start it without torchrun"
    assert [line for line in out.splitlines() if line.startswith("error:")] == [sentence]
    assert f"traceback : {sentence}" in out  # in torchrun's own report
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("command", sorted(__main__.COMMANDS.keys() - set(__main__.SHARED)))
def test_other_commands_are_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Path
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("scatterdp.exits._first_to_end", lambda code: None)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["scatterdp", command, "--no_such_flag"])
    try:
        assert __main__.main() == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == (
        f"error: command {command}: runs in one process, and 2 were started; start it without torchrun\n"
    )


def test_fit(torchrun: Callable[..., Started], work: Path):
    digits = scatterdp.load_dataset("digits")
    for split, (x, y) in (("train", (digits.x_train, digits.y_train)), ("test", (digits.x_test, digits.y_test))):
        np.save(work / f"{split}.npy", x.reshape(len(x), -1))
        np.save(work / f"{split}_labels.npy", y)
    arguments = [
        "--features=train.npy",
        "--labels=train_labels.npy",
        "--test_features=test.npy",
        "--test_labels=test_labels.npy",
    ]
    code, out = ended(torchrun(2, "scatterdp", "fit", *arguments, "--head=least_squares", "--run_dir=run", cwd=work))
    assert code == 0, out
    assert out.count("test accuracy") == out.count("run folder: run") == out.count("1437 rows") == 1
    assert read_json(work / "run" / "summary.json")["test_accuracy"] > 0.8
    certificate = read_json(work / "run" / "certificate.json")
    assert check_certificate(certificate).disagreements == []
    assert certificate["epsilon"] <= 3
    assert certificate["computation"]["processes"] == [{"number": 2, "from_step": 0}]
    assert names(work) == {"run", *(f"{split}{what}.npy" for split in ("train", "test") for what in ("", "_labels"))}
