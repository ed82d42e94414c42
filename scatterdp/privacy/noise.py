"""The one place where noise is drawn: standard deviation = noise_multiplier × sensitivity.

**Formal guarantee.** Adding :func:`gaussian_noise` to a vector whose L2 sensitivity is ``sensitivity`` is the
Gaussian mechanism of noise multiplier σ, the ``dp_accounting.GaussianDpEvent(σ)`` of the ledger (Dwork & Roth
2014, appendix A; exact curve: Balle & Wang 2018). The samples are float64 computed from 64-bit uniforms
and rounded to the asked dtype. Their largest magnitude is 9.16 standard deviations; the missing tails weigh 5.4e-20 a number:
3.0e-12 for 200 steps of 280 000 weights, which could add (1 + e^ε) times that to δ, 6.4e-11 at ε = 3. No δ here includes it.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from scatterdp.privacy.randomness import RandomKey

_GRID = 1024  # a power of two: its multiples are exact


def standard_normal(count: int, key: RandomKey, purpose: str, *, counter: int) -> np.ndarray:
    """``(count,)`` float64 standard normal numbers: the inverse distribution function of the key's uniforms.

    Both halves are computed as the lower one, where small probabilities keep all their digits.
    """
    words = key.words(purpose, counter=counter, count=count)
    upper = words >= np.uint64(2**63)
    lower_half = ndtri((np.where(upper, ~words, words) + 0.5) * 2.0**-64)
    return np.where(upper, -lower_half, lower_half)


def bound_to_sums(key: RandomKey, *sums: Tensor) -> RandomKey:
    """The key for the noise of these very numbers, to the bit.

    Sums that differ, if only because other threads or another processor rounded them in another way, then never meet the same noise: their difference
    would have none. Equal sums meet equal noise, so that a step that is done twice alike releases nothing new. What two different runs of one key release
    tells whether their sums were equal, which no noise hides: a key is for one run.

    Args:
        sums: exact, private; those of one release together.
    """
    digest = hashlib.sha256()
    for exact in sums:
        digest.update(exact.detach().cpu().contiguous().numpy().data)
    return key.bound_to(f"sums {digest.hexdigest()}")


def gaussian_noise(
    shape: tuple[int, ...],
    *,
    noise_multiplier: float,
    sensitivity: float,
    key: RandomKey,
    purpose: str,
    counter: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Gaussian noise of standard deviation ``noise_multiplier * sensitivity``.

    Args:
        shape: shape of the answer.
        noise_multiplier: σ ≥ 0, dimensionless; 0 gives zeros (and an event that is not private).
        sensitivity: L2 sensitivity > 0 of what the noise is added to, in its unit.
        key, purpose, counter: name the draw. The same triple gives the same numbers, so each
            released quantity needs its own.

    Raises:
        ValueError: a negative or non-finite multiplier or sensitivity.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(f"noise_multiplier={noise_multiplier}: expected a finite number ≥ 0")
    if not (math.isfinite(sensitivity) and sensitivity > 0):
        raise ValueError(f"sensitivity={sensitivity}: expected a finite number > 0")
    if noise_multiplier == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    sample = standard_normal(math.prod(shape), key, purpose, counter=counter)
    return torch.from_numpy(sample * (noise_multiplier * sensitivity)).to(device, dtype).reshape(shape)


def noisy_count(count: int, *, noise_multiplier: float, key: RandomKey, purpose: str, counter: int) -> float:
    """A whole number of sensitivity 1 with Gaussian noise, on a grid of 1/1024.

    **Formal guarantee.** The count lies on the grid, so rounding the noise to it is rounding the noisy count: a function of the
    Gaussian mechanism's result. Without it the last digits would tell: of a number with floating-point noise, only few whole numbers can be taken away
    such that a floating-point number is left (Mironov 2012), and often one alone.

    Args:
        count: private.
        noise_multiplier, key, purpose, counter: of :func:`gaussian_noise`.
    """
    noise = gaussian_noise(
        (),
        noise_multiplier=noise_multiplier,
        sensitivity=1.0,
        key=key,
        purpose=purpose,
        counter=counter,
        dtype=torch.float64,
    )
    return count + round(float(noise) * _GRID) / _GRID


def symmetric_gaussian_noise(
    size: int, *, noise_multiplier: float, sensitivity: float, key: RandomKey, purpose: str, counter: int
) -> Tensor:
    """A symmetric ``(size, size)`` float64 matrix whose upper triangle, diagonal included, is :func:`gaussian_noise`.

    Args:
        sensitivity: L2 sensitivity of the upper triangle.
        noise_multiplier, key, purpose, counter: as there.
    """
    rows, columns = torch.triu_indices(size, size)
    triangle = gaussian_noise(
        (len(rows),),
        noise_multiplier=noise_multiplier,
        sensitivity=sensitivity,
        key=key,
        purpose=purpose,
        counter=counter,
        dtype=torch.float64,
    )
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix
