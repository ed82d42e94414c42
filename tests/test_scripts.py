"""The benchmark that the README quotes still runs: its own engine and steps follow the project's contracts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_linear_benchmark_runs_on_a_small_problem():
    flags = ["--num_examples=64", "--batch_size=16", "--dimensions=20", "--repeats=1", "--threads=1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_linear_step.py"), *flags],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for side in ("same step, no clip, no noise", "read the rows once", "Opacus ghost, with its loader"):
        assert side in done.stdout
