"""DP-FC: gradient descent on rows that a private feature covariance has evened out.

Mehta et al. 2022 (arXiv 2211.13403) multiply the noisy gradient by the inverse covariance. Here the rows are transformed before clipping:
the step is the same without clipping and noise, but the noise is then even along the directions that matter, not amplified along
those of small variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import dp_accounting

from scatterdp.linear.covariance import even_rows, evening_out, release_second_moments, transformed
from scatterdp.linear.gradient_descent import GradientDescent
from scatterdp.linear.method import Problem, Solution, check_matrix_size
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.rows import FeatureRows


@dataclass(frozen=True, kw_only=True)
class PreconditionedDescent:
    """A release of second moments, then :class:`GradientDescent` on evened rows.

    **Formal guarantee.** Two releases in succession: the event is the composition of one Gaussian mechanism of
    ``covariance_noise_multiplier`` and the descent's own event.

    Args:
        descent: what follows the release; its rows are transformed, its gradients are clipped as always.
        covariance_noise_multiplier: σ of the second moments.
        channels: one covariance of so many channels for all places (ScatterNet maps); None: of all features.

    Raises:
        ConfigError: more than 2048 features, or channels.
    """

    descent: GradientDescent
    covariance_noise_multiplier: float
    channels: int | None = None

    def __post_init__(self) -> None:
        check_matrix_size("preconditioned", self.channels or self.descent.problem.num_features)

    @property
    def problem(self) -> Problem:
        return self.descent.problem

    @property
    def name(self) -> str:
        return f"{self.descent.name} preconditioned by a private covariance"

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Of the second moments and all steps."""
        release = dp_accounting.GaussianDpEvent(self.covariance_noise_multiplier)
        return dp_accounting.ComposedDpEvent([release, self.descent.event(noise_multiplier)])

    def solve(
        self, rows: FeatureRows, *, noise_multiplier: float, key: RandomKey, processes: Processes = ONE
    ) -> Solution:
        """Release, transform, train; the transformation is folded into the weights."""
        moments, entry = release_second_moments(
            rows,
            self.problem,
            noise_multiplier=self.covariance_noise_multiplier,
            key=key,
            channels=self.channels,
            processes=processes,
        )
        matrix = processes.share(
            evening_out(moments)
        )  # eigenvectors may differ in the last bit from machine to machine
        solution = self.descent.solve(
            even_rows(rows, matrix), noise_multiplier=noise_multiplier, key=key, processes=processes
        )
        return Solution(
            weight=transformed(solution.weight, matrix),
            bias=solution.bias,
            entries=[entry, *solution.entries],
            sampler=solution.sampler,
        )
