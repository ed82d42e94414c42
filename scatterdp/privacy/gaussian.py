r"""The exact ε of compositions of Gaussian mechanisms.

Gaussian mechanisms of noise multipliers :math:`\sigma_i` together are one Gaussian mechanism with :math:`1/\sigma^2 = \sum_i 1/\sigma_i^2`, under the same
adjacency: their privacy losses are normal and add up (Dong, Roth & Su 2022, corollary 3.3). With :math:`\mu = 1/\sigma`, it is (ε, δ)-private exactly when

.. math::
    \delta \ge \Phi(\mu/2 - \varepsilon/\mu) - e^\varepsilon\,\Phi(-\mu/2 - \varepsilon/\mu)

(Balle & Wang 2018, arXiv 1805.06530, theorem 8). No discretisation, and microseconds where privacy loss distributions take seconds.

>>> round(gaussian_epsilon(4.0, delta=1e-5), 4)
0.9263
"""

from __future__ import annotations

import math

import dp_accounting
from scipy.optimize import root_scalar
from scipy.special import log_ndtr

_ROUNDING = 1e-9  # added to ε: the root is that exact, and an answer must not be below the truth


def inverse_square_sum(event: dp_accounting.DpEvent) -> float | None:
    """Σ 1/σ² of an event made of Gaussian mechanisms alone; None when something else is in it."""
    match event:
        case dp_accounting.NoOpDpEvent():
            return 0.0
        case dp_accounting.GaussianDpEvent():
            return math.inf if event.noise_multiplier == 0 else event.noise_multiplier**-2
        case dp_accounting.SelfComposedDpEvent():
            one = inverse_square_sum(event.event)
            return None if one is None else event.count * one if event.count else 0.0
        case dp_accounting.ComposedDpEvent():
            parts = [inverse_square_sum(part) for part in event.events]
            return None if None in parts else math.fsum(part for part in parts if part is not None)
    return None


def gaussian_epsilon(noise_multiplier: float, *, delta: float) -> float:
    """The smallest ε ≥ 0 for which the Gaussian mechanism is (ε, δ)-private, rounded up in its tenth digit.

    Args:
        noise_multiplier: σ > 0; ``inf`` for no release at all.
        delta: δ in (0, 1).
    """
    if math.isinf(noise_multiplier):
        return 0.0
    mu = 1 / noise_multiplier
    if _log_delta(0.0, mu) <= math.log(delta):
        return 0.0
    high = 1.0
    while _log_delta(high, mu) > math.log(delta):
        high *= 2
    root = root_scalar(lambda epsilon: _log_delta(epsilon, mu) - math.log(delta), bracket=(0.0, high), xtol=1e-13).root
    return root * (1 + _ROUNDING) + 1e-12


def _log_delta(epsilon: float, mu: float) -> float:
    """ln δ(ε): both terms are kept as logarithms, so that neither tail nor e^ε leaves the range of numbers."""
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    difference = second - first
    return first + math.log(-math.expm1(difference)) if difference < 0 else -math.inf
