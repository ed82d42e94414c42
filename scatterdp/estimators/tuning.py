"""What a grid search on private data cost, and a score that a search may see.

A search fits every candidate on every fold, and again on everything: each fit is a release. It compares candidates by scores on examples that are
private too. An exact score is a function of theirs without noise, so whatever is chosen by it has no guarantee; :class:`NoisyAccuracy` is one
that has. And where folds are stratified, one example moves others between folds, which no fit's event counts; :class:`sklearn.model_selection.KFold` assigns
by position alone.

>>> from sklearn.datasets import load_digits
>>> from sklearn.model_selection import GridSearchCV, KFold
>>> from scatterdp.estimators import DPClassifier
>>> X, y = load_digits(return_X_y=True)
>>> candidates = {"head": ["class_means", "least_squares"]}
>>> search = GridSearchCV(DPClassifier(epsilon=1.0), candidates, cv=KFold(3), scoring=NoisyAccuracy(noise_multiplier=5.0))
>>> certificate = tuning_certificate(search.fit(X, y))
>>> round(certificate["epsilon"], 1)  # 2 of 3 folds' fits of 2 candidates, their scores and the last fit; not 7 × 1
2.7
"""

from __future__ import annotations

import hashlib
import math
import numbers
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import (
    KFold,
    LeaveOneOut,
    LeavePOut,
    PredefinedSplit,
    RepeatedKFold,
    ShuffleSplit,
    TimeSeriesSplit,
    check_cv,
)
from sklearn.utils.validation import check_is_fitted

from scatterdp.errors import ConfigError, UserError
from scatterdp.estimators import inputs
from scatterdp.estimators.composition import fresh, learns_nothing, leaves_of, parts_of

if TYPE_CHECKING:
    from scatterdp.privacy.accounting import Accountant
    from scatterdp.privacy.ledger import LedgerEntry
    from scatterdp.privacy.randomness import Origin

#: Splitters whose folds depend on the examples' positions and number, not on what is in them.
BY_POSITION = (KFold, LeaveOneOut, LeavePOut, PredefinedSplit, RepeatedKFold, ShuffleSplit, TimeSeriesSplit)
POSITIONS_GIVEN = "The folds given as lists of positions are taken to be chosen without the data."
_MOST_PATTERNS = 50


@dataclass(frozen=True, kw_only=True)
class NoisyAccuracy:
    """A scorer: the number of correct predictions with Gaussian noise, over the number of examples.

    **Formal guarantee.** One example changes the count by at most 1: a Gaussian mechanism of this noise multiplier, for fixed predictions. Its
    standard deviation is ``noise_multiplier / n`` on n examples.

    Args:
        noise_multiplier: σ > 0.
        random_state: see :class:`scatterdp.DPClassifier`.

    Raises:
        ConfigError: σ out of range.
    """

    noise_multiplier: float
    random_state: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError(f"noise_multiplier={self.noise_multiplier}: expected a finite number > 0")

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        """Accuracy with noise; may fall outside [0, 1]."""
        from scatterdp.privacy.noise import noisy_count

        predicted = np.asarray(estimator.predict(X))
        correct = predicted == np.asarray(y)
        # Bound to all that the count comes from: with equal noise on two folds or candidates, the difference of their scores would be exact.
        parameters = estimator.get_params() if hasattr(estimator, "get_params") else {}
        told = [type(estimator).__qualname__, *(f"{name}={value!r}" for name, value in sorted(parameters.items()))]
        exact = [_digest(X), _digest(y), _digest(predicted), *(re.sub(r" at 0x[0-9A-Fa-f]+", "", one) for one in told)]
        key = inputs.random_key(self.random_state).bound_to(repr(("accuracy", exact, self.noise_multiplier)))
        right = noisy_count(
            int(correct.sum()), noise_multiplier=self.noise_multiplier, key=key, purpose="accuracy", counter=0
        )
        return right / len(correct)


def tuning_certificate(
    search: Any, *, delta: float | None = None, accountant: Accountant | None = None
) -> dict[str, Any]:
    """What a fitted ``GridSearchCV`` or ``RandomizedSearchCV`` cost: all fits, all scores and the last fit, composed for the example that is in most of them.

    Neighbouring data sets are those with one example's contribution replaced by nothing, so that the others keep their positions, and with them their
    folds. The events are those of the candidates' parameters and the folds' sizes, which are public; every class is taken to be in every fold. Scores that are exact, folds that depend on the labels, and steps that learn
    without privacy, in any candidate, make the certificate's ``private`` false; ``certificate["model"]["fits"]`` then still tells what the fits alone cost,
    unless one of them is such a step's.

    Args:
        search: fitted, with ``refit=True``, on private estimators or pipelines of them.
        delta: of the claim; None: the largest of the fits'.
        accountant: which ε counts; None: the last fit's.

    Raises:
        UserError: another kind of search, no last fit, no step of it is private, or folds that cannot be read again (``cv`` was a generator).
    """
    from scatterdp.estimators.certificates import BY_POSITION_ADJACENCY, compose, without_privacy

    check_is_fitted(search)
    if not (hasattr(search, "best_estimator_") and hasattr(search, "cv_results_") and hasattr(search, "n_splits_")):
        raise UserError("search: expected a fitted GridSearchCV or RandomizedSearchCV with refit=True")
    if "n_resources" in search.cv_results_:
        raise UserError(
            "search: successive halving decides by scores which fits there are; take GridSearchCV or RandomizedSearchCV"
        )
    parts, exposed = parts_of(search.best_estimator_, type(search.best_estimator_).__name__)
    if not parts:
        raise UserError("search: its estimator is not differentially private; there is nothing to certify")
    last = parts[-1][1]
    claim = max(certificate["delta"] for _, certificate in parts) if delta is None else delta
    folds = _Folds(search, dict(parts))
    reasons = [f"{name}, fitted without privacy" for name in exposed]
    reasons += [
        f"{name} of a candidate, fitted without privacy or at a cost that is not known before"
        for name in folds.unplanned()
        if name not in exposed
    ]
    fits = [] if reasons else folds.worst(claim, accountant or last["accountant"])
    parts = [(f"last fit: {name}", certificate) for name, certificate in parts]
    learnt = bool(reasons)
    reasons += [] if _noisy_scorers(search) else ["exact scores on private examples, and the choice by them"]
    reasons += [] if _by_position(search) else ["folds that depend on the labels (take cv=KFold(…))"]
    origins = folds.origins()
    assumptions = [POSITIONS_GIVEN] if _positions_given(search) else []
    alone = compose(
        parts,
        fits,
        delta=delta,
        accountant=accountant or last["accountant"],
        more_origins=origins,
        adjacency=BY_POSITION_ADJACENCY,
        assumptions=assumptions,
    )
    count = len(search.cv_results_["params"]) * search.n_splits_ + 1
    epsilon = None if learnt else alone["epsilon"]
    model = {"name": "search", "fits": {"count": count, "epsilon": epsilon, "delta": alone["delta"]}}
    if not reasons:
        return alone | {"model": model}
    whole = compose(
        parts,
        [*fits, *(without_privacy(reason) for reason in reasons)],
        delta=delta,
        accountant=accountant or last["accountant"],
        model=model,
        more_origins=origins,
        adjacency=BY_POSITION_ADJACENCY,
        assumptions=assumptions,
    )
    whole["statement"] += f" Without noise: {'; '.join(reasons)}."
    if learnt:
        return whole
    from scatterdp.privacy.certificate import rounded_up

    would_be = "are" if _by_position(search) else "would be, on folds by position,"
    told = (
        "not private either"
        if epsilon is None
        else f"together (ε = {rounded_up(epsilon)}, δ = {alone['delta']!r})-private"
    )
    whole["statement"] += f" The {count} fits of the search alone {would_be} {told}."
    return whole


class _Folds:
    """A search's fits and scores on folds."""

    def __init__(self, search: Any, certificates: dict[str, dict[str, Any]]) -> None:
        """Of a search whose last fit has these certificates, by step."""
        self.search = search
        self.certificates = certificates
        *_, last = certificates.values()
        self.num_examples: int = last["data"]["num_train"]
        self.num_classes = len(last["data"].get("classes", [])) or 2
        self._planned: dict[tuple[int, int], list[LedgerEntry]] = {}

    def unplanned(self) -> list[str]:
        """The names of candidates' steps that learn, and whose releases are not known before they do."""
        return list(
            dict.fromkeys(
                name
                for number in range(len(self.search.cv_results_["params"]))
                for name, step in self._leaves(number)
                if not (learns_nothing(step) or hasattr(step, "planned_ledger"))
            )
        )

    def origins(self) -> list[Origin]:
        """Where the noise of scores and of all candidates' fits comes from: any seed among their parameters may be that of some noise."""
        seeds = [scorer.random_state for scorer in _noisy_scorers(self.search)]
        for number in range(len(self.search.cv_results_["params"])):
            seeds += [
                value
                for name, value in self._candidate(number).get_params().items()
                if name.rpartition("__")[2] == "random_state"
            ]
        return ["system" if seed is None else "seed" for seed in seeds]

    def worst(self, delta: float, accountant: Accountant) -> list[LedgerEntry]:
        """What the example that is in most of it has spent on fits and scores of folds."""
        from scatterdp.privacy.ledger import Ledger

        ledgers = [Ledger(self._entries(train, test)) for train, test in self._patterns()]
        if len(ledgers) == 1:
            return list(ledgers[0].entries)
        return list(max(ledgers, key=lambda ledger: ledger.epsilon(delta=delta, accountant=accountant)).entries)

    def _patterns(self) -> Iterable[tuple[Counter[int], int]]:
        """For each kind of example: the sizes of the training sets that it is in, with how often, and how many times it is scored."""
        splits, count = self.search.n_splits_, self.num_examples
        cv: Any = _splitter(self.search)
        if not _by_position(self.search):
            size = count - -(-count // splits)  # of k even folds; not exact, and never claimed as private
            return [(Counter({size: splits}), splits)]
        patterns: set[tuple[tuple[tuple[int, int], ...], int]] = set()
        train, test = np.zeros((count, splits), bool), np.zeros((count, splits), bool)
        for fold, (inside, outside) in enumerate(_read_back(self.search, count)):
            train[inside, fold] = True
            test[outside, fold] = True
        sizes = train.sum(0)
        if not _repeats_itself(cv):  # who was where is not known any more: someone may have been everywhere
            return [(Counter(sizes.tolist()), splits)]
        for row in np.unique(np.concatenate([train, test], 1), axis=0):
            mine = Counter(sizes[row[:splits]].tolist())
            patterns.add((tuple(sorted(mine.items())), int(row[splits:].sum())))
            if len(patterns) > _MOST_PATTERNS:
                return [(Counter(sizes.tolist()), splits)]
        return [(Counter(dict(mine)), scored) for mine, scored in sorted(patterns)]

    def _entries(self, train: Counter[int], scored: int) -> list[LedgerEntry]:
        import dp_accounting

        from scatterdp.linear.method import gaussian_entry
        from scatterdp.privacy.ledger import LedgerEntry

        entries = []
        for number, params in enumerate(self.search.cv_results_["params"]):
            for size, times in sorted(train.items()):
                for planned in self._plan(number, size):
                    name = f"{planned.name} fitted on folds ({times} times) with {params}"
                    entries.append(LedgerEntry(name, dp_accounting.SelfComposedDpEvent(planned.event, times)))
        for scorer in _noisy_scorers(self.search):
            times = scored + bool(self.search.return_train_score) * sum(train.values())
            steps = times * len(self.search.cv_results_["params"])
            if steps:
                entries.append(gaussian_entry("scores on folds", scorer.noise_multiplier, 1.0, steps=steps))
        return entries

    def _plan(self, number: int, size: int) -> list[LedgerEntry]:
        """What one fit of a candidate on so many examples releases."""
        from scatterdp.privacy.ledger import LedgerEntry

        if (number, size) not in self._planned:
            self._planned[number, size] = [
                LedgerEntry(f"{name}: {entry.name}", entry.event)
                for name, step in self._leaves(number)
                if not learns_nothing(step)
                for entry in step.planned_ledger(size, self._shape(name), self.num_classes)
            ]
        return self._planned[number, size]

    def _leaves(self, number: int) -> list[tuple[str, Any]]:
        """The steps of a candidate, not fitted."""
        estimator = self._candidate(number)
        return leaves_of(estimator, type(estimator).__name__)

    def _candidate(self, number: int) -> Any:
        return fresh(self.search.estimator).set_params(**clone_values(self.search.cv_results_["params"][number]))

    def _shape(self, name: str) -> tuple[int, ...]:
        """What a step was given; private steps keep it, so that one which the best candidate lacks was given what another was."""
        *_, last = self.certificates.values()
        return input_shape(self.certificates.get(name, last))


def _digest(array: Any) -> str:
    """Of rows, labels or predictions: their values, type and shape."""
    values = np.asarray(array[:] if inputs.is_sliceable(array) else array)
    content = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
    return hashlib.sha256(repr((values.dtype.str, values.shape)).encode() + content).hexdigest()


def input_shape(certificate: dict[str, Any]) -> tuple[int, ...]:
    """``(D,)``, ``(H, W)`` or ``(H, W, 3)`` of what a fit was given."""
    if "image_shape" not in certificate["data"]:
        return tuple(certificate["features"]["shape"])
    channels, height, width = certificate["data"]["image_shape"]
    return (height, width) if channels == 1 else (height, width, channels)


def clone_values(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters whose estimators, where there are any, are fresh."""
    return {name: clone(value, safe=False) for name, value in params.items()}


def _noisy_scorers(search: Any) -> list[NoisyAccuracy]:
    """The search's scorers when all of them add noise, else none."""
    scoring = search.scoring
    scorers = list(scoring.values()) if isinstance(scoring, dict) else [scoring]
    return scorers if all(isinstance(scorer, NoisyAccuracy) for scorer in scorers) else []


def _by_position(search: Any) -> bool:
    if search.cv is None or isinstance(search.cv, numbers.Integral):
        return False  # scikit-learn then stratifies a classifier's folds
    return type(_splitter(search)) in BY_POSITION or not hasattr(search.cv, "split")  # given as lists of positions


def _positions_given(search: Any) -> bool:
    return _by_position(search) and (not hasattr(search.cv, "split") or isinstance(search.cv, PredefinedSplit))


def _splitter(search: Any) -> Any:
    return check_cv(search.cv)


def _read_back(search: Any, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The positions of each fold's examples to fit and to score, each at most once.

    Raises:
        UserError: they are not those that the search had (a generator gives its folds once), or do not fit so many examples.
    """
    splitter: Any = _splitter(search)
    rows = np.arange(count)
    try:
        folds = [(rows[inside], rows[outside]) for inside, outside in splitter.split(rows[:, None])]
    except (IndexError, ValueError) as error:
        raise UserError(f"search: its folds do not fit {count} examples ({error}); fit it again") from error
    if len(folds) != search.n_splits_:
        raise UserError(
            f"search: fitted on {search.n_splits_} folds, of which {len(folds)} can be read again; give cv as a splitter object or a list"
        )
    if any(len(np.unique(part)) < len(part) for fold in folds for part in fold):
        raise UserError("search: an example is in a fold several times, and counts more than once there; name it once")
    return folds


def _repeats_itself(cv: Any) -> bool:
    """Whether another call of ``split`` puts as many examples into the same folds; which ones does not matter."""
    if isinstance(cv, KFold):
        return True
    return isinstance(getattr(cv, "random_state", 0), int)
