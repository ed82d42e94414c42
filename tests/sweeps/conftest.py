"""Outlines on the digits, short enough for tests, and sweeps as processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from scatterdp.sweeps.cluster import Workers
from scatterdp.sweeps.sweep import Places, Sweep

QUICK = """
command = "baselines"
[config]
dataset = "digits"
extractor = "pixels"
input_norm = "none"
epochs = 1
batch_size = 700
[grid]
noise_multiplier = [3, 4]
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(features_dir=tmp_path / "features", device="cpu")


@pytest.fixture
def make_sweep(places: Places, accounting_once, monkeypatch) -> Callable[..., Sweep]:
    """Sweeps of quick runs, without their pictures."""
    monkeypatch.setattr("scatterdp.experiment.plot_accuracy_and_epsilon", lambda *arguments, **named: None)

    def make(text: str = QUICK, **arguments: Any) -> Sweep:
        return Sweep(text, name="quick", places=places, **arguments)

    return make


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """One worker in this process."""
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as found:
        yield found


class InProcess:
    """Workers of this process, as a context manager that may be entered again."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __enter__(self) -> Workers:
        return Workers(client=self.client, threads=1, resources={})

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def workers(client: Client) -> InProcess:
    return InProcess(client)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``python -m scatterdp sweep`` with arguments; what is left of it is ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "scatterdp",
            "sweep",
            *arguments,
            f"--features_dir={tmp_path / 'features'}",
            "--device=cpu",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=60)
