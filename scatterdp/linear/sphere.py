"""Rows of length one: what bounds every release on fixed features, without a clip norm that anyone has to guess.

Each example's features are divided by their own length: a function of one example, free. What all examples have in common is then released once, as
the mean of these unit vectors, taken away, and the rest brought to length one again ("DP centring and feature normalisation", Sun, Suresh
& Menon 2023, arXiv 2307.11106): the directions in which examples differ get the whole length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scatterdp.linear.method import Problem, gaussian_entry, unit_blocks
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.rows import FeatureRows


class UnitSphere(nn.Module):
    """``(B, …) -> (B, …)``: flat rows to length one, less ``mean`` ``(D,)``, to length one again. Zeros stay zeros.

    Args:
        mean: what is taken away; None: nothing.
    """

    mean: Tensor

    def __init__(self, num_features: int, mean: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features) if mean is None else mean.float())

    def forward(self, x: Tensor) -> Tensor:
        flat = _unit(x.flatten(1).float())
        if self.mean.any():
            flat = _unit(flat - self.mean)
        return flat.view_as(x)


def release_centre(
    rows: FeatureRows, problem: Problem, *, noise_multiplier: float, key: RandomKey, processes: Processes = ONE
) -> tuple[Tensor, LedgerEntry]:
    """The mean ``(D,)`` float32 of rows that are at most one long.

    **Formal guarantee.** The sum moves by at most 1 in L2 when an example comes or goes, so it is a Gaussian mechanism of noise multiplier σ. It is
    divided by N, which is public. A mean that the noise drowns is shortened towards 0, which is computed from the release.
    """
    total = torch.zeros(problem.num_features, dtype=torch.float64)
    for z, _ in unit_blocks(rows):
        total += z.cpu().double().sum(0)
    processes.add_up([total])
    total += gaussian_noise(
        (problem.num_features,),
        noise_multiplier=noise_multiplier,
        sensitivity=1.0,
        key=bound_to_sums(key, total),
        purpose="centre",
        counter=0,
        dtype=torch.float64,
    )
    mean = total / problem.num_examples
    noise = problem.num_features * (noise_multiplier / problem.num_examples) ** 2
    # James & Stein: what is longer than its noise keeps the part that is not noise.
    mean *= max(0.0, 1 - noise / max(float(mean.square().sum()), 1e-300))
    return mean.float(), gaussian_entry("mean of the features", noise_multiplier, 1.0, numbers=problem.num_features)


def _unit(flat: Tensor) -> Tensor:
    # Twice, because the square of a large entry overflows and that of a small one vanishes.
    largest = flat.abs().amax(1, keepdim=True)
    flat = torch.where(largest > 0, flat / largest, flat)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=math.sqrt(torch.finfo(flat.dtype).tiny))
