"""Images and code of a person's own, and a way to run the commands as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

MINE = """
import torch
from torch import nn


def features():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


def raises():
    raise KeyError("no such thing")


def number():
    return 3


constant = 4
"""


@pytest.fixture
def mine(tmp_path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


@pytest.fixture
def own_images(tmp_path) -> Path:
    """240 + 60 colour images of 20×20: bright above, bright below, bright at the left."""
    rng, labels = np.random.default_rng(0), np.arange(300) % 3
    x = rng.integers(0, 150, (300, 20, 20, 3), dtype=np.uint8)
    x[labels == 0, :10] += 80
    x[labels == 1, 10:] += 80
    x[labels == 2, :, :10] += 80
    np.savez(tmp_path / "own.npz", x_train=x[:240], y_train=labels[:240], x_test=x[240:], y_test=labels[240:])
    return tmp_path / "own.npz"


@pytest.fixture
def run_module() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``python -m MODULE ARGUMENTS`` from the repository."""

    def run(module: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=cwd,
            env=environment,
        )

    return run
