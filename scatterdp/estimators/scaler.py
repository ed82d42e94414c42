r"""Standardisation whose means and variances are released with noise.

A row :math:`x` is clipped to public bounds and mapped to :math:`u \in [-1, 1]^D`. Released is

.. math::
    \sum_i \bigl(u_i,\; u_i^2 - \tfrac12\bigr) \in \mathbb R^{2D}

**Formal guarantee.** Adding or removing an example moves the sum by at most :math:`\max_u \sqrt{\sum_j u_j^2 + (u_j^2 - \frac12)^2} = \sqrt{5D/4}` in L2:
with :math:`t = u_j^2 \le 1` each term is :math:`t^2 + \frac14`. (Without the half, whose sum N/2 is public, it would be :math:`\sqrt{2D}`.) So it is one Gaussian
mechanism. Means, variances and their floor are computed from it and from N, which is public.

>>> import numpy as np
>>> X = np.random.default_rng(0).normal([5, 0], [2, 0.5], (10_000, 2))
>>> scaler = DPStandardScaler(epsilon=1.0, bounds=([-5, -5], [15, 5]), random_state=0).fit(X)
>>> bool((abs(scaler.transform(X).std(0) - 1) < 0.2).all())
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from scatterdp.errors import ConfigError
from scatterdp.estimators import inputs

if TYPE_CHECKING:
    from scatterdp.linear import Matrix
    from scatterdp.privacy.accounting import Accountant
    from scatterdp.privacy.ledger import LedgerEntry
    from scatterdp.privacy.randomness import RandomKey

RELEASE = "sums of the features and of their squares"


class DPStandardScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Features to mean 0 and variance 1 with (ε, δ)-differential privacy.

    Args:
        epsilon, delta: the budget of one :meth:`fit`.
        bounds: ``(low, high)``, numbers or ``(D,)`` arrays: public bounds, *not* taken from the data. What lies outside is clipped for the release
            (not in :meth:`transform`).
        accountant: which ε counts.
        random_state: see :class:`scatterdp.DPClassifier`.

    Attributes:
        mean_, scale_, var_: ``(D,)`` float64, released.
        n_features_in_: D.
        privacy_certificate_: see :class:`scatterdp.DPClassifier`.
    """

    if TYPE_CHECKING:
        accountant: Accountant
        mean_: np.ndarray
        var_: np.ndarray
        scale_: np.ndarray
        n_features_in_: int
        privacy_certificate_: dict[str, Any]

    def __init__(
        self,
        epsilon: float = 1.0,
        delta: float = 1e-5,
        bounds: Any = None,
        *,
        accountant: Accountant = "pld",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.bounds = bounds
        self.accountant = accountant
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Release means and variances with fresh noise; spends the budget. A second fit of the object warns.

        Args:
            X: ``(N, D)`` numbers: any array that can be sliced by rows, read in blocks.
            y: of no account.

        Raises:
            ValueError: X is not what it should be.
            ConfigError: a parameter is out of range.
        """
        from scatterdp.estimators.certificates import count_fit, estimator_certificate
        from scatterdp.linear import Budget
        from scatterdp.privacy.ledger import Ledger

        rows = inputs.check_rows(self, X, reset=True)
        low, high = self._bounds(rows.shape[1])
        noise_multiplier = self._noise_multiplier()
        key = inputs.random_key(self.random_state)
        mean, variance, entry = _released(rows, low, high, noise_multiplier=noise_multiplier, key=key)
        half = (high - low) / 2
        self.mean_ = low + half * (1 + mean)
        self.var_ = variance * half**2
        self.scale_ = np.sqrt(self.var_)
        self.privacy_certificate_ = estimator_certificate(
            Ledger([entry]),
            rows,
            budget=Budget(epsilon=self.epsilon, delta=self.delta, accountant=self.accountant),
            key=key,
            model={"name": "standardisation"},
            more_limits=["The bounds of the features are public."],
        )
        count_fit(self, self.privacy_certificate_)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """``(N, D)``: features less their means, over their deviations; float32 for what came in less than float64."""
        check_is_fitted(self)
        rows = inputs.check_rows(self, X, reset=False)
        single = getattr(rows, "dtype", np.dtype(float)) in (np.float16, np.float32)
        out = np.empty(rows.shape, np.float32 if single else np.float64)
        for start, block in zip(range(0, len(out), inputs.BLOCK), inputs.blocks_of(rows), strict=True):
            out[start : start + len(block)] = (np.asarray(block, np.float64) - self.mean_) / self.scale_
        return out

    def inverse_transform(self, X: Any) -> np.ndarray:
        """``(N, D)`` float64: the features that :meth:`transform` was given."""
        check_is_fitted(self)
        return np.asarray(inputs.check_rows(self, X, reset=False)[:], np.float64) * self.scale_ + self.mean_

    def planned_ledger(self, num_examples: int, input_shape: tuple[int, ...], num_classes: int) -> list[LedgerEntry]:
        """What :meth:`fit` will release, known before it sees data; see :meth:`scatterdp.DPClassifier.planned_ledger`."""
        from scatterdp.linear.method import gaussian_entry

        return [gaussian_entry(RELEASE, self._noise_multiplier(), _sensitivity(input_shape[0]))]

    def _noise_multiplier(self) -> float:
        import dp_accounting

        from scatterdp.privacy.calibration import calibrate_noise_multiplier, check_target

        check_target(self.epsilon, self.delta, name="epsilon")
        return calibrate_noise_multiplier(
            dp_accounting.GaussianDpEvent,
            target_epsilon=self.epsilon,
            target_delta=self.delta,
            accountant=self.accountant,
        )

    def _bounds(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """``(D,)`` each."""
        try:
            low, high = (np.broadcast_to(np.asarray(bound, np.float64), (size,)) for bound in self.bounds)
        except (TypeError, ValueError):
            raise ConfigError(
                f"bounds={self.bounds!r}: expected (low, high), each a number or one for each of {size} features; public, not taken from the data"
            ) from None
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ConfigError(f"bounds={self.bounds!r}: expected finite numbers, low below high")
        with np.errstate(over="ignore"):
            width = high - low
            if not (np.isfinite(width).all() and np.isfinite(2 / width).all()):
                raise ConfigError(f"bounds={self.bounds!r}: too far apart or too close to divide by; give others")
        return low, high


def _sensitivity(size: int) -> float:
    """L2 sensitivity of the released sums of so many features."""
    return (1.25 * size) ** 0.5


def contribution(block: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """``(b, 2D)`` float64: what each row adds to the released sum, at most √(5D/4) long."""
    u = np.clip((np.asarray(block, np.float64) - low) * (2 / (high - low)) - 1, -1, 1)
    return np.concatenate([u, u * u - 0.5], axis=1)


def _released(
    rows: Matrix, low: np.ndarray, high: np.ndarray, *, noise_multiplier: float, key: RandomKey
) -> tuple[np.ndarray, np.ndarray, LedgerEntry]:
    """Mean and variance ``(D,)`` in units of [-1, 1], and what they cost."""
    import torch

    from scatterdp.linear.method import gaussian_entry
    from scatterdp.privacy.noise import bound_to_sums, gaussian_noise

    count, size = rows.shape[0], rows.shape[1]
    total = np.zeros(2 * size)
    for block in inputs.blocks_of(rows):
        total += contribution(block, low, high).sum(0)
    bound_key = bound_to_sums(key, *map(torch.tensor, (total, low, high)))
    sensitivity = _sensitivity(size)
    noise = gaussian_noise(
        (2 * size,),
        noise_multiplier=noise_multiplier,
        sensitivity=sensitivity,
        key=bound_key.bound_to(repr((count, noise_multiplier))),
        purpose="feature sums",
        counter=0,
        dtype=torch.float64,
    )
    released = (total + noise.numpy()) / count
    mean, square = np.clip(released[:size], -1, 1), released[size:] + 0.5
    # Below its noise a variance is not distinguishable from 0, and none of numbers in [-1, 1] exceeds 1.
    floor = min(noise_multiplier * sensitivity / count, 1.0)
    variance = np.clip(square - mean**2, max(floor, 1e-12), 1.0)
    return mean, variance, gaussian_entry(RELEASE, noise_multiplier, sensitivity, numbers=2 * size)
