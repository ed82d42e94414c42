"""Solve for a parameter within a budget; the answer never overspends.

The unknown is one number that ε is monotone in (a noise multiplier, a number of steps); the whole ledger is a
function of it. A coarse accountant brackets, the asked one decides, and the answer is checked by the very call
that later writes ε into the certificate.

>>> import dp_accounting
>>> sigma = calibrate_noise_multiplier(dp_accounting.GaussianDpEvent, target_epsilon=1.0, target_delta=1e-5)
>>> 3.729 < sigma < 3.733  # the exact curve (Balle & Wang 2018) gives 3.7304
True
"""

from __future__ import annotations

import math
from collections.abc import Callable

import dp_accounting

from scatterdp.errors import BudgetError, ConfigError
from scatterdp.privacy.accounting import Accountant, epsilon_of

_LARGEST = 1e6
_SMALLEST = 1e-2
_TOLERANCE = 2e-4
_COARSE = 1e-3
_FINE = 1e-4


def calibrate_noise_multiplier(
    make_event: Callable[[float], dp_accounting.DpEvent],
    *,
    target_epsilon: float,
    target_delta: float,
    accountant: Accountant = "pld",
    prior: dp_accounting.DpEvent | None = None,
) -> float:
    """A noise multiplier whose whole ledger is within the target, within 1e-3 (relative) of the smallest; 4 decimals.

    Args:
        make_event: σ → the event to calibrate, less private for smaller σ.
        target_epsilon: ε > 0 of everything together.
        target_delta: δ.
        accountant: which ε counts.
        prior: what is (or will be) spent beside it.

    Raises:
        BudgetError: the prior alone exceeds the target, or no σ up to a million meets it.
        ConfigError: a target out of range.
    """
    check_target(target_epsilon, target_delta)
    prior = prior or dp_accounting.NoOpDpEvent()
    spent = epsilon_of(prior, delta=target_delta, accountant=accountant)
    if spent >= target_epsilon:
        raise BudgetError(
            f"target_epsilon={target_epsilon}: what is spent beside training (statistics, validation) is already "
            f"ε = {spent:.3f} at δ = {target_delta:g}; raise target_epsilon, or release these with more noise "
            "(--bn_noise_multiplier, --validation_noise_multiplier), or no statistics (--input_norm=GroupNorm)"
        )

    def epsilon(sigma: float, discretization: float) -> float:
        event = dp_accounting.ComposedDpEvent([prior, make_event(sigma)])
        return epsilon_of(event, delta=target_delta, accountant=accountant, discretization=discretization)

    high = 1.0
    while epsilon(high, _COARSE) > target_epsilon:
        high *= 2
        if high > _LARGEST:
            raise BudgetError(
                f"target_epsilon={target_epsilon}: no noise multiplier up to {_LARGEST:g} meets it beside the "
                f"ε = {spent:.3f} spent beside training; raise target_epsilon or target_delta"
            )
    low = high / 2
    while low > _SMALLEST and epsilon(low, _COARSE) <= target_epsilon:
        high, low = low, low / 2
    high = _bisect(lambda sigma: epsilon(sigma, _COARSE) <= target_epsilon, low, high)
    if accountant == "pld":
        # The coarse buckets overstate ε a little, so their answer is an upper end that is nearly tight.
        low = high * 0.998
        while low > _SMALLEST and epsilon(low, _FINE) <= target_epsilon:
            high, low = low, low - 4 * (high - low)
        high = _bisect(lambda sigma: epsilon(sigma, _FINE) <= target_epsilon, low, high)
    sigma = math.ceil(high * 1e4) / 1e4
    while epsilon(sigma, _FINE) > target_epsilon:  # numerical ε is monotone only up to its rounding
        sigma = math.ceil(sigma * 1.0001 * 1e4) / 1e4
    return sigma


def calibrate_steps(
    make_event: Callable[[int], dp_accounting.DpEvent],
    *,
    most: int,
    max_epsilon: float,
    delta: float,
    accountant: Accountant = "pld",
) -> int:
    """The largest number of steps up to ``most`` whose whole ledger, ``make_event(steps)``, is within ``max_epsilon``.

    Raises:
        BudgetError: not even one step fits.
        ConfigError: a target out of range.
    """
    check_target(max_epsilon, delta, name="max_epsilon")

    def fits(steps: int) -> bool:
        return epsilon_of(make_event(steps), delta=delta, accountant=accountant) <= max_epsilon

    if fits(most):
        return most
    if not fits(1):
        raise BudgetError(
            f"max_epsilon={max_epsilon}: one step already spends more (δ = {delta:g}); raise max_epsilon or noise_multiplier"
        )
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_target(target_epsilon: float, target_delta: float, *, name: str = "target_epsilon") -> None:
    """Raise ConfigError unless ε, called ``name``, is a finite number > 0 and δ lies in (0, 1)."""
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise ConfigError(f"{name}={target_epsilon}: expected a finite number > 0")
    if not 0 < target_delta < 1:
        raise ConfigError(f"target_delta={target_delta}: expected a number between 0 and 1")


def _bisect(feasible: Callable[[float], bool], low: float, high: float) -> float:
    """A feasible point within ``_TOLERANCE`` (relative) of the boundary; ``high`` is feasible, ``low`` may be."""
    while high - low > _TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (low, middle) if feasible(middle) else (middle, high)
    return high
