from __future__ import annotations

import re

import numpy as np
import pytest

from scatterdp.datasets.published import PUBLISHED
from scatterdp.errors import DatasetError


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_array_has_a_sha256(name: str) -> None:
    published = PUBLISHED[name]
    assert published.digests.keys() == published.shapes.keys()
    assert len(set(published.digests.values())) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in published.digests.values())
    assert len(published.class_names) == 10


def test_verified_arrays_become_a_public_dataset(tiny) -> None:
    made = tiny("cifar10")
    dataset = made.published.to_dataset(made.arrays)
    assert dataset.public
    assert dataset.y_train.dtype == np.int64
    assert dataset.image_shape == (3, 32, 32)


@pytest.mark.parametrize("array_name", ["x_train", "y_train", "x_test", "y_test"])
def test_one_changed_value_is_refused(tiny, array_name: str) -> None:
    made = tiny("mnist")
    array = made.arrays[array_name].copy()
    array.flat[-1] ^= 1
    with pytest.raises(DatasetError, match=f"{array_name} is not that of mnist: its SHA-256 is .*, expected "):
        made.published.verify(made.arrays | {array_name: array})


def test_the_shape_counts_although_the_digest_does_not_see_it(tiny) -> None:
    made = tiny("mnist")
    with pytest.raises(DatasetError, match=r"x_train is uint8 of shape \(6, 7, 5\), mnist has uint8 \(6, 5, 7\)"):
        made.published.verify(made.arrays | {"x_train": made.arrays["x_train"].reshape(6, 7, 5)})


def test_a_missing_array(tiny) -> None:
    made = tiny("mnist")
    del made.arrays["y_test"]
    with pytest.raises(DatasetError, match="y_test is missing"):
        made.published.verify(made.arrays)
