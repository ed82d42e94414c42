"""Natural colour and contrast for fields that have neither."""

from __future__ import annotations

import numpy as np


def colour_mixing(streams: list[np.random.Generator], channels: int, chroma: float) -> np.ndarray:
    """For each image a random matrix from C independent fields to C correlated channels.

    The first field is brightness, alike in all channels; the others are two-coloured, in random opponent directions.

    Args:
        streams: one an image.
        channels: C.
        chroma: largest share of the variance, in [0, 1], that is not brightness; images draw theirs uniformly from 0.

    Returns:
        ``(b, C, C)`` float32; for channels of variance 1 on average.
    """
    mixing = np.ones((len(streams), channels, channels), np.float32)
    if channels > 1:
        share = chroma * np.stack([stream.random(dtype=np.float32) for stream in streams])[:, None, None]
        opponent = np.stack([stream.standard_normal((channels, channels - 1), np.float32) for stream in streams])
        opponent -= opponent.mean(1, keepdims=True)
        opponent /= np.sqrt((opponent**2).sum((1, 2), keepdims=True) / channels)
        mixing[:, :, :1] = np.sqrt(1 - share)
        mixing[:, :, 1:] = np.sqrt(share) * opponent
    return mixing


def expose(images: np.ndarray, streams: list[np.random.Generator]) -> None:
    """Give each image, in place, a random mean colour (0.35 … 0.65 with a slight cast), a random contrast (standard
    deviation 0.12 … 0.25), and cut it to [0, 1].

    Args:
        images: ``(b, C, H, W)`` float32, of any scale.
        streams: one an image.
    """
    count, channels = images.shape[:2]
    draws = np.stack([stream.random(2 + channels, np.float32) for stream in streams])
    flat = images.reshape(count, channels, -1)
    flat -= flat.mean(2, keepdims=True)
    deviation = np.sqrt(np.einsum("bcp,bcp->b", flat, flat) / flat[0].size)
    flat *= ((0.12 + 0.13 * draws[:, 0]) / np.maximum(deviation, 1e-12))[:, None, None]
    flat += (0.35 + 0.3 * draws[:, 1, None] + 0.2 * (draws[:, 2:] - 0.5))[:, :, None]
    np.clip(images, 0, 1, out=images)
