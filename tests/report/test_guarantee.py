"""Certificates in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from scipy.stats import norm

from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.checking import Checked
from scatterdp.report.guarantee import detection_limit, guarantee_in_words

VALUES = {
    "private": True,
    "epsilon": 1.23456,
    "delta": 1e-5,
    "accountant": "pld",
    "adjacency": "one more, one less",
    "noise_source": {},
    "data": {"name": "faces", "num_train": 10, "classes": ["a", "b"]},
    "features": {"extractor": "patches"},
    "not_private": ["seconds"],
    "limits": ["A limit."],
    "ledger": [
        {"name": "first", "event": {"type": "GaussianDpEvent", "noise_multiplier": 0}},
        {"name": "second", "event": {"type": "ComposedDpEvent", "events": [{"type": "NoOpDpEvent"}]}},
    ],
}


def words(**changes) -> str:
    checked = Checked({"pld": 1.23456, "rdp": None}, changes.pop("disagreements", []))
    return " ".join(guarantee_in_words({**VALUES, **changes}, checked).split())


def test_epsilon_is_rounded_up_and_noise_that_is_none_is_called_so():
    told = words()
    assert "ε = 1.2346 and δ = 1e-05" in told
    assert "3.44 times as likely" in told
    assert "first: numbers without noise." in told
    assert "second: nothing." in told
    assert "∞ (rdp)" in told
    assert "But:" not in told


def test_what_holds_at_most_is_rounded_up():
    told = words(epsilon=4.18978, delta=1e-9)  # e^4.18978 = 66.0085
    assert "at most 66.1 times" in told
    assert "66.1 % of those that were there at 1 % false alarms" in told


def test_no_promise_without_privacy():
    told = words(private=False, epsilon=None)
    assert "this run is NOT private" in told
    assert "times as likely" not in told


def test_an_epsilon_that_promises_next_to_nothing():
    told = words(epsilon=1000.0)
    assert "e^1000 times" in told
    assert "100 % of those" in told


@pytest.mark.parametrize("sigma", [0.6, 1.0, 4.0])
def test_no_gaussian_can_be_recognised_better_than_the_limit(sigma):
    delta = 1e-3
    epsilon = epsilon_of(GaussianDpEvent(sigma), delta=delta, accountant="pld")
    false_alarms = np.linspace(0.001, 0.999, 200)
    power = norm.sf(norm.isf(false_alarms) - 1 / sigma)  # of the best test of N(0, σ²) against N(1, σ²)
    limits = np.array([detection_limit(epsilon, delta, share) for share in false_alarms])
    assert (power <= limits + 1e-6).all()
    assert (power > 0.99 * limits).any()  # it is reached


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_limits_of_the_limit(share):
    assert detection_limit(0.0, 0.0, share) == pytest.approx(share)
    assert detection_limit(math.inf, 1e-5, share) == 1.0
