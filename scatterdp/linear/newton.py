r"""DP Newton for multinomial logistic regression (Mehta et al. 2022, arXiv 2211.13403): a few steps, each with a private gradient and Hessian.

The Hessian is taken block by block, one a class: :math:`H_c = \sum_i p_{ic}(1 - p_{ic})\, z_i z_i^\top`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import dp_accounting
import torch
from torch import Tensor

from scatterdp.linear.method import Problem, Solution, check_matrix_size, every_row, gaussian_entry, unit_blocks
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise, symmetric_gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.rows import FeatureRows

_CONSTANT = 0.3
GRADIENT_SENSITIVITY = math.sqrt(2)
HESSIAN_SENSITIVITY = math.sqrt(4 / 27)


@dataclass(frozen=True, kw_only=True)
class Newton:
    """Newton's method with noise.

    **Formal guarantee.** For rows of length at most 1 an example's gradient :math:`(p - e_y) z^\\top` is at most √2 long, and no clipping is needed. Its
    blocks :math:`p_c (1 - p_c) z z^\\top` together have Frobenius norm at most :math:`\\sqrt{\\sum_c p_c^2 (1 - p_c)^2}`, and
    :math:`\\sum_c p_c \\cdot p_c (1 - p_c)^2 \\le \\max_p p (1 - p)^2 = 4/27`. Each step is one Gaussian mechanism of σ (gradient) and one of
    ``hessian_factor``·σ (Hessians).

    Args:
        problem: public facts; at most 2048 features.
        steps: number of Newton steps.
        hessian_factor: noise multiplier of the Hessians ÷ the gradient's.
        penalty: of the weights, ``penalty · N / 2 · ‖W‖²``.

    Raises:
        ConfigError: more features.
    """

    problem: Problem
    steps: int = 3
    hessian_factor: float = 1.0
    penalty: float = 1e-4

    def __post_init__(self) -> None:
        check_matrix_size("newton", self.problem.num_features)

    @property
    def name(self) -> str:
        return "Newton's method"

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Of all steps."""
        return dp_accounting.ComposedDpEvent(
            [
                dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(factor * noise_multiplier), self.steps)
                for factor in (1.0, self.hessian_factor)
            ]
        )

    def solve(
        self, rows: FeatureRows, *, noise_multiplier: float, key: RandomKey, processes: Processes = ONE
    ) -> Solution:
        """Start at zero and step."""
        p = self.problem
        weight = torch.zeros(p.num_classes, p.num_features + 1, dtype=torch.float64)
        for step in range(self.steps):
            gradient, hessians = exact_derivatives(rows, weight, processes)
            own_key = bound_to_sums(key, gradient, hessians)
            gradient += gaussian_noise(
                tuple(gradient.shape),
                noise_multiplier=noise_multiplier,
                sensitivity=GRADIENT_SENSITIVITY,
                key=own_key,
                purpose="gradient",
                counter=step,
                dtype=torch.float64,
            )
            gradient += self.penalty * p.num_examples * weight
            noise = self.hessian_factor * noise_multiplier * HESSIAN_SENSITIVITY
            ridge = 2 * noise * math.sqrt(p.num_features + 1) + self.penalty * p.num_examples
            for c in range(p.num_classes):
                hessians[c] += symmetric_gaussian_noise(
                    p.num_features + 1,
                    noise_multiplier=self.hessian_factor * noise_multiplier,
                    sensitivity=HESSIAN_SENSITIVITY,
                    key=own_key,
                    purpose=f"Hessian of class {c}",
                    counter=step,
                )
                values, vectors = torch.linalg.eigh(hessians[c])
                weight[c] -= (vectors / values.clamp(min=0).add(ridge)) @ (vectors.t() @ gradient[c])
            weight = processes.share(weight)  # eigenvectors may differ in the last bit from machine to machine
        weight -= weight.mean(0)
        releases = (
            ("gradients of Newton's method", noise_multiplier, GRADIENT_SENSITIVITY),
            ("Hessians of Newton's method", self.hessian_factor * noise_multiplier, HESSIAN_SENSITIVITY),
        )
        return Solution(
            weight=(weight[:, :-1] * (1 - _CONSTANT**2) ** 0.5).float(),
            bias=(weight[:, -1] * _CONSTANT).float(),
            entries=[gaussian_entry(name, sigma, bound, steps=self.steps) for name, sigma, bound in releases],
            sampler=every_row(p.num_examples),
        )


def exact_derivatives(rows: FeatureRows, weight: Tensor, processes: Processes = ONE) -> tuple[Tensor, Tensor]:
    """Gradient ``(C, D + 1)`` and Hessian blocks ``(C, D + 1, D + 1)`` at these weights: private."""
    gradient = torch.zeros_like(weight)
    hessians = torch.zeros(len(weight), weight.shape[1], weight.shape[1], dtype=torch.float64)
    single = weight.float()
    for z, y in unit_blocks(rows, constant=_CONSTANT):
        y = y.cpu()
        probabilities = (z.cpu() @ single.t()).softmax(1).double()
        z = z.cpu().double()  # sums in double precision, see scatterdp.linear.covariance
        for c, curvature in enumerate((probabilities * (1 - probabilities)).unbind(1)):
            hessians[c] += z.t() @ (z * curvature[:, None])
        probabilities[torch.arange(len(y)), y] -= 1
        gradient += probabilities.t() @ z
    processes.add_up([gradient, hessians])
    return gradient, hessians
