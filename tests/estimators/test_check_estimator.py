"""scikit-learn's own tests of estimators."""

from __future__ import annotations

from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from scatterdp.estimators import DPClassifier, DPStandardScaler

#: Check → why differential privacy cannot pass it. Noise at ε = 3 leaves enough for all of them.
EXPECTED: dict[type, dict[str, str]] = {DPClassifier: {}, DPStandardScaler: {}}


def expected_failed_checks(estimator: Any) -> dict[str, str]:
    return EXPECTED[type(estimator)]


@parametrize_with_checks(
    [DPClassifier(), DPStandardScaler(bounds=(-10, 10))], expected_failed_checks=expected_failed_checks
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
