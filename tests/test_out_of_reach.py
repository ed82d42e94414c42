"""The closed ways to data, by which extractors are shown to need none: a test that uses them can fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.datasets import load_digits

from scatterdp.datasets import load_dataset

FILE = Path("/etc/hostname")


@pytest.mark.parametrize(
    "reach",
    [
        lambda: FILE.open(),
        FILE.read_bytes,
        lambda: os.open(FILE, os.O_RDONLY),
        lambda: np.load(FILE),
        lambda: np.fromfile(FILE, np.uint8),
        lambda: np.memmap(FILE, np.uint8),
        lambda: h5py.File(FILE),
        load_digits,
        lambda: load_dataset("digits"),
    ],
)
def test_each_way_to_data_is_closed(reach: Callable[[], object], no_data_in_reach):
    with pytest.raises(pytest.fail.Exception):
        reach()
