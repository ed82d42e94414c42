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
from scatterdp.linear.method import MOST_FEATURES, Method, Problem
from scatterdp.linear.newton import Newton
from scatterdp.linear.preconditioned import PreconditionedDescent
from scatterdp.privacy.accounting import Accountant
from scatterdp.privacy.calibration import calibrate_noise_multiplier

HeadName = Literal["auto", "dp_sgd", "gradient_descent", "preconditioned", "newton", "least_squares", "class_means"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)

CENTRE_SHARE = 0.05
COVARIANCE_SHARE = 0.1
LARGEST_FULL_BATCH = 100_000
FULL_BATCH_STEPS = 100
SAMPLED_EPOCHS = 20
MAX_GRAD_NORM = 0.5
_LONGEST_STEP = 32.0  # of the weights, for one clipped mean gradient of full length
_NOISE_OF_ALL_STEPS = 0.15  # of each weight, times √steps, without momentum


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
    return _noise_beside_rows(problem, budget) / CENTRE_SHARE**0.5 < 0.25


def choose(problem: Problem, budget: Budget, *, channels: int | None = None) -> HeadName:
    """The rule behind ``head="auto"``. With r = √D · σ₁ / N, the length of one release's noise beside a row's:

    | when | head |
    |---|---|
    | r > 0.03: few examples, or a tiny ε | ``class_means`` |
    | maps of channels, at most 2048 of them, and r < 0.01 | ``preconditioned`` |
    | otherwise | ``gradient_descent`` up to 100 000 examples, ``dp_sgd`` above |

    Measured on digits, MNIST and Fashion-MNIST; scripts/compare_heads.py prints the figures.
    """
    noise = _noise_beside_rows(problem, budget)
    if noise > 0.03:
        return "class_means"
    if channels is not None and channels <= MOST_FEATURES and noise < 0.01:
        return "preconditioned"
    return _descent_of(problem)


def _descent_of(problem: Problem) -> HeadName:
    return "gradient_descent" if problem.num_examples <= LARGEST_FULL_BATCH else "dp_sgd"


def _noise_beside_rows(problem: Problem, budget: Budget) -> float:
    return problem.num_features**0.5 * budget.one_release(1.0) / problem.num_examples


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
    return _MAKERS[choose(problem, budget, channels=channels) if name == "auto" else name](problem, budget, channels)


def _descent(problem: Problem, budget: Budget, name: HeadName) -> GradientDescent:
    """A learning rate at which the noise of all steps stays a fixed small length, and that is stable without noise."""
    full = name == "gradient_descent"
    batch_size = problem.num_examples if full else max(1, problem.num_examples // 8)
    epochs = FULL_BATCH_STEPS if full else SAMPLED_EPOCHS
    steps = problem.num_examples // batch_size * epochs
    step = min(_LONGEST_STEP, _NOISE_OF_ALL_STEPS * problem.num_examples / (budget.one_release(1.0) * steps))
    return GradientDescent(
        problem=problem, batch_size=batch_size, epochs=epochs, lr=step / MAX_GRAD_NORM, max_grad_norm=MAX_GRAD_NORM
    )


def _preconditioned(problem: Problem, budget: Budget, channels: int | None) -> PreconditionedDescent:
    return PreconditionedDescent(
        descent=_descent(problem, budget, _descent_of(problem)),
        covariance_noise_multiplier=budget.one_release(COVARIANCE_SHARE),
        channels=channels,
    )


_MAKERS: dict[HeadName, Callable[[Problem, Budget, int | None], Method]] = {
    "dp_sgd": lambda problem, budget, channels: _descent(problem, budget, "dp_sgd"),
    "gradient_descent": lambda problem, budget, channels: _descent(problem, budget, "gradient_descent"),
    "preconditioned": _preconditioned,
    "newton": lambda problem, budget, channels: Newton(problem=problem),
    "least_squares": lambda problem, budget, channels: LeastSquares(problem=problem),
    "class_means": lambda problem, budget, channels: ClassMeans(problem=problem),
}
