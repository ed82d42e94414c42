"""Witnesses that share no code with the package: the exact Gaussian curve and two tests of normality."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """δ(ε) of a Gaussian mechanism with sensitivity ÷ deviation μ (Balle & Wang 2018, Theorem 8)."""
    return float(stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)))


def _gaussian_epsilon(noise_multipliers: list[float], delta: float) -> float:
    mu = math.sqrt(sum(1 / sigma**2 for sigma in noise_multipliers))
    if _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    return optimize.root_scalar(
        lambda epsilon: _gaussian_delta(epsilon, mu) - delta, bracket=(0, 1000), xtol=1e-13
    ).root


@pytest.fixture(scope="session")
def exact_gaussian_epsilon() -> Callable[[list[float], float], float]:
    """``(noise multiplier of each release, δ) -> ε``: k Gaussians are one with μ² = Σ 1/σ²."""
    return _gaussian_epsilon


@pytest.fixture(scope="session")
def looks_standard_normal() -> Callable[[np.ndarray], bool]:
    """Whether a sample passes a two-sided χ² test of its mean square and a Kolmogorov-Smirnov test, both at 1e-4."""

    def looks(sample: np.ndarray) -> bool:
        sample = np.asarray(sample, dtype=np.float64).ravel()
        chi2 = stats.chi2(len(sample))
        total = float(np.square(sample).sum())
        variance_p = 2 * min(chi2.cdf(total), chi2.sf(total))
        return bool(min(variance_p, stats.kstest(sample, "norm").pvalue) > 1e-4)

    return looks
