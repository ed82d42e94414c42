"""Synthetic images that stand in for natural ones where a data set would cost privacy or be missing.

The dead leaves model drops occluding shapes of power-law sizes until nothing behind them shows. Its edges, occlusions
and scale statistics are those of natural images (Lee, Mumford & Huang 2001), and networks learn useful features from
it (Baradad et al. 2021). No data set is read.
"""

from __future__ import annotations

import numpy as np

from scatterdp.errors import ConfigError

_LEAVES = 200  # about 99 % of the background is covered at these sizes
_SMALLEST, _LARGEST = 1 / 16, 1 / 2  # radii over the image's shorter side
_BLOCK_VALUES = 1 << 16  # pixels painted together: the working arrays stay in the processor's cache


def dead_leaves(num_images: int, image_shape: tuple[int, int, int], *, seed: int) -> np.ndarray:
    """Seeded images of occluding ellipses and rectangles.

    Radii r have density ∝ r⁻³ (each octave of sizes covers the same area), axis ratios are in [½, 2] and orientations
    are uniform; a leaf has a random colour, a slight linear gradient and a soft edge of one pixel; the
    image has slight Gaussian noise.

    Args:
        num_images: n.
        image_shape: ``(C, H, W)``, any C ≥ 1.
        seed: non-negative integer. Image i depends on the seed, i and the shape only, not on ``num_images``.

    Returns:
        ``(n, C, H, W)`` float32 in [0, 1].

    Raises:
        ConfigError: a negative count or seed, or an empty image shape.

    >>> a, b = dead_leaves(2, (3, 16, 16), seed=0), dead_leaves(5, (3, 16, 16), seed=0)
    >>> bool((a == b[:2]).all())
    True
    """
    if num_images < 0:
        raise ConfigError(f"num_images={num_images}: expected an integer ≥ 0")
    if seed < 0:
        raise ConfigError(f"seed={seed}: expected an integer ≥ 0")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(f"image_shape={image_shape}: expected (C, H, W), each ≥ 1")
    channels, height, width = image_shape
    images = np.empty((num_images, channels, height, width), np.float32)
    generators = [np.random.default_rng([seed, index]) for index in range(num_images)]
    block = max(1, _BLOCK_VALUES // (height * width))
    for start in range(0, num_images, block):
        _paint(images[start : start + block], generators[start : start + block])
    return images


def _paint(images: np.ndarray, generators: list[np.random.Generator]) -> None:
    """Fill ``(b, C, H, W)`` with one image a generator, back to front."""
    channels, height, width = images.shape[1:]
    side = min(height, width)
    margin = _LARGEST * side  # leaves centred outside still reach in

    draws = np.stack([generator.random((_LEAVES, 8 + channels), np.float32) for generator in generators], axis=1)
    # Inverse distribution function of the density r⁻³ between the two radii.
    radius = side / np.sqrt(_SMALLEST**-2 + draws[:, :, 0] * (_LARGEST**-2 - _SMALLEST**-2))
    ratio = np.exp2(draws[:, :, 1] - 0.5)  # √(axis ratio)
    angle = 2 * np.pi * draws[:, :, 2]
    centre_y = draws[:, :, 3] * (height + 2 * margin) - margin
    centre_x = draws[:, :, 4] * (width + 2 * margin) - margin
    is_rectangle = draws[:, :, 5] < 0.5
    gradient = 0.3 * (draws[:, :, 6:8] - 0.5)  # change of brightness over one radius, along each axis
    colour = draws[:, :, 8:]

    y = np.arange(height, dtype=np.float32)[None, :, None] + 0.5
    x = np.arange(width, dtype=np.float32)[None, None, :] + 0.5
    images[...] = np.stack([generator.random(channels, np.float32) for generator in generators])[:, :, None, None]
    for leaf in range(_LEAVES):
        r, s, a = (value[leaf][:, None, None].astype(np.float32) for value in (radius, ratio, angle))
        dy = y - centre_y[leaf][:, None, None].astype(np.float32)
        dx = x - centre_x[leaf][:, None, None].astype(np.float32)
        # Coordinates along the leaf's axes, in radii: its edge is at distance 1.
        u = dx * (np.cos(a) / (r * s)) + dy * (np.sin(a) / (r * s))
        v = dy * (np.cos(a) * s / r) - dx * (np.sin(a) * s / r)
        round_ = np.sqrt(u * u + v * v)
        square = np.maximum(np.abs(u), np.abs(v))
        distance = np.where(is_rectangle[leaf][:, None, None], square, round_)
        cover = np.clip((1 - distance) * r + 0.5, 0, 1)
        shade = gradient[leaf, :, 0, None, None] * u + gradient[leaf, :, 1, None, None] * v
        for channel in range(channels):
            plane = images[:, channel]
            plane += cover * (colour[leaf, :, channel, None, None] + shade - plane)
    for image, generator in zip(images, generators, strict=True):
        image += 0.02 * generator.standard_normal(image.shape, np.float32)
    np.clip(images, 0, 1, out=images)
