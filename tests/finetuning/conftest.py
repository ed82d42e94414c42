"""Made-up images and small networks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from scatterdp.heads import resnet_v2


@pytest.fixture(scope="session")
def shapes() -> ModuleType:
    """The module ``shapes.py`` of this folder."""
    path = Path(__file__).with_name("shapes.py")
    spec = importlib.util.spec_from_file_location("shapes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def public(shapes, tmp_path_factory) -> Path:
    """Four classes of 40 training and 10 test images."""
    return shapes.write_folder(tmp_path_factory.mktemp("data") / "public", shapes.PUBLIC, train=40, test=10)


@pytest.fixture(scope="session")
def private(shapes, tmp_path_factory) -> Path:
    """Three classes of 60 training and 10 test images."""
    return shapes.write_folder(tmp_path_factory.mktemp("data") / "private", shapes.PRIVATE, train=60, test=10, seed=1)


@pytest.fixture
def small_resnets(monkeypatch):
    """``resnet18`` with one block of 32 or 64 channels in a group: the same eleven layers, a second a run."""
    monkeypatch.setitem(resnet_v2.RESNETS_V2, "resnet18", ((1, 1, 1, 1), (32, 32, 64, 64), (1, 2, 2, 1), False))
    monkeypatch.setattr(resnet_v2, "_STEM_CHANNELS", 32)
