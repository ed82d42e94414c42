"""DPStandardScaler: its sensitivity, its noise, what it gives."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import chi2

from scatterdp.errors import ConfigError
from scatterdp.estimators import DPStandardScaler
from scatterdp.estimators.composition import fresh
from scatterdp.estimators.scaler import contribution
from scatterdp.privacy.checking import check_certificate
from scatterdp.report.guarantee import guarantee_in_words


class TestSensitivity:
    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_no_row_adds_more_and_some_row_adds_as_much(self, size):
        rng = np.random.default_rng(size)
        low, high = -np.arange(1.0, size + 1), np.arange(size) / 2 + 0.5
        bound = (5 * size / 4) ** 0.5
        rows = rng.normal(0, 3, (5000, size))
        assert (np.linalg.norm(contribution(rows, low, high), axis=1) <= bound + 1e-12).all()

        def negative_length(x):
            return -np.linalg.norm(contribution(x[None], low, high))

        found = max(-minimize(negative_length, row, method="Nelder-Mead").fun for row in rows[:5])
        assert found == pytest.approx(bound, rel=1e-6)

    def test_the_entry_says_so(self):
        X = np.random.default_rng(0).normal(size=(50, 5))
        (entry,) = DPStandardScaler(bounds=(-1, 1), random_state=0).fit(X).privacy_certificate_["ledger"]
        assert entry["details"]["sensitivity"] == pytest.approx((5 * 5 / 4) ** 0.5)
        assert entry["event"] == {"type": "GaussianDpEvent", "noise_multiplier": entry["details"]["noise_multiplier"]}


class TestNoise:
    @pytest.mark.parametrize(("factor", "fits"), [(1.0, True), (2 / 3, False), (1.5, False)])
    def test_means_have_the_noise_of_the_event(self, factor, fits):
        X = np.full((400, 8), 0.25)
        scaler = DPStandardScaler(epsilon=2.0, delta=1e-4, bounds=(-2, 2))
        means = np.array([fresh(scaler).set_params(random_state=seed).fit(X).mean_ for seed in range(40)])
        sigma = scaler._noise_multiplier()
        deviation = factor * 2 * sigma * (5 * 8 / 4) ** 0.5 / 400  # half the width of the bounds, over N
        statistic = ((means - 0.25) / deviation) ** 2
        low, high = chi2.ppf([1e-4, 1 - 1e-4], statistic.size)
        assert (low < statistic.sum() < high) == fits

    def test_no_two_data_sets_share_noise(self):
        X = np.random.default_rng(0).uniform(-1, 1, (400, 3))
        one = DPStandardScaler(bounds=(-1, 1), random_state=0).fit(X)
        other = DPStandardScaler(bounds=(-1, 1), random_state=0).fit(X[:-1])
        again = DPStandardScaler(bounds=(-1, 1), random_state=0).fit(X)
        noise = one.mean_ - X.mean(0), other.mean_ - X[:-1].mean(0)
        assert (abs(noise[0] * 400 - noise[1] * 399) > 1e-3).all()
        np.testing.assert_array_equal(one.mean_, again.mean_)


class TestScaling:
    def test_mean_0_and_variance_1(self):
        rng = np.random.default_rng(0)
        X = rng.normal([3, -1, 0], [1, 0.5, 2], (20_000, 3))
        scaler = DPStandardScaler(epsilon=3.0, bounds=([-5, -5, -10], [10, 5, 10]), random_state=0).fit(X)
        Z = scaler.transform(X)
        np.testing.assert_allclose(Z.mean(0), 0, atol=0.05)
        np.testing.assert_allclose(Z.std(0), 1, atol=0.05)
        np.testing.assert_allclose(scaler.inverse_transform(Z), X, atol=1e-9)
        np.testing.assert_allclose(scaler.var_, scaler.scale_**2)

    def test_what_lies_outside_is_clipped_for_the_release_alone(self):
        X = np.zeros((5000, 1))
        X[:2500] = 100.0
        scaler = DPStandardScaler(epsilon=5.0, bounds=(-1, 1), random_state=0).fit(X)
        assert scaler.mean_[0] == pytest.approx(0.5, abs=0.02)
        assert scaler.transform(X)[0, 0] == pytest.approx((100 - scaler.mean_[0]) / scaler.scale_[0])

    def test_a_constant_is_not_divided_by_nothing(self):
        X = np.full((100, 2), 0.5)
        scaler = DPStandardScaler(bounds=(0, 1), random_state=0).fit(X)
        assert np.isfinite(scaler.transform(X)).all()
        assert (scaler.scale_ > 0.01).all()  # its noise, which is public

    def test_half_precision_on_disk(self, tmp_path):
        X = np.random.default_rng(0).uniform(-1, 1, (9000, 4)).astype(np.float16)
        expected = DPStandardScaler(bounds=(-1, 1), random_state=0).fit(X).transform(X)
        assert expected.dtype == np.float32
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["x"] = X
            found = DPStandardScaler(bounds=(-1, 1), random_state=0).fit(file["x"]).transform(file["x"])
        np.testing.assert_array_equal(found, expected)

    def test_its_certificate_holds(self):
        X = np.random.default_rng(0).normal(size=(100, 2))
        scaler = DPStandardScaler(epsilon=0.7, delta=1e-6, bounds=(-1, 1)).fit(X)
        certificate = json.loads(json.dumps(scaler.privacy_certificate_))
        checked = check_certificate(certificate)
        assert checked.disagreements == []
        assert 0.69 < certificate["epsilon"] <= 0.7
        told = " ".join(guarantee_in_words(certificate, checked).split())
        assert "the arrays given to fit: 100 examples, on given features" in told
        assert "bounds of the features are public" in told
        assert "numbers of the run are exact" not in told

    @pytest.mark.parametrize(
        "bounds",
        [
            None,
            3,
            (0, 0),
            (1, 0),
            (0, np.inf),
            ([0, 0, 0], 1),
            (0, 1, 2),
            ("a", "b"),
            (np.nan, 1),
            (0, 5e-324),
            (-1e308, 1e308),
        ],
    )
    def test_bounds_that_are_none(self, bounds):
        with pytest.raises(ConfigError, match="bounds="):
            DPStandardScaler(bounds=bounds).fit(np.zeros((10, 2)))

    def test_a_budget_that_is_none(self):
        with pytest.raises(ConfigError, match="epsilon=-1"):
            DPStandardScaler(epsilon=-1, bounds=(0, 1)).fit(np.zeros((10, 2)))
