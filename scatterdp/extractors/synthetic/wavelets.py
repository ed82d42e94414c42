"""Sparse sums of oriented wavelets (after Baradad et al. 2021, "Learning to See by Looking at Noise", §3.2).

Their wavelet-marginal model iterates noise until its steerable-pyramid coefficients have the heavy-tailed distributions
of photographs. Here such coefficients are drawn and the image is synthesised from them once.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy import fft

from scatterdp.extractors.synthetic.arguments import check_number, check_range, check_request, random_streams
from scatterdp.extractors.synthetic.colour import expose
from scatterdp.extractors.synthetic.spectrum import frequencies

_BLOCK_VALUES = 1 << 17  # coefficients in work together: the working arrays stay in the processor's cache
_ORIENTATIONS = 4
_COARSEST = 8  # pixels, at most, that the smallest grid of coefficients has along the shorter side


def wavelet_marginals(
    num_images: int,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    tail: tuple[float, float] = (1.5, 4.0),
    alpha: tuple[float, float] = (1.0, 1.8),
    chroma: float = 0.15,
) -> np.ndarray:
    """Sums over scales and orientations of wavelets with independent heavy-tailed coefficients.

    A coefficient is sign(g)·|g|ᵖ of a Gaussian g. The scales are octaves; a coarser one has a quarter of the coefficients.
    Each band has a random phase (edges or bars), gain and slight colour cast.

    Args:
        num_images: n.
        image_shape: ``(C, H, W)``, any C ≥ 1.
        seed: non-negative integer. Image i depends on it, on i, the shape and the options, not on ``num_images``.
        tail: (low, high) in [1, 8]; each image draws its p uniformly between. 1 is Gaussian.
        alpha: (low, high) in [0, 4]; each image draws uniformly between how fast, as f⁻ᵅ, amplitudes fall over the scales.
        chroma: largest share of a band's variance, in [0, 1], that is colour and not brightness.

    Returns:
        ``(n, C, H, W)`` float32 in [0, 1].

    Raises:
        ConfigError: a negative count or seed, an empty image shape, or an option out of range.

    >>> wavelet_marginals(2, (3, 8, 8), seed=0).shape
    (2, 3, 8, 8)
    """
    check_request(num_images, image_shape, seed)
    check_range("tail", tail, 1, 8)
    check_range("alpha", alpha, 0, 4)
    check_number("chroma", chroma, 0, 1)
    height, width = image_shape[1:]
    images = np.empty((num_images, *image_shape), np.float32)
    block = max(1, _BLOCK_VALUES // (height * width * _ORIENTATIONS))
    for start in range(0, num_images, block):
        part = images[start : start + block]
        streams = random_streams(seed, start, start + len(part), 2)
        part[...] = fft.irfft2(_spectra(streams, image_shape, tail, alpha, chroma), s=(height, width))
        expose(part, streams)
    return images


def _spectra(
    streams: list[np.random.Generator],
    image_shape: tuple[int, int, int],
    tail: tuple[float, float],
    alpha: tuple[float, float],
    chroma: float,
) -> np.ndarray:
    """``(b, C, H, W//2 + 1)``: the images' Fourier transforms."""
    channels, height, width = image_shape
    count = len(streams)
    power = np.array([stream.uniform(*tail) for stream in streams], np.float32)[:, None, None, None]
    slope = np.array([stream.uniform(*alpha) for stream in streams], np.float32)
    filters = _filters(height, width)
    spectra = np.zeros((count, channels, height, width // 2 + 1), np.complex64)
    for scale, bank in enumerate(filters):
        stride = 2**scale
        grid = (-(-height // stride), -(-width // stride))
        draws = np.stack([stream.standard_normal((_ORIENTATIONS, *grid), np.float32) for stream in streams])
        draws = np.copysign(np.abs(draws) ** power, draws)
        draws /= np.sqrt((draws**2).mean((1, 2, 3), keepdims=True) + 1e-12)
        coefficients = np.zeros((count, _ORIENTATIONS, height, width), np.float32)
        coefficients[:, :, ::stride, ::stride] = draws
        bands = fft.rfft2(coefficients)
        band = np.stack([stream.standard_normal((_ORIENTATIONS, channels + 2), np.float32) for stream in streams])
        bands *= bank * np.exp(1j * np.pi * band[:, :, 0]).astype(np.complex64)[:, :, None, None]
        gain = np.exp2(((slope - 1) * scale)[:, None] + 0.7 * band[:, :, 1])  # equal gains are f⁻¹
        cast = band[:, :, 2:] - band[:, :, 2:].mean(2, keepdims=True)
        colour = gain[:, :, None] * (np.sqrt(1 - chroma) + np.sqrt(chroma) * cast)  # (b, orientations, C)
        flat = colour.transpose(0, 2, 1).astype(np.complex64) @ bands.reshape(count, _ORIENTATIONS, -1)
        spectra += flat.reshape(spectra.shape)
    return spectra


@functools.lru_cache(maxsize=8)
def _filters(height: int, width: int) -> tuple[np.ndarray, ...]:
    """For each scale ``(orientations, H, W//2 + 1)`` responses: an octave wide, cos² in angle, of norm 1.

    Coefficients lie 2ʲ pixels apart at scale j, whose frequencies are around 0.3·2⁻ʲ cycles a pixel.
    """
    distance = np.maximum(frequencies(height, width), 1e-6)
    angle = np.arctan2(fft.fftfreq(height)[:, None], fft.rfftfreq(width))
    scales = max(1, int(np.log2(max(min(height, width) / _COARSEST, 1))) + 2)
    banks = []
    for scale in range(scales):
        octaves = np.log2(distance / (0.3 * 2.0**-scale))
        radial = np.where(np.abs(octaves) < 1, np.cos(np.pi / 2 * np.clip(octaves, -1, 1)), 0)
        angular = np.stack([np.cos(angle - np.pi * k / _ORIENTATIONS) for k in range(_ORIENTATIONS)])
        bank = radial * np.abs(angular) ** 3
        banks.append((bank / np.sqrt((bank**2).sum((1, 2), keepdims=True) + 1e-12) * 2.0**scale).astype(np.float32))
    return tuple(banks)
