"""Random horizontal flip and crop of images, one example at a time."""

from __future__ import annotations

import numpy as np

PADDING = 4


def flip_and_crop(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Flip each image with probability ½, pad by 4 black pixels and cut the original size out at a random place.

    Args:
        images: ``(B, C, H, W)`` float.
        draws: ``(B, 3)`` uniform in [0, 1): flip, row and column of each image.

    Returns:
        A new array of the same shape and dtype.
    """
    _, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    corners = (draws[:, 1:] * (2 * PADDING + 1)).astype(int)
    result = np.empty_like(images)
    for i, (image, flip, (top, left)) in enumerate(zip(padded, draws[:, 0] < 0.5, corners, strict=True)):
        window = image[:, top : top + height, left : left + width]
        result[i] = window[:, :, ::-1] if flip else window
    return result
