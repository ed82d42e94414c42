"""Noise with the spectrum of natural images (Baradad et al. 2021, "Learning to See by Looking at Noise", §3.2)."""

from __future__ import annotations

import numpy as np
from numpy import fft

from scatterdp.extractors.synthetic.arguments import check_number, check_range, check_request, random_streams
from scatterdp.extractors.synthetic.colour import colour_mixing, expose

_BLOCK_VALUES = 1 << 17  # values transformed together: the working arrays stay in the processor's cache


def frequencies(height: int, width: int) -> np.ndarray:
    """``(H, W//2 + 1)`` float32 distances from zero, in cycles a pixel, of the frequencies of a real transform."""
    return np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)).astype(np.float32)


def power_law(white: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Fields whose amplitude falls as f⁻ᵅ, without mean, of variance 1 in expectation.

    Args:
        white: ``(b, …, H, W)`` float32 white noise of variance 1.
        alpha: ``(b,)`` float32 exponents.

    Returns:
        ``(b, …, H, W)`` float32, periodic.
    """
    height, width = white.shape[-2:]
    distance = frequencies(height, width)
    distance[0, 0] = 1
    amplitude = np.exp(-alpha[:, None, None] * np.log(distance))
    amplitude[:, 0, 0] = 0
    twice = np.where(np.isin(np.arange(width // 2 + 1), (0, width / 2)), 1, 2)  # a column and its mirror image
    power = (amplitude**2 * twice).sum((1, 2), keepdims=True) / (height * width)
    amplitude /= np.sqrt(np.maximum(power, 1e-30))
    amplitude = amplitude.reshape(len(white), *(1,) * (white.ndim - 3), *distance.shape)
    return fft.irfft2(fft.rfft2(white) * amplitude, s=(height, width))


def spectrum_noise(
    num_images: int,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    alpha: tuple[float, float] = (0.7, 1.7),
    chroma: float = 0.15,
) -> np.ndarray:
    """Gaussian noise whose amplitude falls as f⁻ᵅ, with the correlated channels of colour photographs.

    Args:
        num_images: n.
        image_shape: ``(C, H, W)``, any C ≥ 1.
        seed: non-negative integer. Image i depends on it, on i, the shape and the options, not on ``num_images``.
        alpha: (low, high) in [0, 4]; each image draws its α uniformly between. Photographs have about 1.
        chroma: largest share of an image's variance, in [0, 1], that is colour and not brightness.

    Returns:
        ``(n, C, H, W)`` float32 in [0, 1].

    Raises:
        ConfigError: a negative count or seed, an empty image shape, or an option out of range.

    >>> spectrum_noise(2, (3, 8, 8), seed=0).shape
    (2, 3, 8, 8)
    """
    check_request(num_images, image_shape, seed)
    check_range("alpha", alpha, 0, 4)
    check_number("chroma", chroma, 0, 1)
    channels, height, width = image_shape
    images = np.empty((num_images, channels, height, width), np.float32)
    block = max(1, _BLOCK_VALUES // (channels * height * width))
    for start in range(0, num_images, block):
        part = images[start : start + block]
        streams = random_streams(seed, start, start + len(part), 1)
        exponent = np.array([stream.uniform(*alpha) for stream in streams], np.float32)
        fields = power_law(np.stack([s.standard_normal(image_shape, np.float32) for s in streams]), exponent)
        mixing = colour_mixing(streams, channels, chroma)
        np.matmul(mixing, fields.reshape(len(part), channels, -1), out=part.reshape(len(part), channels, -1))
        expose(part, streams)
    return images
