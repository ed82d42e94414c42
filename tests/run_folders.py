"""What several tests of commands read of run folders, and how they interrupt a run."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scatterdp.records import RunFolder

#: What a finished run leaves.
FILES = {
    "accuracy_epsilon.png",
    "certificate.json",
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "model_ema.safetensors",
    "summary.json",
    "test_predictions.npz",
}


def read_json(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def claims(folder: Path) -> dict[str, Any]:
    """The certificate but for the commitment to private data, which has a fresh nonce each time."""
    certificate = read_json(folder / "certificate.json")
    data = {name: value for name, value in certificate["data"].items() if not name.startswith("commitment")}
    return certificate | {"data": data}


def assert_same_weights(a: Path, b: Path) -> None:
    """Bit for bit."""
    for name in ("model.safetensors", "model_ema.safetensors"):
        first, second = load_file(a / name), load_file(b / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system lets this process write no file of more bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def disk_full_at(name: str) -> Iterator[None]:
    """The disk is full when a run writes this file."""
    write = RunFolder.write

    def full(folder: RunFolder, written: str, content: str | bytes) -> None:
        with files_of_at_most(100) if written == name else nullcontext():
            write(folder, written, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write", full)
        yield


@contextmanager
def interrupted_in_epoch(number: int) -> Iterator[None]:
    """Ctrl-C before the metrics of an epoch are written."""
    append = RunFolder.append_metrics

    def interrupts(folder: RunFolder, row: dict[str, Any]) -> None:
        if row["epoch"] == number:
            raise KeyboardInterrupt
        append(folder, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", interrupts)
        yield
