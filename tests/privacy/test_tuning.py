"""The best of a random number of trials: its theorems against formulas written out again, and against exact divergences."""

from __future__ import annotations

import json
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from scipy.stats import norm

from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import ACCOUNTANTS, epsilon_of, is_noiseless
from scatterdp.privacy.ledger import Ledger, LedgerEntry, event_from_json, event_to_json
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.renyi import divergences_of
from scatterdp.privacy.tuning import NumberOfTrials

ORDERS = tuple(rdp.RdpAccountant().orders.tolist())
KINDS = [(10.0, 1.0), (10.0, 0.0), (40.0, 0.5), (3.0, 2.5), (10.0, math.inf)]


def gamma_by_mean(mean: float, shape: float) -> float:
    """By bisection of the mean's formula, the plain way."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        if shape == 0:
            found = (1 / middle - 1) / math.log(1 / middle)
        else:
            found = shape * (1 - middle) / (middle * (1 - middle**shape))
        low, high = (middle, high) if found > mean else (low, middle)
    return low


def theorem_2(orders: np.ndarray, single: np.ndarray, mean: float, shape: float) -> np.ndarray:
    gamma = gamma_by_mean(mean, shape)
    best = min(
        (1 + shape) * (1 - 1 / other) * at_other + (1 + shape) * math.log(1 / gamma) / other
        for other, at_other in zip(orders, single, strict=True)
    )
    return single + best + math.log(mean) / (orders - 1)


class TestTheorems:
    @pytest.mark.parametrize(("mean", "shape"), [kind for kind in KINDS if kind[1] < math.inf])
    @pytest.mark.parametrize("sigma", [2.0, 8.0])
    def test_theorem_2_as_it_is_written(self, mean, shape, sigma):
        one = dp_accounting.GaussianDpEvent(sigma)
        orders = np.array(ORDERS)
        expected = theorem_2(orders, orders / (2 * sigma**2), mean, shape)
        found = divergences_of(NumberOfTrials(mean=mean, shape=shape).event(one), ORDERS)
        # A divergence grows with its order, so a larger order's bound serves a smaller one.
        running = np.minimum.accumulate(expected[::-1])[::-1]
        np.testing.assert_allclose(found, running, rtol=1e-6)

    def test_theorem_6_as_it_is_written(self):
        sigma, mean = 6.0, 10.0
        found = divergences_of(
            NumberOfTrials(mean=mean, shape=math.inf).event(dp_accounting.GaussianDpEvent(sigma)), ORDERS
        )
        for order, at_order in zip(ORDERS, found, strict=True):
            e = math.log1p(1 / (order - 1))
            # The exact δ of the Gaussian at that ε; the library's comes from its divergences and is larger.
            delta = norm.cdf(1 / (2 * sigma) - e * sigma) - math.exp(e) * norm.cdf(-1 / (2 * sigma) - e * sigma)
            least = order / (2 * sigma**2) + mean * delta + math.log(mean) / (order - 1)
            assert at_order >= least - 1e-9
            assert at_order <= order / (2 * sigma**2) + mean * min(1.0, 30 * delta + 1e-4) + math.log(mean) / (
                order - 1
            )

    @pytest.mark.parametrize("shape", [0.0, 1.0, 3.0])
    def test_pure_privacy_costs_two_plus_eta_times(self, shape):
        # Corollary 3: ε-private trials give (2 + η)·ε.
        accountant = rdp.RdpAccountant(orders=[1e7, 1e9])
        accountant.compose(NumberOfTrials(mean=20.0, shape=shape).event(dp_accounting.LaplaceDpEvent(10.0)))
        assert accountant.rdp[0] == pytest.approx((2 + shape) * 0.1, rel=1e-4)


class TestExactDivergences:
    """Trials release a number with Gaussian noise, the best is the largest: its distribution is known exactly."""

    x = np.linspace(-40.0, 41.0, 400_001)
    sigma = 3.0

    def density(self, shift: float, trials: NumberOfTrials) -> np.ndarray:
        """Of the largest: the derivative of E u^K at the distribution function, times the density of one."""
        u = norm.cdf(self.x, shift, self.sigma)
        if math.isinf(trials.shape):
            slope = trials.mean * np.exp(trials.mean * (u - 1))
        else:
            eta, gamma = trials.shape, gamma_by_mean(trials.mean, trials.shape)
            weight = (1 - gamma) / math.log(1 / gamma) if eta == 0 else eta * (1 - gamma) / (gamma**-eta - 1)
            slope = weight * (1 - (1 - gamma) * u) ** (-eta - 1)
        return slope * norm.pdf(self.x, shift, self.sigma)

    def divergence(self, order: float, p: np.ndarray, q: np.ndarray, atom: float) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, np.exp(order * np.log(p) + (1 - order) * np.log(q)), 0.0)
        return math.log(np.trapezoid(terms, self.x) + atom) / (order - 1)

    @pytest.mark.parametrize(("mean", "shape"), KINDS)
    def test_are_within_the_bound_and_not_within_that_of_one_trial(self, mean, shape):
        trials = NumberOfTrials(mean=mean, shape=shape)
        p, q = self.density(0.0, trials), self.density(1.0, trials)
        atom = math.exp(-mean) if math.isinf(shape) else 0.0  # no trial at all
        assert np.trapezoid(p, self.x) + atom == pytest.approx(1, abs=1e-6)
        orders = (2.0, 4.0, 8.0, 16.0)
        bound = divergences_of(trials.event(dp_accounting.GaussianDpEvent(self.sigma)), ORDERS)
        exceeded = []
        for order in orders:
            exact = max(self.divergence(order, p, q, atom), self.divergence(order, q, p, atom))
            assert exact <= bound[ORDERS.index(order)]
            exceeded.append(exact > 1.02 * order / (2 * self.sigma**2))
        assert any(exceeded)


class TestNumbers:
    @pytest.mark.parametrize(("mean", "shape"), KINDS)
    def test_probabilities_have_the_mean(self, mean, shape):
        trials = NumberOfTrials(mean=mean, shape=shape)
        k = np.arange(20_000)
        probability = trials.probability(k)
        assert probability.sum() == pytest.approx(1, abs=1e-9)
        assert (k * probability).sum() == pytest.approx(mean, rel=1e-6)
        assert (probability[0] > 0) == math.isinf(shape)

    def test_geometric_is_geometric(self):
        k = np.arange(1, 50)
        np.testing.assert_allclose(NumberOfTrials(mean=10.0).probability(k), 0.1 * 0.9 ** (k - 1), rtol=1e-6)

    @pytest.mark.parametrize(("mean", "shape"), KINDS)
    def test_draws_follow_the_probabilities(self, mean, shape):
        trials = NumberOfTrials(mean=mean, shape=shape)
        draws = np.array([trials.draw(RandomKey.from_seed(seed)) for seed in range(1000)])
        probability = trials.probability(np.arange(100_000))
        spread = math.sqrt(((np.arange(100_000) - mean) ** 2 * probability).sum() / 1000)
        assert abs(draws.mean() - mean) < 4 * spread
        small = probability[:4].sum()
        assert abs((draws < 4).mean() - small) < 4 * math.sqrt(small * (1 - small) / 1000)
        assert (draws.min() >= 1) or math.isinf(shape)

    @pytest.mark.parametrize("mean", [1.01, 1.5, 10.0, 10_000.0])
    @pytest.mark.parametrize("shape", [0.0, 0.3, 1.0, 20.0])
    def test_gamma_is_never_below_the_accountants(self, mean, shape):
        from dp_accounting.rdp.rdp_privacy_accountant import _gamma_truncated_negative_binomial

        gamma = NumberOfTrials(mean=mean, shape=shape).gamma
        assert gamma >= _gamma_truncated_negative_binomial(shape, mean) * (1 - 1e-12)
        assert gamma == pytest.approx(gamma_by_mean(mean, shape), rel=1e-6)

    @pytest.mark.parametrize("values", [{"mean": 1.0}, {"mean": 1e5}, {"mean": math.nan}, {"mean": 2, "shape": -0.5}])
    def test_out_of_range(self, values):
        with pytest.raises(ConfigError, match=r"mean=|shape="):
            NumberOfTrials(**values)


class TestInTheLedger:
    @pytest.mark.parametrize(("mean", "shape"), KINDS)
    def test_is_written_and_read(self, mean, shape):
        event = NumberOfTrials(mean=mean, shape=shape).event(dp_accounting.GaussianDpEvent(8.0))
        text = json.dumps(event_to_json(event), allow_nan=False)
        assert event_from_json(json.loads(text)) == event

    def test_composes_with_others_by_every_accountant(self):
        event = NumberOfTrials(mean=10.0).event(dp_accounting.GaussianDpEvent(8.0))
        ledger = Ledger([LedgerEntry("search", event), LedgerEntry("more", dp_accounting.GaussianDpEvent(4.0))])
        alone = epsilon_of(event, delta=1e-5)
        for accountant in ACCOUNTANTS:
            assert alone < ledger.epsilon(delta=1e-5, accountant=accountant) < alone + 1.5

    def test_costs_less_than_the_mean_number_composed(self):
        one = dp_accounting.GaussianDpEvent(8.0)
        composed = epsilon_of(dp_accounting.SelfComposedDpEvent(one, 10), delta=1e-5)
        assert epsilon_of(one, delta=1e-5) < epsilon_of(NumberOfTrials(mean=10.0).event(one), delta=1e-5) < composed

    def test_trials_without_noise_are_not_private(self):
        event = RepeatAndSelectDpEvent(dp_accounting.GaussianDpEvent(0.0), 10.0, 1.0)
        assert is_noiseless(event)
        assert epsilon_of(event, delta=1e-5) == math.inf
