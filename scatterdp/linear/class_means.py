"""One release: the noisy sum of each class. The classifier is the nearest class mean.

The least that can be asked of the data, for tiny budgets or few examples: one number a class and feature, and one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import dp_accounting
import torch
from torch import Tensor

from scatterdp.linear.method import Problem, Solution, every_row, gaussian_entry, unit_blocks
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.rows import FeatureRows

_COUNTING = 0.3  # the constant entry of every row: its sums are the classes' sizes
# Logits between two classes whose means are as far apart as usual, for an example in the middle of one.
_CONFIDENCE = 4.0


@dataclass(frozen=True, kw_only=True)
class ClassMeans:
    """Nearest class mean.

    **Formal guarantee.** A row is extended by a constant, to a length of at most 1, and added to the sum of its class: the ``(C, D + 1)``
    sums change by at most 1 in L2 when an example comes or goes. They are released once with Gaussian noise; means, sizes and variance
    are computed from them.
    """

    problem: Problem

    @property
    def name(self) -> str:
        return "class means"

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Of the one release."""
        return dp_accounting.GaussianDpEvent(noise_multiplier)

    def solve(
        self, rows: FeatureRows, *, noise_multiplier: float, key: RandomKey, processes: Processes = ONE
    ) -> Solution:
        """Release the sums, compute the classifier."""
        p = self.problem
        sums = exact_class_sums(rows, p, processes)
        sums += gaussian_noise(
            tuple(sums.shape),
            noise_multiplier=noise_multiplier,
            sensitivity=1.0,
            key=bound_to_sums(key, sums),
            purpose="class sums",
            counter=0,
            dtype=torch.float64,
        )
        sizes = (sums[:, -1] / _COUNTING).clamp(min=1.0, max=p.num_examples)
        means = sums[:, :-1] / (1 - _COUNTING**2) ** 0.5 / sizes[:, None]
        # The noise makes every mean longer, by a known amount.
        noise = p.num_features * (noise_multiplier / sizes) ** 2 / (1 - _COUNTING**2)
        squares = (means.square().sum(1) - noise).clamp(min=0.0, max=1.0)
        centred = means - means.mean(0)
        spread = float((centred.square().sum(1) - noise).mean().clamp(min=float(noise.mean()), max=1.0))
        scale = _CONFIDENCE / max(spread, 1e-6)
        bias = (sizes / sizes.sum()).log() - scale * squares / 2
        return Solution(
            weight=(scale * means).float(),
            bias=bias.float(),
            entries=[gaussian_entry("class sums", noise_multiplier, 1.0, numbers=sums.numel())],
            sampler=every_row(p.num_examples),
        )


def exact_class_sums(rows: FeatureRows, problem: Problem, processes: Processes = ONE) -> Tensor:
    """``(C, D + 1)`` float64 sums of the rows of each class, the last entry the constant's: private."""
    sums = torch.zeros(problem.num_classes, problem.num_features + 1, dtype=torch.float64)
    for z, y in unit_blocks(rows, constant=_COUNTING):
        sums.index_add_(0, y.cpu(), z.cpu().double())
    processes.add_up([sums])
    return sums
