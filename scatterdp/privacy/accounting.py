"""From a privacy event to ε: three accountants under one name each.

| name | method | conversion to ε at δ |
|---|---|---|
| ``pld`` | privacy loss distributions, both directions of add/remove (Koskela et al. 2020; Doroshenko et al. 2022) | numerical, pessimistic rounding |
| ``rdp`` | Rényi DP of the Poisson-subsampled Gaussian (Mironov et al. 2019) | tight (Canonne, Kamath & Steinke 2020, Prop. 12) |
| ``rdp_classic`` | the same divergences over :data:`scatterdp.privacy.renyi.ORDERS` | ``ε = min_α rdp(α) + ln(1/δ)/(α-1)`` (Mironov 2017, Prop. 3) |

All three are upper bounds on the same true ε; ``pld`` is the smallest in practice and the default (where RDP says that ε is
in the hundreds, where δ is too small for the numerics of ``pld``, or where the best of a random number of runs is released,
RDP's bound is returned under every name; where all is
Gaussian and nothing is sampled, ``pld`` is the exact curve of :mod:`scatterdp.privacy.gaussian`).

>>> import dp_accounting
>>> round(epsilon_of(dp_accounting.GaussianDpEvent(4.0), delta=1e-5), 3)
0.926
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp
from dp_accounting.dp_event import RepeatAndSelectDpEvent

from scatterdp.errors import ConfigError
from scatterdp.privacy import renyi
from scatterdp.privacy.gaussian import gaussian_epsilon, inverse_square_sum

Accountant = Literal["pld", "rdp", "rdp_classic"]
ACCOUNTANTS: tuple[Accountant, ...] = get_args(Accountant)

ADJACENCY = (
    "add or remove one example (N, image size and colour, and the classes are public; sample rate, steps, noise and divisors "
    "stay those of N)"
)

# Above this ε nothing is protected; privacy loss distributions would take gigabytes to say it more exactly.
_PLD_LIMIT = 200.0
_WHOLE_ORDERS = tuple(range(2, 64))  # a closed form each, no series
_ALL_ORDERS = tuple(rdp.RdpAccountant().orders.tolist())


def epsilon_of(
    event: dp_accounting.DpEvent,
    *,
    delta: float,
    accountant: Accountant = "pld",
    discretization: float = 1e-4,
) -> float:
    """ε that ``event`` spends at ``delta``.

    Args:
        event: any composition of ``dp_accounting`` events that the accountant supports.
        delta: δ in (0, 1).
        accountant: one of :data:`ACCOUNTANTS`.
        discretization: width of a privacy-loss bucket (``pld`` only). Coarser is faster and larger, never smaller
            than the truth.

    Returns:
        ε ≥ 0; ``inf`` when the event is not private (no noise).

    Raises:
        ConfigError: δ out of range, an unknown accountant, an event that it cannot account.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta={delta}: expected a number between 0 and 1")
    if accountant not in ACCOUNTANTS:
        raise ConfigError(f"accountant={accountant!r}: expected one of {', '.join(ACCOUNTANTS)}")
    if is_noiseless(event):
        return math.inf
    if accountant == "rdp_classic":
        return renyi.classic_epsilon(_divergences(event, renyi.ORDERS), delta)
    if accountant == "rdp":
        return _moments(event, delta, _ALL_ORDERS)
    if _has_selection(event):
        return _moments(event, delta, _ALL_ORDERS)
    inverse_squares = inverse_square_sum(event)
    if inverse_squares is not None:
        return gaussian_epsilon(inverse_squares**-0.5 if inverse_squares else math.inf, delta=delta)
    bound = _moments(event, delta, _WHOLE_ORDERS)
    if bound > _PLD_LIMIT:
        return _moments(event, delta, _ALL_ORDERS)
    try:
        with renyi.quiet_logging():
            composed = pld.PLDAccountant(value_discretization_interval=discretization).compose(event)
    except dp_accounting.UnsupportedEventError as error:
        raise ConfigError(f"event {event}: the pld accountant cannot account it ({error})") from error
    epsilon = float(composed.get_epsilon(delta))
    if not math.isfinite(epsilon):  # below about 1e-15 the mass that the numerics leave out exceeds δ
        return _moments(event, delta, _ALL_ORDERS)
    return max(0.0, min(epsilon, bound))


def _moments(event: dp_accounting.DpEvent, delta: float, orders: tuple[float, ...]) -> float:
    return renyi.tight_epsilon(_divergences(event, orders), delta, orders)


def _divergences(event: dp_accounting.DpEvent, orders: tuple[float, ...]) -> np.ndarray:
    try:
        return renyi.divergences_of(event, orders)
    except dp_accounting.UnsupportedEventError as error:
        raise ConfigError(f"event {event}: the rdp accountant cannot account it ({error})") from error


def delta_warning(delta: float, num_examples: int) -> str | None:
    """A sentence where δ is too large to mean anything, else None.

    >>> delta_warning(1e-5, 1000)
    >>> delta_warning(0.01, 1000)
    'δ = 0.01 is not below 1/N = 0.001: it would allow publishing an example outright'
    """
    if delta < 1 / num_examples:
        return None
    return f"δ = {delta:g} is not below 1/N = {1 / num_examples:.2g}: it would allow publishing an example outright"


def is_noiseless(event: dp_accounting.DpEvent) -> bool:
    """Whether some part of ``event`` adds no noise, so that no ε bounds it."""
    match event:
        case dp_accounting.NonPrivateDpEvent():
            return True
        case dp_accounting.GaussianDpEvent():
            return not event.noise_multiplier > 0
        case dp_accounting.PoissonSampledDpEvent():
            return event.sampling_probability > 0 and is_noiseless(event.event)
        case dp_accounting.SelfComposedDpEvent():
            return event.count > 0 and is_noiseless(event.event)
        case dp_accounting.ComposedDpEvent():
            return any(is_noiseless(part) for part in event.events)
        case RepeatAndSelectDpEvent():
            return is_noiseless(event.event)
    return False


def _has_selection(event: dp_accounting.DpEvent) -> bool:
    """Whether the best of a random number of runs is in it: there is a theory by Rényi divergences, none by privacy losses."""
    match event:
        case RepeatAndSelectDpEvent():
            return True
        case dp_accounting.ComposedDpEvent():
            return any(_has_selection(part) for part in event.events)
        case dp_accounting.SelfComposedDpEvent():
            return _has_selection(event.event)
    return False
