"""Choosing a device."""

from __future__ import annotations

import re

import pytest
import torch

from scatterdp.errors import ConfigError
from scatterdp.training.device import processor_of, resolve_device


def show_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (1, "cuda"), (4, "cuda")])
def test_auto_is_cuda_where_there_is_one(monkeypatch, count, expected):
    show_devices(monkeypatch, count)
    assert resolve_device("auto") == torch.device(expected)


def test_cpu_is_cpu_even_beside_cuda(monkeypatch):
    show_devices(monkeypatch, 1)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:2"])
def test_cuda_devices_that_are_there(monkeypatch, name):
    show_devices(monkeypatch, 3)
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_cuda_devices_that_are_not_there(monkeypatch, name, count):
    show_devices(monkeypatch, count)
    message = f"device={name}: this machine shows {count} CUDA devices; use --device=cpu"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:x", "cuda:-1", "meta", "mps", "xla"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match=rf"^device={re.escape(repr(name))}: expected auto, cpu, cuda or cuda:N$"):
        resolve_device(name)


def test_what_is_computed_on(monkeypatch):
    cpu = processor_of("cpu")
    assert cpu.endswith(f" ({torch.backends.cpu.get_cpu_capability()})")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert processor_of("cuda:1") == f"card 1, {cpu}"
