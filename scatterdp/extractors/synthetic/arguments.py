"""What the generators of synthetic images share: checked arguments, one random stream an image."""

from __future__ import annotations

import math

import numpy as np

from scatterdp.errors import ConfigError


def check_request(num_images: int, image_shape: tuple[int, int, int], seed: int) -> None:
    """Refuse a negative count or seed, and shapes other than ``(C, H, W)`` with each ≥ 1.

    Raises:
        ConfigError: says which of them.
    """
    if num_images < 0:
        raise ConfigError(f"num_images={num_images}: expected an integer ≥ 0")
    if seed < 0:
        raise ConfigError(f"seed={seed}: expected an integer ≥ 0")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(f"image_shape={image_shape}: expected (C, H, W), each ≥ 1")


def check_number(name: str, value: float, least: float, most: float) -> None:
    """Refuse a number outside ``[least, most]``, NaN included.

    Raises:
        ConfigError: names it, its value and the interval.
    """
    if not least <= value <= most:
        raise ConfigError(f"{name}={value}: expected a number in [{least:g}, {most:g}]")


def check_count(name: str, value: int, least: int, most: int) -> None:
    """Refuse anything but a whole number from ``least`` to ``most``.

    Raises:
        ConfigError: names it, its value and the interval.
    """
    if not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name}={value}: expected a whole number in {least} … {most}")


def check_range(name: str, value: tuple[float, float], least: float, most: float) -> None:
    """Refuse anything but ``(low, high)`` with ``least ≤ low ≤ high ≤ most``.

    Raises:
        ConfigError: names it, its value and the interval.
    """
    if len(value) != 2 or not (least <= value[0] <= value[1] <= most and math.isfinite(value[1])):
        raise ConfigError(f"{name}={value}: expected (low, high) with {least:g} ≤ low ≤ high ≤ {most:g}")


def random_streams(seed: int, start: int, stop: int, *key: int) -> list[np.random.Generator]:
    """One generator for each image from ``start`` to ``stop``: of the seed, the image's index and the key only."""
    return [np.random.default_rng([seed, index, *key]) for index in range(start, stop)]
