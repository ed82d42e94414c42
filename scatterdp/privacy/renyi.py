"""Rényi-DP accounting by orders: the library calls of the published commands.

For each order α the divergence of the Poisson-subsampled Gaussian (Mironov, Talwar & Zhang 2019, arXiv
1908.10530) adds up over steps; one conversion turns the sums into ε at δ. ``conversion="classic"`` is
``ε = min_α rdp(α) + ln(1/δ)/(α-1)`` (Mironov 2017), which the published noise multipliers were computed with;
``"tight"`` is Canonne, Kamath & Steinke 2020 (arXiv 2004.00010), Proposition 12: the same guarantee, less noise.

>>> rdp_of_statistics = 2 * get_renyi_divergence(1, 8)
>>> sigma = get_noise_mul(50000, 8192, 3, 60, rdp_init=rdp_of_statistics, conversion="classic")
>>> round(sigma, 2)
5.67
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import dp_accounting
import numpy as np
from absl import logging
from dp_accounting import rdp
from dp_accounting.rdp import rdp_privacy_accountant

from scatterdp.errors import BudgetError, ConfigError

Conversion = Literal["tight", "classic"]

#: 1.1 … 10.9 by 0.1, then 12 … 63: the orders of the published computation.
ORDERS: tuple[float, ...] = tuple(1 + x / 10 for x in range(1, 100)) + tuple(range(12, 64))

_SMALLEST_NOISE, _LARGEST_NOISE = 0.1, 100.0
_EPSILON_BRACKET = 0.01


def divergences_of(event: dp_accounting.DpEvent, orders: tuple[float, ...] = ORDERS) -> np.ndarray:
    """``(len(orders),)`` Rényi divergences of an event, add/remove-one adjacency; ``inf`` where they cannot be computed.

    Whole orders are exact; between them dp-accounting's answer for a sampled Gaussian is an upper bound.
    """
    if not min(orders) > 1:
        raise ConfigError(f"orders={min(orders)}, …: expected numbers > 1")
    with quiet_logging():
        divergences = rdp.RdpAccountant(orders=orders).compose(event).rdp
    # A divergence is never negative: below 0 (or NaN) the computation has overflowed, which must not look private.
    return np.where(divergences >= 0, divergences, np.inf)


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence dp-accounting's warning that an order is left out; leaving orders out only raises ε."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def classic_epsilon(divergences: np.ndarray, delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """``min_α rdp(α) + ln(1/δ)/(α-1)``, not below 0 (Mironov 2017, Proposition 3)."""
    return _sound(float(np.min(divergences - np.log(delta) / (np.asarray(orders) - 1))))


def tight_epsilon(divergences: np.ndarray, delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """Canonne, Kamath & Steinke 2020, Proposition 12, minimised over the orders."""
    if not np.isfinite(divergences).any():
        return math.inf
    return _sound(float(rdp_privacy_accountant.compute_epsilon(orders, divergences.tolist(), delta)[0]))


def _sound(epsilon: float) -> float:
    """At least 0, and ``inf`` for what is not a number."""
    return math.inf if math.isnan(epsilon) else max(0.0, epsilon)


def get_renyi_divergence(sample_rate: float, noise_multiplier: float, orders: tuple[float, ...] = ORDERS) -> np.ndarray:
    """``(len(orders),)`` Rényi divergences of one release.

    Args:
        sample_rate: Poisson inclusion probability q in (0, 1]; 1 is the plain Gaussian, ``α / (2σ²)``.
        noise_multiplier: σ > 0, noise standard deviation ÷ L2 sensitivity.
        orders: the Rényi orders, each > 1.
    """
    if not 0 < sample_rate <= 1:
        raise ConfigError(f"sample_rate={sample_rate}: expected a number in (0, 1]")
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ConfigError(f"noise_multiplier={noise_multiplier}: expected a finite number > 0")
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    return divergences_of(dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian), orders)


def get_epsilon(
    num_samples: int,
    batch_size: int,
    noise_multiplier: float,
    epochs: int,
    rdp_init: float | np.ndarray = 0,
    target_delta: float = 1e-5,
    orders: tuple[float, ...] = ORDERS,
    conversion: Conversion = "tight",
) -> float:
    """ε at ``target_delta`` of ⌊num_samples / batch_size⌋ · epochs Poisson-sampled steps after ``rdp_init``.

    Args:
        num_samples: N.
        batch_size: expected batch size; the sample rate is ``batch_size / num_samples``.
        noise_multiplier: σ > 0 of every step.
        epochs: passes; an epoch is ⌊N / batch_size⌋ steps.
        rdp_init: divergences already spent, one an order (``2 * get_renyi_divergence(1, 8)``), or 0.
        target_delta: δ.
        orders: the Rényi orders.
        conversion: ``"tight"`` or ``"classic"``.

    Raises:
        ConfigError: a value out of range.
    """
    if not 0 < batch_size <= num_samples:
        raise ConfigError(f"batch_size={batch_size}: expected 1 to num_samples={num_samples}")
    if epochs < 1:
        raise ConfigError(f"epochs={epochs}: expected at least 1")
    if not 0 < target_delta < 1:
        raise ConfigError(f"target_delta={target_delta}: expected a number between 0 and 1")
    if conversion not in ("tight", "classic"):
        raise ConfigError(f"conversion={conversion!r}: expected 'tight' or 'classic'")
    if not np.all(np.asarray(rdp_init) >= 0):
        raise ConfigError("rdp_init: expected divergences ≥ 0, one an order")
    steps = (num_samples // batch_size) * epochs
    spent = rdp_init + steps * get_renyi_divergence(batch_size / num_samples, noise_multiplier, orders)
    convert = tight_epsilon if conversion == "tight" else classic_epsilon
    return convert(spent, target_delta, orders)


def get_noise_mul(
    num_samples: int,
    batch_size: int,
    target_epsilon: float,
    epochs: int,
    rdp_init: float | np.ndarray = 0,
    target_delta: float = 1e-5,
    orders: tuple[float, ...] = ORDERS,
    conversion: Conversion = "tight",
) -> float:
    """The noise multiplier whose total is (``target_epsilon``, ``target_delta``): bisection on [0.1, 100].

    It stops when ε at the two ends differs by less than 0.01 and returns the end that does not overspend.
    Arguments are those of :func:`get_epsilon`.

    Raises:
        BudgetError: ``rdp_init`` alone spends the target, or no σ ≤ 100 meets it.
        ConfigError: a value out of range.
    """
    if not target_epsilon > 0:
        raise ConfigError(f"target_epsilon={target_epsilon}: expected a number > 0")

    def epsilon(noise_multiplier: float) -> float:
        return get_epsilon(
            num_samples, batch_size, noise_multiplier, epochs, rdp_init, target_delta, orders, conversion
        )

    feasible, infeasible = _LARGEST_NOISE, _SMALLEST_NOISE
    epsilon_feasible, epsilon_infeasible = epsilon(feasible), epsilon(infeasible)
    if epsilon_feasible > target_epsilon:
        raise BudgetError(
            f"target_epsilon={target_epsilon}: already the largest noise multiplier, {_LARGEST_NOISE:g}, spends "
            f"ε = {epsilon_feasible:.3f} (delta={target_delta}); raise target_epsilon, or spend less in rdp_init"
        )
    if epsilon_infeasible <= target_epsilon:
        return infeasible
    while epsilon_infeasible - epsilon_feasible > _EPSILON_BRACKET:
        middle = (feasible + infeasible) / 2
        epsilon_middle = epsilon(middle)
        if epsilon_middle <= target_epsilon:
            feasible, epsilon_feasible = middle, epsilon_middle
        else:
            infeasible, epsilon_infeasible = middle, epsilon_middle
    return feasible
