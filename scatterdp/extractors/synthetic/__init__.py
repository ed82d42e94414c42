"""Synthetic images that stand in for natural ones where a data set would cost privacy or be missing.

Every generator is a fixed function of a seed and reads no data set, so images, and whatever is fitted to them, cost no
privacy. The families are those of Baradad et al. 2021, "Learning to See by Looking at Noise" (arXiv 2106.05963).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from scatterdp.errors import ConfigError
from scatterdp.extractors.synthetic.leaves import DeadLeavesConfig, dead_leaves, photographic_leaves
from scatterdp.extractors.synthetic.network import random_network
from scatterdp.extractors.synthetic.spectrum import spectrum_noise
from scatterdp.extractors.synthetic.views import ALIGNED, random_views
from scatterdp.extractors.synthetic.wavelets import wavelet_marginals

__all__ = [
    "ALIGNED",
    "GENERATORS",
    "DeadLeavesConfig",
    "Generator",
    "dead_leaves",
    "photographic_leaves",
    "random_network",
    "random_views",
    "spectrum_noise",
    "synthetic_images",
    "wavelet_marginals",
]


class Generator(Protocol):
    """``(num_images, (C, H, W), seed=…)`` to ``(n, C, H, W)`` float32 in [0, 1]; image i does not depend on ``num_images``."""

    def __call__(self, num_images: int, image_shape: tuple[int, int, int], *, seed: int) -> np.ndarray: ...


GENERATORS: dict[str, Generator] = {
    "dead_leaves": dead_leaves,
    "spectrum_noise": spectrum_noise,
    "wavelet_marginals": wavelet_marginals,
    "random_network": random_network,
}
"""Name → function, each with its default options."""


def synthetic_images(name: str, num_images: int, image_shape: tuple[int, int, int], *, seed: int) -> np.ndarray:
    """Images of a named generator with its default options.

    Args:
        name: a key of :data:`GENERATORS`.
        num_images: n.
        image_shape: ``(C, H, W)``.
        seed: non-negative integer.

    Returns:
        ``(n, C, H, W)`` float32 in [0, 1].

    Raises:
        ConfigError: an unknown name, a negative count or seed, or an empty image shape.

    >>> synthetic_images("spectrum_noise", 3, (1, 28, 28), seed=0).shape
    (3, 1, 28, 28)
    """
    if name not in GENERATORS:
        raise ConfigError(f"generator={name!r}: expected one of {', '.join(GENERATORS)}")
    return GENERATORS[name](num_images, image_shape, seed=seed)
