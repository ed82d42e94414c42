r"""AdaSSP: least squares on one-hot labels from private sufficient statistics (Wang 2018, arXiv 1803.02596, algorithm 2).

Released with Gaussian noise: the smallest eigenvalue of :math:`Z^\top Z`, that matrix, and :math:`Z^\top Y`. The ridge is as large as the
noise makes it necessary, and smaller where the data are well conditioned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import dp_accounting
import torch
from torch import Tensor

from scatterdp.linear.covariance import exact_second_moments, noisy_second_moments
from scatterdp.linear.method import Problem, Solution, check_matrix_size, every_row, gaussian_entry, unit_blocks
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.rows import FeatureRows

_CONSTANT = 0.3
_TEMPERATURE = 10.0  # scores near 0 and 1 become probabilities by a softmax of so much of them
# Noise multipliers of the three releases, in units of the one that is solved for.
_MOMENTS, _PRODUCTS, _EIGENVALUE = 1.0, 1.0, 4.0
_FAILURE = 0.05  # Wang's ϱ


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """AdaSSP with one regression a class, all on one Gram matrix.

    **Formal guarantee.** Rows are at most 1 long, targets (one-hot) exactly 1: an example moves the upper triangle of ZᵀZ, the matrix ZᵀY and, by Weyl's inequality, the
    smallest eigenvalue by at most 1 each. Three Gaussian mechanisms, of noise multipliers σ, σ and 4σ.

    Args:
        problem: public facts; at most 2048 features.

    Raises:
        ConfigError: more features.
    """

    problem: Problem

    def __post_init__(self) -> None:
        check_matrix_size("least_squares", self.problem.num_features)

    @property
    def name(self) -> str:
        return "least squares"

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Of the three releases."""
        return dp_accounting.ComposedDpEvent(
            [dp_accounting.GaussianDpEvent(factor * noise_multiplier) for factor in (_MOMENTS, _PRODUCTS, _EIGENVALUE)]
        )

    def solve(
        self, rows: FeatureRows, *, noise_multiplier: float, key: RandomKey, processes: Processes = ONE
    ) -> Solution:
        """Release the three, solve the ridge regression."""
        p = self.problem
        size = p.num_features + 1
        products = exact_products(rows, p, processes)
        exact = exact_second_moments(rows, p, constant=_CONSTANT, processes=processes)
        eigenvalue = torch.linalg.eigvalsh(exact)[0]
        own_key = bound_to_sums(key, products, eigenvalue)

        def noise(shape: tuple[int, ...], factor: float, purpose: str):
            return gaussian_noise(
                shape,
                noise_multiplier=factor * noise_multiplier,
                sensitivity=1.0,
                key=own_key,
                purpose=purpose,
                counter=0,
                dtype=torch.float64,
            )

        products += noise(tuple(products.shape), _PRODUCTS, "products with labels")
        smallest = float(eigenvalue + noise((), _EIGENVALUE, "smallest eigenvalue"))
        moments, moments_entry = noisy_second_moments(exact, noise_multiplier=_MOMENTS * noise_multiplier, key=key)
        # Wang's: the eigenvalue less a margin that it exceeds but with probability ϱ, and the norm of the matrix's noise.
        margin = _EIGENVALUE * noise_multiplier * math.sqrt(2 * math.log(2 / _FAILURE))
        ridge = max(
            0.0, math.sqrt(size * math.log(2 * size**2 / _FAILURE)) * moments.noise - max(smallest - margin, 0.0)
        )
        values, vectors = moments.eigen()
        inverse = 1 / (values + ridge).clamp(min=moments.noise_level + 1e-9)
        solved = (vectors * inverse) @ (vectors.t() @ products)
        weight = _TEMPERATURE * solved.t()
        return Solution(
            weight=(weight[:, :-1] * (1 - _CONSTANT**2) ** 0.5).float(),
            bias=(weight[:, -1] * _CONSTANT).float(),
            entries=[
                moments_entry,
                gaussian_entry(
                    "products of features and labels",
                    _PRODUCTS * noise_multiplier,
                    1.0,
                    numbers=products.numel(),
                ),
                gaussian_entry(
                    "smallest eigenvalue of the second moments", _EIGENVALUE * noise_multiplier, 1.0, numbers=1
                ),
            ],
            sampler=every_row(p.num_examples),
        )


def exact_products(rows: FeatureRows, problem: Problem, processes: Processes = ONE) -> Tensor:
    """ZᵀY ``(D + 1, C)`` float64 for one-hot Y: private."""
    products = torch.zeros(problem.num_features + 1, problem.num_classes, dtype=torch.float64)
    for z, y in unit_blocks(rows, constant=_CONSTANT):
        products.index_add_(1, y.cpu(), z.t().cpu().double())
    processes.add_up([products])
    return products
