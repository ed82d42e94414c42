"""A search for parameters whose whole cost is little more than that of a few fits, however many candidates there are.

The number of trials is random and secret, each trial fits a candidate drawn at random and scores it with noise, and only the best leaves: Papernot & Steinke 2021
(:mod:`scatterdp.privacy.tuning`).

>>> from sklearn.datasets import load_digits
>>> X, y = load_digits(return_X_y=True)
>>> search = DPRandomSearch(DPClassifier(), {"head": ["class_means", "least_squares"]}, epsilon=3.0, mean_trials=4, random_state=0).fit(X, y)
>>> search.privacy_certificate_["epsilon"] <= 3.0
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.model_selection import ParameterGrid
from sklearn.utils.validation import check_is_fitted

from scatterdp.errors import ConfigError
from scatterdp.estimators import inputs
from scatterdp.estimators.classifier import DPClassifier
from scatterdp.estimators.composition import fresh
from scatterdp.estimators.tuning import NoisyAccuracy

if TYPE_CHECKING:
    from scatterdp.privacy.accounting import Accountant
    from scatterdp.privacy.randomness import RandomKey

_OURS = ("epsilon", "delta", "accountant", "classes", "random_state")


class DPRandomSearch(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """The best of a random number of private fits, (ε, δ)-private as a whole.

    **Formal guarantee.** A part of the examples, by position, is kept for scores; neighbouring data sets
    have one example's contribution replaced by nothing, and the others keep their positions. One example is either in every trial's fit or in every trial's score, and both are Gaussian mechanisms
    (compositions of such) of noise multiplier at least σ, whichever candidate is drawn: a trial, its score included, costs no more than Gaussian(σ). The number
    of trials is drawn from a truncated negative binomial distribution and nobody learns it; the best of them, with its score, costs what theorem 2 of Papernot &
    Steinke says. σ is solved for.

    Args:
        estimator: a :class:`DPClassifier`; its budget, classes and ``random_state`` are set by the search.
        candidates: parameter → values; every combination is as likely in each trial.
        epsilon, delta: the budget of the whole search.
        mean_trials: the mean of the number of trials, at least 1.01. What it costs grows with its logarithm.
        shape: of that number's distribution: 1 is geometric, 0 logarithmic.
        validation_share: of the examples, for scores.
        accountant: ``"rdp"`` and ``"pld"`` say the same here.
        classes, random_state: see :class:`DPClassifier`.

    Attributes:
        best_estimator_: the classifier, with the certificate of the whole search; :meth:`DPClassifier.save` writes it.
        best_params_: its parameters.
        best_score_: its accuracy with noise, on the kept examples.
        privacy_certificate_: of the whole search.
        classes_, n_features_in_: see :class:`DPClassifier`.
    """

    if TYPE_CHECKING:
        accountant: Accountant
        best_estimator_: DPClassifier
        best_params_: dict[str, Any]
        best_score_: float
        classes_: np.ndarray
        n_features_in_: int
        privacy_certificate_: dict[str, Any]

    def __init__(
        self,
        estimator: DPClassifier,
        candidates: dict[str, list[Any]],
        *,
        epsilon: float = 3.0,
        delta: float = 1e-5,
        mean_trials: float = 10.0,
        shape: float = 1.0,
        validation_share: float = 0.2,
        accountant: Accountant = "pld",
        classes: Any = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.candidates = candidates
        self.epsilon = epsilon
        self.delta = delta
        self.mean_trials = mean_trials
        self.shape = shape
        self.validation_share = validation_share
        self.accountant = accountant
        self.classes = classes
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Search with fresh noise; spends the budget. A second fit of the object warns, as those of the best classifier do.

        Args:
            X, y: see :meth:`DPClassifier.fit`.

        Raises:
            ValueError: X or y are not what they should be.
            ConfigError: a parameter is out of range, or a candidate samples batches (``head="dp_sgd"``).
        """
        import dp_accounting

        from scatterdp.estimators.certificates import BY_POSITION_ADJACENCY, count_fit, estimator_certificate
        from scatterdp.estimators.fitting import CLASSES_FROM_LABELS
        from scatterdp.linear import Budget
        from scatterdp.linear.method import gaussian_entry
        from scatterdp.privacy.accounting import epsilon_of
        from scatterdp.privacy.calibration import calibrate_noise_multiplier
        from scatterdp.privacy.ledger import Ledger, LedgerEntry
        from scatterdp.privacy.tuning import NumberOfTrials

        grid = self._grid()
        trials = NumberOfTrials(mean=self.mean_trials, shape=self.shape)
        if trials.shape == float("inf"):
            raise ConfigError(
                "shape=inf: a Poisson number of trials may be 0, which leaves no classifier; give a finite one"
            )
        rows = fresh(self.estimator)._checked(X, reset=True)
        labels = inputs.check_labels(rows, y)
        classes, _ = inputs.class_numbers(labels, self.classes)
        key = inputs.random_key(self.random_state).bound_to("random search")
        train, kept = self._split(len(labels), key)
        sigma = calibrate_noise_multiplier(
            lambda noise_multiplier: trials.event(dp_accounting.GaussianDpEvent(noise_multiplier)),
            target_epsilon=self.epsilon,
            target_delta=self.delta,
            accountant=self.accountant,
        )
        one = epsilon_of(dp_accounting.GaussianDpEvent(sigma), delta=self.delta, accountant="pld")
        makings = [self._candidate(params, one, classes) for params in grid]
        for making in makings:
            _check_gaussian(making, len(train), tuple(rows.shape[1:]), len(classes), sigma)

        x_train, y_train, x_kept, y_kept = rows[train], labels[train], rows[kept], labels[kept]
        generator = key.generator("candidates")
        best = None
        for trial in range(trials.draw(key)):
            chosen = int(generator.integers(len(grid)))
            seed = None if self.random_state is None else int(key.words("trial", counter=trial, count=1)[0])
            classifier = fresh(makings[chosen]).set_params(random_state=seed).fit(x_train, y_train)
            score = NoisyAccuracy(noise_multiplier=sigma, random_state=seed)(classifier, x_kept, y_kept)
            if best is None or score > best[0]:
                best = score, chosen, classifier
        assert best is not None
        self.best_score_, chosen, self.best_estimator_ = best
        self.best_params_ = grid[chosen]
        release = gaussian_entry("fit, or score, of one trial", sigma, 1.0)
        entry = LedgerEntry(
            "best of a random number of trials",
            trials.event(Ledger([release]).event),
            {"trials": trials.to_json(), "releases": [release.to_json()], "candidates": len(grid)},
        )
        self.privacy_certificate_ = estimator_certificate(
            Ledger([entry]),
            rows,
            budget=Budget(epsilon=self.epsilon, delta=self.delta, accountant=self.accountant),
            key=key,
            sampler={"kind": "none", "num_examples": len(labels), "adjacency": BY_POSITION_ADJACENCY},
            classes=[str(label) for label in classes],
            features=None if self.best_estimator_.features is None else {"extractor": self.best_estimator_.features},
            model={"name": "random search", "candidates": len(grid), "validation": len(kept)},
            not_private=["score"],
            more_limits=[
                "The number of trials must stay secret: so must how long the search took.",
                *([CLASSES_FROM_LABELS] if self.classes is None else []),
            ],
        )
        # It had that of one trial, as if it had been the only one.
        self.best_estimator_.privacy_certificate_ = self.privacy_certificate_
        self.best_estimator_._spent = list(self.privacy_certificate_["ledger"])
        self.classes_, self.n_features_in_ = classes, self.best_estimator_.n_features_in_
        count_fit(self, self.privacy_certificate_)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """``(N,)`` labels, by the best classifier."""
        check_is_fitted(self)
        return self.best_estimator_.predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """``(N, C)`` float64 probabilities, by the best classifier."""
        check_is_fitted(self)
        return self.best_estimator_.predict_proba(X)

    def _grid(self) -> list[dict[str, Any]]:
        if not isinstance(self.estimator, DPClassifier):
            raise ConfigError(f"estimator={self.estimator!r}: expected a DPClassifier")
        grid = list(ParameterGrid(self.candidates))
        for name in self.candidates:
            if name in _OURS:
                raise ConfigError(f"candidates: {name} is set by the search; give it to DPRandomSearch")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"validation_share={self.validation_share}: expected a number between 0 and 1")
        return grid

    def _candidate(self, params: dict[str, Any], epsilon: float, classes: np.ndarray) -> DPClassifier:
        budget = {"epsilon": epsilon, "delta": self.delta, "accountant": "pld", "classes": classes}
        return fresh(self.estimator).set_params(**params, **budget)

    def _split(self, count: int, key: RandomKey) -> tuple[np.ndarray, np.ndarray]:
        """Positions for fits and for scores, each ascending: a function of N and the key."""
        if count < 2:
            raise ValueError(f"X has {count} sample(s): expected at least 2, some to fit and some to score")
        order = key.generator("validation").permutation(count)
        kept = min(count - 1, max(1, round(self.validation_share * count)))
        return np.sort(order[kept:]), np.sort(order[:kept])


def _check_gaussian(
    classifier: DPClassifier, num_examples: int, input_shape: tuple[int, ...], num_classes: int, sigma: float
) -> None:
    """Refuse a candidate whose fit is not Gaussian with at least this noise.

    Raises:
        ConfigError: it samples batches, or has less noise.
    """
    from scatterdp.privacy.gaussian import inverse_square_sum

    (planned,) = classifier.planned_ledger(num_examples, input_shape, num_classes)
    inverse_squares = inverse_square_sum(planned.event)
    if inverse_squares is None:
        raise ConfigError(
            f"head={classifier.head!r}: samples batches of {num_examples} examples, and trials are only compared where none is sampled; give "
            "candidates with another head"
        )
    if not inverse_squares <= sigma**-2 * (1 + 1e-6):
        raise ConfigError(
            f"head={classifier.head!r}: its fit has less noise than the Gaussian of noise multiplier {sigma} that a trial may cost; give candidates "
            "with another head"
        )
