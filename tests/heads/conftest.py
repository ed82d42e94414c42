"""Small networks of the large ones' layout."""

from __future__ import annotations

import pytest

from scatterdp.heads import resnet_v2


@pytest.fixture
def small_resnets(monkeypatch):
    """``resnet18`` with one block of 32 or 64 channels in a group."""
    monkeypatch.setitem(resnet_v2.RESNETS_V2, "resnet18", ((1, 1, 1, 1), (32, 32, 64, 64), (1, 2, 2, 1), False))
    monkeypatch.setattr(resnet_v2, "_STEM_CHANNELS", 32)
