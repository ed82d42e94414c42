"""The rows' second moments with Gaussian noise, and what makes rows of them that vary equally along every direction.

Per-example gradients of a linear classifier are as uneven as the features: a few directions hold nearly all of their length, so clipping and
noise are set by them. Features of even variance make the most of a clipped gradient (Mehta et al. 2022, arXiv 2211.13403,
precondition by this covariance, released once).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scatterdp.linear.method import Problem, gaussian_entry, store, unit_blocks
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.noise import bound_to_sums, symmetric_gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.rows import FeatureRows


@dataclass(frozen=True, kw_only=True)
class SecondMoments:
    """Released: ``sum`` ``(K, K)`` float64 of ``z zᵀ`` over all examples, and ``noise``, the standard deviation of each entry's noise."""

    sum: Tensor
    noise: float

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending, and eigenvectors (columns)."""
        return torch.linalg.eigh(self.sum)

    @property
    def noise_level(self) -> float:
        """The largest eigenvalue of the noise alone, about ``2 · noise · √K`` (Wigner's semicircle)."""
        return 2 * self.noise * math.sqrt(len(self.sum))


def release_second_moments(
    rows: FeatureRows,
    problem: Problem,
    *,
    noise_multiplier: float,
    key: RandomKey,
    channels: int | None = None,
    constant: float = 0.0,
    processes: Processes = ONE,
) -> tuple[SecondMoments, LedgerEntry]:
    """``Σ z zᵀ`` with noise.

    **Formal guarantee.** ``z zᵀ`` of a row of length at most 1 has Frobenius norm at most 1, and its upper triangle no more: adding or
    removing an example moves the released triangle by at most 1 in L2. With ``channels`` = K the row is read as K channels at D / K places and
    the sum is over places of the K×K products: a row's places together are at most 1 long, so the bound is 1 as well.

    Args:
        rows: private, at most one long.
        problem: public facts.
        noise_multiplier: σ.
        key: the fit's.
        channels: one covariance of so many channels, shared by all places; None: of all features.
        constant: see :func:`scatterdp.linear.method.unit_blocks`.
        processes: which hold all rows together.
    """
    exact = exact_second_moments(rows, problem, channels=channels, constant=constant, processes=processes)
    return noisy_second_moments(exact, noise_multiplier=noise_multiplier, key=key)


def noisy_second_moments(
    exact: Tensor, *, noise_multiplier: float, key: RandomKey
) -> tuple[SecondMoments, LedgerEntry]:
    """The release of :func:`exact_second_moments` that have been computed already; the guarantee is there."""
    size = len(exact)
    noise = symmetric_gaussian_noise(
        size,
        noise_multiplier=noise_multiplier,
        sensitivity=1.0,
        key=bound_to_sums(key, exact),
        purpose="second moments",
        counter=0,
    )
    entry = gaussian_entry("second moments of the features", noise_multiplier, 1.0, numbers=size * (size + 1) // 2)
    return SecondMoments(sum=exact + noise, noise=noise_multiplier), entry


def exact_second_moments(
    rows: FeatureRows,
    problem: Problem,
    *,
    channels: int | None = None,
    constant: float = 0.0,
    processes: Processes = ONE,
) -> Tensor:
    """The same without noise: private, ``(K, K)`` float64."""
    size = channels or problem.num_features + (constant > 0)
    total = torch.zeros(size, size, dtype=torch.float64)
    for z, _ in unit_blocks(rows, constant=constant):
        flat = z if channels is None else z.unflatten(1, (channels, -1)).transpose(1, 2).flatten(0, 1)
        # Products in double precision: in single, rounding that goes one way in many rows can exceed what one row adds.
        flat = flat.cpu().double()
        total += flat.t() @ flat
    processes.add_up([total])
    return total


def evening_out(moments: SecondMoments) -> Tensor:
    """``(K, K)`` float32, symmetric: rows times it vary about equally along every direction that stands out of the noise.

    Eigenvalues below the noise's own level are taken for that level; the mean square length stays what it was.
    """
    values, vectors = moments.eigen()
    floor = max(moments.noise_level, 1e-9 * float(values[-1].abs()), 1e-12)
    scales = values.clamp(min=floor).rsqrt()
    true = values.clamp(min=0)
    scales *= (true.sum().clamp(min=floor) / (true * scales.square()).sum().clamp(min=1e-12)).sqrt()
    return ((vectors * scales) @ vectors.t()).float()


def even_rows(rows: FeatureRows, matrix: Tensor) -> FeatureRows:
    """The rows times the matrix, which acts on their channels where it is smaller than they are long."""
    x = torch.empty_like(rows.x)
    squares = torch.empty_like(rows.squared_norms)
    start = 0
    for block in rows.x.split(8192):
        store(x, squares, start, transformed(block.float(), matrix))
        start += len(block)
    return FeatureRows(x, rows.y, squares, rows.physical_batch_size)


def transformed(x: Tensor, matrix: Tensor) -> Tensor:
    """``x (b, D)`` times a symmetric matrix of D, or of its channels."""
    if len(matrix) == x.shape[1]:
        return x @ matrix
    return torch.einsum("bkp,kl->blp", x.unflatten(1, (len(matrix), -1)), matrix).flatten(1)
