r"""What choosing among several private fits costs.

Every fit is a release of its own, so k fits, with all their results, cost the composition of their events. Less is spent where only the best of them
leaves and their number is random and secret (Papernot & Steinke 2021, "Hyperparameter Tuning with Rényi Differential Privacy", arXiv 2110.03620). For
trials that are :math:`(\lambda, \varepsilon)`- and :math:`(\hat\lambda, \hat\varepsilon)`-RDP each, and K from the truncated negative binomial distribution
:math:`\mathcal D_{\eta,\gamma}`, the best of K is :math:`(\lambda, \varepsilon')`-RDP with (theorem 2)

.. math::
    \varepsilon' = \varepsilon + (1+\eta)\Bigl(1 - \tfrac1{\hat\lambda}\Bigr)\hat\varepsilon
        + \frac{(1+\eta)\ln(1/\gamma)}{\hat\lambda} + \frac{\ln\mathbb E K}{\lambda - 1},

and for K from a Poisson distribution of mean μ, trials :math:`(\hat\varepsilon, \hat\delta)`-private with :math:`e^{\hat\varepsilon} \le 1 + 1/(\lambda-1)` (theorem 6)

.. math:: \varepsilon' = \varepsilon + \mu\hat\delta + \frac{\ln\mu}{\lambda - 1}.

The formulas are evaluated by ``dp_accounting`` (``RepeatAndSelectDpEvent``); the distributions are here.

>>> trials = NumberOfTrials(mean=10.0, shape=1.0)                  # geometric
>>> from scatterdp.privacy.accounting import epsilon_of
>>> one = dp_accounting.GaussianDpEvent(8.0)
>>> round(epsilon_of(one, delta=1e-5), 2), round(epsilon_of(trials.event(one), delta=1e-5), 2)
(0.43, 1.07)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from scipy.optimize import brentq

from scatterdp.errors import ConfigError
from scatterdp.privacy.randomness import RandomKey

_LEAST, _MOST = 1.01, 10_000  # means of searches that anyone runs


@dataclass(frozen=True, kw_only=True)
class NumberOfTrials:
    """The distribution of K.

    Args:
        mean: :math:`\\mathbb E K`, 1.01 to 10000.
        shape: η of the truncated negative binomial (K ≥ 1): 1 is geometric, 0 logarithmic, fewer than 0 are heavier-tailed still and not served. ``inf``: Poisson,
            which may be 0.

    Raises:
        ConfigError: a value out of range.
    """

    mean: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        if not _LEAST <= self.mean <= _MOST:
            raise ConfigError(f"mean={self.mean}: expected a mean number of trials of {_LEAST} to {_MOST}")
        if not self.shape >= 0:
            raise ConfigError(f"shape={self.shape}: expected a number ≥ 0, or inf for Poisson")

    def event(self, trial: dp_accounting.DpEvent) -> dp_accounting.DpEvent:
        """Of releasing the best of K trials of this event."""
        return RepeatAndSelectDpEvent(trial, self.mean, self.shape)

    def divergences(self, trial: np.ndarray, orders: Sequence[float]) -> np.ndarray:
        """Theorem 2 for trials that have no event of their own: a trial that first draws a candidate costs, at each order, no more than the costliest.

        Args:
            trial: ``(len(orders),)`` Rényi divergences of one trial; where candidates differ, the largest of theirs at each order.
            orders: each > 1.

        Returns:
            ``(len(orders),)`` divergences of the best of K trials.

        Raises:
            ValueError: a Poisson number of trials, which is another theorem's.
        """
        eta, at = self.shape, np.asarray(orders, np.float64)
        price = (1 + eta) * ((1 - 1 / at) * trial + math.log(1 / self.gamma) / at)
        return trial + price.min() + math.log(self.mean) / (at - 1)

    @property
    def gamma(self) -> float:
        """γ of the truncated negative binomial whose mean is the one that was asked for, or a little less."""
        if math.isinf(self.shape):
            raise ValueError("shape=inf: a Poisson distribution has no gamma")
        root: Any = brentq(lambda g: math.log(_mean_of(math.exp(g), self.shape) / self.mean), -60.0, -1e-9, xtol=1e-14)
        gamma = math.exp(root)
        while _mean_of(gamma, self.shape) > self.mean:
            gamma *= 1 + 1e-12
        return gamma

    def probability(self, k: np.ndarray) -> np.ndarray:
        """Of k = 0, 1, … (definition 1 of the paper)."""
        from scipy.special import gammaln

        k = np.asarray(k, np.float64)
        if math.isinf(self.shape):
            return np.exp(k * math.log(self.mean) - self.mean - gammaln(k + 1))
        eta, gamma = self.shape, self.gamma
        with np.errstate(divide="ignore"):
            powers = k * math.log1p(-gamma)
            if eta == 0:
                found = np.exp(powers - np.log(k)) / math.log(1 / gamma)
            else:
                binomial = gammaln(k + eta) - gammaln(k + 1) - gammaln(eta)
                found = np.exp(powers + binomial) / math.expm1(-eta * math.log(gamma))
        return np.where(k > 0, found, 0.0)

    def draw(self, key: RandomKey) -> int:
        """K, a function of the key: nobody must learn it who may not learn all trials' results."""
        uniform = (float(key.words("number of trials", counter=0, count=1)[0] >> np.uint64(11)) + 0.5) * 2.0**-53
        total, start, width = 0.0, 0, 4096
        while True:
            cumulative = total + self.probability(np.arange(start, start + width)).cumsum()
            if cumulative[-1] > uniform or start > 1000 * self.mean + width:
                return start + min(int((cumulative <= uniform).sum()), width - 1)
            total, start = cumulative[-1], start + width

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``shape`` is null for Poisson."""
        return {"mean": self.mean, "shape": None if math.isinf(self.shape) else self.shape}


def _mean_of(gamma: float, shape: float) -> float:
    """:math:`\\mathbb E K` of the truncated negative binomial."""
    if shape == 0:
        return (1 / gamma - 1) / math.log(1 / gamma)
    return shape * (1 - gamma) / (gamma * -math.expm1(shape * math.log(gamma)))
