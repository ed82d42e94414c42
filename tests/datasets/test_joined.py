"""Images behind images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.joined import JoinedImages, with_more_images
from scatterdp.errors import DatasetError

PARTS = [
    np.arange(start, start + count * 4, dtype=np.uint8).reshape(count, 2, 2)
    for start, count in ((0, 5), (50, 1), (90, 7))
]
WHOLE = np.concatenate(PARTS)


@pytest.mark.parametrize("length", [None, 4, 5, 6, 9])
def test_slices_and_row_numbers_are_those_of_the_whole(length):
    joined, whole = JoinedImages(PARTS, length=length), WHOLE[:length]
    assert (len(joined), joined.shape, joined.ndim, joined.dtype) == (len(whole), whole.shape, 3, np.uint8)
    for start in range(len(whole) + 1):
        for stop in range(len(whole) + 2):
            assert np.array_equal(joined[start:stop], whole[start:stop])
    assert np.array_equal(joined[-3:], whole[-3:])
    rng = np.random.default_rng(0)
    for count in (0, 1, 20):
        rows = rng.integers(0, len(whole), count)
        assert np.array_equal(joined[rows], whole[rows])
    assert np.array_equal(np.asarray(joined), whole)
    assert np.array_equal(np.stack(list(joined)), whole)
    with pytest.raises(IndexError, match=f"expected 0 to {len(whole) - 1}"):
        joined[np.array([len(whole)])]
    with pytest.raises(ValueError, match="only slices without step"):
        joined[::2]


def test_a_joined_data_set_is_the_one_that_would_be_copied(small_dataset: Dataset):
    more, labels = small_dataset.x_train[::-1][:25], small_dataset.y_train[::-1][:25]
    joined = with_more_images(small_dataset, more, labels, count=20)
    copied = dataclasses.replace(
        small_dataset,
        x_train=np.concatenate([small_dataset.x_train, more[:20]]),
        y_train=np.concatenate([small_dataset.y_train, labels[:20]]),
    )
    assert joined.name == "small+20"
    assert joined.fingerprint == copied.fingerprint != small_dataset.fingerprint
    assert np.array_equal(joined.y_train, copied.y_train)
    assert not joined.public
    with pytest.raises(DatasetError, match="labels of the train split range from 0 to 3"):
        with_more_images(small_dataset, more, labels + 1)
