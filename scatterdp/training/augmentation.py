"""Random horizontal flip and crop of images, one example at a time."""

from __future__ import annotations

import numpy as np

PADDING = 4


def random_flip_and_crop(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Flip each image with probability ½, pad by 4 black pixels and cut the original size out at a random place.

    Args:
        images: ``(B, C, H, W)`` float.
        generator: three draws an image.

    Returns:
        A new array of the same shape and dtype.
    """
    _, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    result = np.empty_like(images)
    for i, image in enumerate(padded):
        flip = generator.random() < 0.5
        top, left = generator.integers(0, 2 * PADDING + 1, size=2)
        window = image[:, top : top + height, left : left + width]
        result[i] = window[:, :, ::-1] if flip else window
    return result
