"""The scripts that figures are quoted from still run: what they measure follows the project's contracts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def run(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / script), *flags]
    here = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=here)


def test_the_linear_benchmark_runs_on_a_small_problem():
    flags = ["--num_examples=64", "--batch_size=16", "--dimensions=20", "--repeats=1", "--threads=1"]
    done = run("bench_linear_step.py", *flags)
    assert done.returncode == 0, done.stderr
    for side in ("same step, no clip, no noise", "read the rows once", "Opacus ghost, with its loader"):
        assert side in done.stdout


def test_the_mnist_example_tells_bad_input_in_a_sentence():
    for flag, message in (
        ("--epochs=0", "epochs=0: expected an integer ≥ 1"),
        ("--batch_size=0", "batch_size=0: expected an integer ≥ 8"),
        ("--lr=nan", "lr=nan: expected a number > 0 and ≤ 1e+20"),
        ("--lr=1e300", "lr=1e+300: expected a number > 0 and ≤ 1e+20"),
        ("--dataset=digits", "dataset=digits: images of 1×8×8, this network takes grey ones of 28×28"),
        ("--dataset=nope", "--dataset=nope: unknown"),
    ):
        done = run("mnist_example.py", flag)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {message}")
        assert "Traceback" not in done.stderr


def test_the_mnist_example_plain_and_private(tmp_path):
    """Bars, lying and standing, are told apart either way."""
    generator, places = np.random.default_rng(0), np.arange(400) % 24
    images, labels = generator.integers(0, 40, (400, 28, 28)).astype(np.uint8), np.arange(400) % 2
    for image, place, label in zip(images, places, labels, strict=True):
        bar = image if label else image.T
        bar[place : place + 4] = 255
    np.savez(tmp_path / "bars.npz", x_train=images, y_train=labels, x_test=images[:100], y_test=labels[:100])
    flags = [f"--dataset={tmp_path / 'bars.npz'}", "--epochs=15", "--batch_size=100"]
    plain, private = run("mnist_example.py", *flags), run("mnist_example.py", *flags, "--dp", "--target_epsilon=8")
    for done in (plain, private):
        assert done.returncode == 0, done.stderr
        found = re.search(r"^test accuracy (\d\.\d{4}) after \d+\.\d s$", done.stdout, re.MULTILINE)
        assert found is not None
        assert float(found[1]) > 0.8
    assert "differentially private" not in plain.stdout
    assert private.stdout.startswith("(ε = 8, δ = 1e-05)-differentially private\n")
    for flag, message in (("--batch_size=401", "batch_size=401: expected at most the 400"),
                          ("--target_epsilon=-3", "target_epsilon=-3.0: expected a number > 0 and ≤ 1e+20")):  # fmt: skip
        done = run("mnist_example.py", *flags, flag)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {message}")


def test_the_scaling_study_on_few_rows(tmp_path):
    """Every kind of point, by processes of their own; the made-up features are gone afterwards, what was there before is not."""
    own = tmp_path / "features" / "made-up-by-someone.h5"
    own.parent.mkdir()
    own.write_bytes(b"theirs")
    flags = ["--rows", "9000", "--dimensions", "64", "--processes", "1", "2"]
    where = [f"--folder={own.parent}", f"--out={tmp_path / 'out'}"]
    done = run("scaling_study.py", *flags, *where)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    shapes = {(row["dimensions"], row["streamed"], row["processes"]) for row in found}
    assert shapes == {(64, streamed, processes) for streamed in (True, False) for processes in (1, 2)}
    for row in found:
        assert row["seconds_step"] > row["seconds_draw"] > 0
        assert row["peak_memory"] > 1e8
    assert len({row["epsilon"] for row in found}) == 1  # of rows, batches and steps alone
    table = (tmp_path / "out" / "scaling.md").read_text()
    assert "| 9,000 | 64 |" in table
    assert "| 1,000,000,000 | 8.2e-06 |" in table
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 10_000
    assert own.read_bytes() == b"theirs"
    assert [path for path in own.parent.glob("made-up-*") if path != own] == []
    again = run("scaling_study.py", *flags, *where)
    assert again.returncode == 2
    assert "holds files already and is left alone" in again.stderr
