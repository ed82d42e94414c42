"""Stored images: what an array of them has to offer, and how extractors read them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Images(Protocol):
    """Images ``(N, H, W)`` or ``(N, H, W, 3)`` uint8: a NumPy array, a memory map, or something that reads rows when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


def to_channels_first_float(images: np.ndarray) -> np.ndarray:
    """Convert images to float32 in [0, 1], channels first.

    Args:
        images: ``(B, H, W)`` or ``(B, H, W, 3)``, uint8.

    Returns:
        ``(B, C, H, W)`` float32 in C order, C = 1 or 3; 0 stays 0 and 255 becomes 1.

    Raises:
        ValueError: another dtype or shape.
    """
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise ValueError(f"images are {images.dtype} of shape {images.shape}: expected uint8 (B, H, W) or (B, H, W, 3)")
    channels_first = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(channels_first, dtype=np.float32) / np.float32(255)
