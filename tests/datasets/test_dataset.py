from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from scatterdp.datasets import Dataset
from scatterdp.datasets.dataset import array_digest
from scatterdp.errors import DatasetError


def make(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "name": "made",
        "x_train": np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
        "y_train": np.array([0, 1, 0, 1]),
        "x_test": np.zeros((1, 2, 3), dtype=np.uint8),
        "y_test": np.array([1]),
        "class_names": ("a", "b"),
    }
    return Dataset(**(fields | changes))


def test_shape_and_digest() -> None:
    dataset = make()
    assert dataset.image_shape == (1, 2, 3)
    assert dataset.num_classes == 2
    assert dataset.digests["x_train"] == hashlib.sha256(bytes(range(24))).hexdigest()
    assert array_digest(dataset.x_train.transpose(0, 2, 1)) != dataset.digests["x_train"]


def test_fingerprint_depends_on_values_shapes_and_names() -> None:
    fingerprints = {
        make().fingerprint,
        make(x_train=np.arange(24, dtype=np.uint8).reshape(4, 3, 2), x_test=np.zeros((1, 3, 2), np.uint8)).fingerprint,
        make(y_train=np.array([0, 1, 1, 1])).fingerprint,
        make(class_names=("a", "c")).fingerprint,
    }
    assert len(fingerprints) == 4
    assert make(name="other").fingerprint == make().fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a",)}, "found 1 class"),
        ({"x_train": np.zeros((4, 2, 3))}, "x_train is float64"),
        ({"y_train": np.array([0, 1, 0])}, r"y_train is int64 of shape \(3,\)"),
        ({"y_train": np.array([0, 1, 0, 2])}, "labels of the train split range from 0 to 2, expected 0 to 1"),
        ({"y_test": np.array([-1])}, "labels of the test split range from -1"),
        ({"x_test": np.zeros((0, 2, 3), np.uint8), "y_test": np.zeros(0, np.int64)}, "test split is empty"),
        ({"x_test": np.zeros((1, 3, 3), np.uint8)}, r"train images are \(2, 3\) but test images are \(3, 3\)"),
    ],
)
def test_arrays_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        make(**changes)
