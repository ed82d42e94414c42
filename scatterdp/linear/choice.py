"""Which method, and with which settings: functions of public numbers alone (N, D, C, ε, δ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import dp_accounting

from scatterdp.errors import ConfigError
from scatterdp.linear.class_means import ClassMeans
from scatterdp.linear.gradient_descent import GradientDescent
from scatterdp.linear.least_squares import LeastSquares
from scatterdp.linear.method import Method, Problem
from scatterdp.linear.newton import Newton
from scatterdp.linear.preconditioned import PreconditionedDescent
from scatterdp.privacy.accounting import Accountant
from scatterdp.privacy.calibration import calibrate_noise_multiplier

HeadName = Literal["auto", "dp_sgd", "gradient_descent", "preconditioned", "newton", "least_squares", "class_means"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)

CENTRE_SHARE = 0.05
COVARIANCE_SHARE = 0.2
LARGEST_FULL_BATCH = 100_000


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent.

    Args:
        epsilon, delta: of everything together.
        accountant: which ε counts.
    """

    epsilon: float
    delta: float
    accountant: Accountant = "pld"

    def one_release(self, share: float) -> float:
        """The noise multiplier of one Gaussian release that takes so much of the budget, in the sense in which 1/σ² adds up.

        The share is a plan, not an account: what the release and the rest really cost together is solved for afterwards.
        """
        alone = calibrate_noise_multiplier(
            dp_accounting.GaussianDpEvent,
            target_epsilon=self.epsilon,
            target_delta=self.delta,
            accountant=self.accountant,
        )
        return alone / share**0.5


def worth_centring(problem: Problem, budget: Budget) -> bool:
    """Whether the mean is worth its share: when its noise is short beside unit rows."""
    return problem.num_features**0.5 * budget.one_release(CENTRE_SHARE) / problem.num_examples < 0.25


def choose(problem: Problem, budget: Budget) -> HeadName:
    """The documented rule behind ``head="auto"``."""
    del budget
    if problem.num_examples < 20 * problem.num_classes:
        return "class_means"
    return "gradient_descent" if problem.num_examples <= LARGEST_FULL_BATCH else "dp_sgd"


def make_method(name: HeadName, problem: Problem, budget: Budget, *, channels: int | None = None) -> Method:
    """A method by name, its settings filled from public numbers.

    Args:
        name: one of :data:`HEADS`.
        problem, budget: public.
        channels: the rows are maps of so many channels.

    Raises:
        ConfigError: an unknown name, or a problem that the method does not take.
    """
    if name not in HEADS:
        raise ConfigError(f"head={name!r}: expected one of {', '.join(HEADS)}")
    return _MAKERS[choose(problem, budget) if name == "auto" else name](problem, budget, channels)


def _descent(problem: Problem, budget: Budget, channels: int | None) -> GradientDescent:
    del budget, channels
    return GradientDescent(problem=problem, batch_size=problem.num_examples, epochs=100, lr=32.0)


def _dp_sgd(problem: Problem, budget: Budget, channels: int | None) -> GradientDescent:
    del budget, channels
    batch_size = max(min(problem.num_examples, 256), problem.num_examples // 8)
    return GradientDescent(problem=problem, batch_size=batch_size, epochs=20, lr=16.0)


def _preconditioned(problem: Problem, budget: Budget, channels: int | None) -> PreconditionedDescent:
    return PreconditionedDescent(
        descent=_descent(problem, budget, channels),
        covariance_noise_multiplier=budget.one_release(COVARIANCE_SHARE),
        channels=channels,
    )


_MAKERS: dict[HeadName, Callable[[Problem, Budget, int | None], Method]] = {
    "dp_sgd": _dp_sgd,
    "gradient_descent": _descent,
    "preconditioned": _preconditioned,
    "newton": lambda problem, budget, channels: Newton(problem=problem),
    "least_squares": lambda problem, budget, channels: LeastSquares(problem=problem),
    "class_means": lambda problem, budget, channels: ClassMeans(problem=problem),
}
