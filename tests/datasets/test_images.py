from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scatterdp.datasets.images import to_channels_first_float


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=6)))
def test_grey_images_gain_one_channel(images: np.ndarray) -> None:
    result = to_channels_first_float(images)
    assert result.dtype == np.float32
    assert result.shape == (images.shape[0], 1, *images.shape[1:])
    np.testing.assert_array_equal(np.rint(result[:, 0] * 255), images)


@given(
    st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5)).flatmap(
        lambda shape: hnp.arrays(np.uint8, (*shape, 3))
    )
)
def test_rgb_channels_move_to_the_front(images: np.ndarray) -> None:
    result = to_channels_first_float(images)
    assert result.shape == (len(images), 3, *images.shape[1:3])
    assert result.flags.c_contiguous
    for channel in range(3):
        np.testing.assert_array_equal(np.rint(result[:, channel] * 255), images[..., channel])


def test_end_points_are_exact() -> None:
    result = to_channels_first_float(np.array([[[0, 255]]], dtype=np.uint8))
    assert result.tolist() == [[[[0.0, 1.0]]]]


@pytest.mark.parametrize(
    "images", [np.zeros((2, 4, 4)), np.zeros((4, 4), dtype=np.uint8), np.zeros((2, 4, 4, 1), dtype=np.uint8)]
)
def test_other_dtypes_and_shapes_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(B, H, W\) or \(B, H, W, 3\)"):
        to_channels_first_float(images)
