"""Flip and crop: every output is one of the 2·81 windows of its own image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from scatterdp.training.augmentation import flip_and_crop

ALMOST_ONE = np.nextafter(1, 0)


def windows(image: np.ndarray) -> dict[bytes, tuple[bool, int, int]]:
    """The 162 windows of ``(C, H, W)``: their bytes → (flipped, top, left)."""
    _, height, width = image.shape
    padded = np.zeros((image.shape[0], height + 8, width + 8), image.dtype)
    padded[:, 4:-4, 4:-4] = image
    found = {}
    for top in range(9):
        for left in range(9):
            window = padded[:, top : top + height, left : left + width]
            found[window.tobytes()] = (False, top, left)
            found[window[:, :, ::-1].tobytes()] = (True, top, left)
    return found


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12), (3, 5, 4)])
def test_outputs_are_windows_of_their_own_image(shape):
    rng = np.random.default_rng(0)
    images = rng.random((40, *shape), np.float32)
    before = images.copy()
    outputs = flip_and_crop(images, rng.random((40, 3)))
    assert outputs.shape == images.shape
    assert outputs.dtype == np.float32
    assert np.array_equal(images, before)
    assert not np.shares_memory(outputs, images)
    for image, output in zip(images, outputs, strict=True):
        assert output.tobytes() in windows(image)


def test_all_162_windows_are_equally_likely():
    rng = np.random.default_rng(0)
    image = rng.random((1, 10, 10), np.float32)
    names = windows(image)
    assert len(set(names.values())) == 162
    outputs = flip_and_crop(np.repeat(image[None], 16_200, axis=0), rng.random((16_200, 3)))
    counts = dict.fromkeys(names.values(), 0)
    for output in outputs:
        counts[names[output.tobytes()]] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-4


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        ((0.0, 0.0, 0.0), (True, 0, 0)),
        ((0.4999, 0.5, 0.5), (True, 4, 4)),
        ((0.5, 0.5, 0.5), (False, 4, 4)),
        ((0.9, ALMOST_ONE, ALMOST_ONE), (False, 8, 8)),
        ((0.9, 1 / 9 + 1e-9, 0.0), (False, 1, 0)),
        ((0.9, 0.0, 1 / 9 - 1e-9), (False, 0, 0)),
    ],
)
def test_each_draw_has_its_meaning(draws, expected):
    image = np.random.default_rng(1).random((2, 10, 12), np.float32)
    output = flip_and_crop(image[None], np.array([draws]))[0]
    assert windows(image)[output.tobytes()] == expected


def test_an_image_depends_on_its_own_draws_alone():
    rng = np.random.default_rng(0)
    images, draws = rng.random((10, 1, 8, 8), np.float32), rng.random((10, 3))
    together = flip_and_crop(images, draws)
    assert np.array_equal(flip_and_crop(images, draws), together)
    for i in range(10):
        assert np.array_equal(flip_and_crop(images[[i]], draws[[i]])[0], together[i])


def test_what_comes_from_outside_is_black():
    outputs = flip_and_crop(np.ones((200, 1, 4, 4), np.float32), np.random.default_rng(0).random((200, 3)))
    assert set(np.unique(outputs)) == {0.0, 1.0}
    assert (outputs.reshape(200, -1).sum(1) == 0).any()  # shifted by 4: nothing of a 4×4 image is left


def test_no_images():
    assert flip_and_crop(np.zeros((0, 3, 8, 8), np.float32), np.zeros((0, 3))).shape == (0, 3, 8, 8)


def test_one_triple_an_image():
    with pytest.raises(ValueError, match="zip"):
        flip_and_crop(np.zeros((3, 1, 8, 8), np.float32), np.zeros((2, 3)))
