"""``scatterdp certificate``: of a real run, of a changed one, of something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scatterdp import baselines
from scatterdp.commands.certificate import run
from scatterdp.exits import exit_code
from scatterdp.privacy.certificate import rounded_up


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A finished run on digits."""
    folder = tmp_path_factory.mktemp("certificate")
    flags = ["--dataset=digits", "--input_norm=BN", "--noise_multiplier=3", "--epochs=2", "--seed=1"]
    assert baselines.main([*flags, f"--run_dir={folder / 'run'}", f"--features_dir={folder / 'features'}"]) == 0
    return folder / "run"


def test_the_guarantee_in_words(run_folder, capsys):
    assert run([str(run_folder)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    certificate = json.loads((run_folder / "certificate.json").read_text())
    assert f"at δ = {certificate['delta']:g}: {rounded_up(certificate['epsilon'])} (pld)" in told
    for part in (
        "digits: 1437 examples of 10 classes, on scatternet features",
        "with ε = ",
        "add or remove one example",
        "leave --seed (random_state) out",
        "channel statistics: 2 times a sum with Gaussian noise of 8 × the most that one example can change it",
        "training: 4 times from each example with probability 0.356298, a sum with Gaussian noise of 3 ×",
        "exact: test_accuracy",
        "Someone with k examples",
        "Yes. ε computed again",
    ):
        assert part in told, part


def test_a_changed_file_does_not_pass(run_folder, tmp_path, capsys):
    certificate = json.loads((run_folder / "certificate.json").read_text())
    certificate["ledger"][1]["event"]["count"] -= 1
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(certificate))
    assert run([str(path)]) == 1
    told = capsys.readouterr().out
    assert "NO. Do not rely on it:" in told
    assert "it claims ε = " in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory); give the folder of a finished run"),
        ("{", "is no JSON"),
        ("[]", "has no ledger"),
        (b"\xff\xfe", "is no JSON"),
    ],
)
def test_something_else(tmp_path, capsys, content, message):
    path = tmp_path / "certificate.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert exit_code(lambda: run([str(path)])) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_not_finished(run_folder, tmp_path, capsys):
    shutil.copy(run_folder / "config.json", tmp_path)
    assert exit_code(lambda: run([str(tmp_path)])) == 2
    assert "this run is not finished" in capsys.readouterr().err
