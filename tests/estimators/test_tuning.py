"""What searches cost."""

from __future__ import annotations

import json
import math
from typing import Any

import dp_accounting
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    PredefinedSplit,
    RandomizedSearchCV,
    ShuffleSplit,
    StratifiedKFold,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from scatterdp.errors import ConfigError, UserError
from scatterdp.estimators import DPClassifier, DPRandomSearch, DPStandardScaler, NoisyAccuracy, tuning_certificate
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.checking import check_certificate
from scatterdp.privacy.gaussian import gaussian_epsilon, inverse_square_sum
from scatterdp.privacy.ledger import Ledger

HEADS = ["class_means", "least_squares"]
NOISY = NoisyAccuracy(noise_multiplier=5.0)


def searched(blobs, estimator: Any = None, **arguments: Any) -> GridSearchCV:
    settings = {"cv": KFold(3), "scoring": NOISY, **arguments}
    estimator = estimator or DPClassifier(delta=1e-4, centre=False, random_state=0)
    return GridSearchCV(estimator, {"head": HEADS}, **settings).fit(*blobs)


def number(index: int) -> Any:
    """The rule that this candidate is the best."""
    return lambda _: index


def by_hand(search: GridSearchCV, *, fits: int, scores: int) -> float:
    """ε of so many fits of each candidate, so many scores of each, and the last fit."""
    squares = scores * len(HEADS) * 5.0**-2
    for head in HEADS:
        planned = DPClassifier(delta=1e-4, centre=False, head=head).planned_ledger(400, (6,), 3)  # type: ignore[arg-type]
        squares += fits * (inverse_square_sum(Ledger(planned).event) or math.nan)
    squares += (
        inverse_square_sum(Ledger.from_json(search.best_estimator_.privacy_certificate_["ledger"]).event) or math.nan
    )
    return gaussian_epsilon(squares**-0.5, delta=1e-4)


class TestGridSearch:
    def test_fits_scores_and_the_last_fit_are_composed(self, blobs):
        search = searched(blobs)
        certificate = tuning_certificate(search)
        assert certificate["private"] is True
        assert certificate["epsilon"] == pytest.approx(by_hand(search, fits=2, scores=1), rel=1e-3)
        assert certificate["model"]["fits"]["count"] == 7
        assert check_certificate(json.loads(json.dumps(certificate))).disagreements == []

    def test_without_a_partition_every_fold_may_have_the_example(self, blobs):
        search = searched(blobs, cv=ShuffleSplit(3, test_size=200))
        assert tuning_certificate(search)["epsilon"] == pytest.approx(by_hand(search, fits=3, scores=3), rel=1e-3)

    def test_known_positions_are_counted_one_by_one(self, blobs):
        # The first 100 examples are in every training set, the others in one of two.
        folds = [(np.arange(0, 350), np.arange(350, 600)), (np.r_[0:100, 350:600], np.arange(100, 350))]
        search = searched(blobs, cv=folds)
        certificate = tuning_certificate(search)
        assert certificate["epsilon"] == pytest.approx(by_hand(search, fits=2, scores=0), rel=1e-3)

    @pytest.mark.parametrize("once", [lambda X: KFold(3).split(X), lambda X: iter(list(KFold(3).split(X)))])
    def test_folds_that_can_be_read_only_once_are_refused(self, blobs, once):
        search = searched(blobs, cv=once(blobs[0]))
        with pytest.raises(UserError, match="of which 0 can be read again; give cv as a splitter object or a list"):
            tuning_certificate(search)

    def test_lists_of_positions_must_fit(self, blobs):
        folds = [(np.arange(0, 350), np.arange(350, 600))]
        search = searched(blobs, cv=folds)
        folds[0] = (np.arange(0, 350), np.arange(350, 700))
        with pytest.raises(UserError, match="do not fit 600 examples"):
            tuning_certificate(search)
        twice = searched(blobs, cv=[(np.r_[0:350, 0:350], np.arange(350, 600))])
        with pytest.raises(UserError, match="several times"):
            tuning_certificate(twice)

    def test_exact_scores_have_no_guarantee(self, blobs):
        certificate = tuning_certificate(searched(blobs, scoring=None))
        assert certificate["private"] is False
        assert certificate["epsilon"] is None
        alone = certificate["model"]["fits"]["epsilon"]
        assert 3.0 < alone < tuning_certificate(searched(blobs))["epsilon"]
        assert "NOT differentially private" in certificate["statement"]
        assert "exact scores on private examples, and the choice by them" in certificate["statement"]
        assert "7 fits of the search alone are together (ε = " in certificate["statement"]
        assert check_certificate(json.loads(json.dumps(certificate))).disagreements == []

    @pytest.mark.parametrize("cv", [3, np.int64(3), StratifiedKFold(3)])
    def test_stratified_folds_have_none(self, blobs, cv):
        certificate = tuning_certificate(searched(blobs, cv=cv))
        assert certificate["private"] is False
        assert "folds that depend on the labels" in certificate["statement"]
        assert "fits of the search alone would be, on folds by position, together (ε = " in certificate["statement"]

    def test_scores_on_training_sets_count(self, blobs):
        plain, more = (tuning_certificate(searched(blobs, return_train_score=flag)) for flag in (False, True))
        assert more["epsilon"] > plain["epsilon"]

    def test_of_a_pipeline(self, blobs):
        scaler = DPStandardScaler(epsilon=0.5, delta=1e-4, bounds=(-5, 5), random_state=0)
        pipeline = Pipeline([("scale", scaler), ("classify", DPClassifier(delta=1e-4, random_state=0))])
        search = GridSearchCV(pipeline, {"classify__head": HEADS}, cv=KFold(3), scoring=NOISY, refit=number(0)).fit(
            *blobs
        )
        certificate = tuning_certificate(search)
        scales = [e for e in Ledger.from_json(certificate["ledger"]).entries if "scale: " in e.name]
        squares = sum(inverse_square_sum(entry.event) or math.nan for entry in scales)
        assert squares == pytest.approx(5 * scaler._noise_multiplier() ** -2, rel=1e-9)
        assert check_certificate(json.loads(json.dumps(certificate))).disagreements == []

    def test_a_step_that_only_losers_have_counts(self, blobs):
        """Whichever wins, every candidate was fitted on the folds."""
        scaler = DPStandardScaler(epsilon=0.5, delta=1e-4, bounds=(-5, 5), random_state=0)
        for wins in (0, 1):
            pipeline = Pipeline([("scale", "passthrough"), ("classify", DPClassifier(delta=1e-4, random_state=0))])
            search = GridSearchCV(
                pipeline, {"scale": [scaler, "passthrough"]}, cv=KFold(3), scoring=NOISY, refit=number(wins)
            ).fit(*blobs)
            entries = Ledger.from_json(tuning_certificate(search)["ledger"]).entries
            squares = sum(inverse_square_sum(entry.event) or math.nan for entry in entries if "scale: " in entry.name)
            assert squares == pytest.approx((3 - wins) * scaler._noise_multiplier() ** -2, rel=1e-9)

    @pytest.mark.parametrize(
        ("steps", "candidates", "name"),
        [
            ([("s", "passthrough")], {"s": [StandardScaler(), "passthrough"]}, "s of a candidate"),
            (
                [("s", "passthrough")],
                {"s": [Pipeline([("t", StandardScaler())]), "passthrough"]},
                "s: t of a candidate",
            ),
            ([], {"c": [LogisticRegression(), DPClassifier(delta=1e-4)]}, "c of a candidate"),
        ],
    )
    def test_a_step_without_privacy_counts_when_it_loses(self, blobs, steps, candidates, name):
        pipeline = Pipeline([*steps, ("c", DPClassifier(delta=1e-4, random_state=0))])
        search = GridSearchCV(pipeline, candidates, cv=KFold(3), scoring=NOISY, refit=number(1)).fit(*blobs)
        certificate = tuning_certificate(search)
        assert certificate["private"] is False
        assert certificate["model"]["fits"]["epsilon"] is None
        assert f"{name}, fitted without privacy" in certificate["statement"]
        assert "-private" not in certificate["statement"]
        assert check_certificate(json.loads(json.dumps(certificate))).disagreements == []

    def test_nothing_is_told_of_the_fits_alone_where_the_best_learns_without_privacy(self, blobs):
        pipeline = Pipeline([("s", StandardScaler()), ("c", DPClassifier(delta=1e-4, random_state=0))])
        search = GridSearchCV(pipeline, {"c__head": HEADS}, cv=KFold(3), scoring=NOISY).fit(*blobs)
        certificate = tuning_certificate(search)
        assert certificate["model"]["fits"]["epsilon"] is None
        assert "Without noise: s, fitted without privacy." in certificate["statement"]
        assert "-private" not in certificate["statement"]

    def test_fits_that_cannot_be_planned(self, blobs):
        inner = DPRandomSearch(DPClassifier(), {"head": HEADS}, delta=1e-4, mean_trials=2.0, random_state=0)
        search = GridSearchCV(inner, {"epsilon": [1.0, 2.0]}, cv=KFold(2), scoring=NOISY).fit(*blobs)
        certificate = tuning_certificate(search)
        assert certificate["private"] is False
        assert "DPRandomSearch of a candidate, fitted without privacy or at a cost that" in certificate["statement"]

    def test_a_pipeline_in_a_pipeline_is_counted_on_folds(self, blobs):
        scaler = DPStandardScaler(epsilon=0.5, delta=1e-4, bounds=(-5, 5), random_state=0)
        classifier = DPClassifier(delta=1e-4, random_state=0)
        flat = Pipeline([("scale", scaler), ("classify", classifier)])
        nested = Pipeline([("first", Pipeline([("scale", scaler)])), ("classify", classifier)])
        found = [
            tuning_certificate(
                GridSearchCV(pipeline, {"classify__head": HEADS}, cv=KFold(3), scoring=NOISY, refit=number(0)).fit(
                    *blobs
                )
            )["epsilon"]
            for pipeline in (flat, nested)
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-9)

    @pytest.mark.parametrize(
        ("scorer", "candidates", "origin"),
        [
            (None, {"head": HEADS}, "system"),
            (0, {"head": HEADS}, "seed"),
            (None, {"random_state": [0, None]}, "seed"),
        ],
    )
    def test_any_known_seed_is_told(self, blobs, scorer, candidates, origin):
        scoring = NoisyAccuracy(noise_multiplier=5.0, random_state=scorer)
        search = GridSearchCV(DPClassifier(delta=1e-4), candidates, cv=KFold(2), scoring=scoring, refit=number(1))
        certificate = tuning_certificate(search.fit(*blobs))
        assert certificate["noise_source"]["origin"] == origin
        assert ("The noise comes from a seed" in certificate["statement"]) == (origin == "seed")

    def test_neighbours_keep_the_others_in_their_folds(self, blobs):
        certificate = tuning_certificate(searched(blobs))
        assert "zero-out" in certificate["adjacency"]
        assert "zero-out" in certificate["statement"]
        assert certificate["assumptions"] == []

    @pytest.mark.parametrize(
        "cv",
        [[(np.arange(0, 350), np.arange(350, 600))], PredefinedSplit(np.arange(600) % 2)],
        ids=["list", "predefined"],
    )
    def test_positions_that_were_given_are_taken_on_trust(self, blobs, cv):
        certificate = tuning_certificate(searched(blobs, cv=cv))
        assert certificate["assumptions"] == [
            "The folds given as lists of positions are taken to be chosen without the data."
        ]
        assert certificate["assumptions"][0] in certificate["statement"]
        assert check_certificate(json.loads(json.dumps(certificate))).disagreements == []

    def test_other_searches(self, blobs):
        search = RandomizedSearchCV(
            DPClassifier(delta=1e-4, random_state=0), {"epsilon": [0.5, 1.0]}, n_iter=2, cv=KFold(2), scoring=NOISY
        ).fit(*blobs)
        ledger = Ledger.from_json(tuning_certificate(search)["ledger"])
        epsilons = [entry.name for entry in ledger.entries if "epsilon" in entry.name]
        assert len(epsilons) == 2

    def test_what_is_none(self, blobs):
        with pytest.raises(UserError, match="refit=True"):
            tuning_certificate(GridSearchCV(DPClassifier(delta=1e-4), {"head": HEADS}, cv=2, refit=False).fit(*blobs))
        with pytest.raises(UserError, match="not differentially private"):
            tuning_certificate(GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2).fit(*blobs))
        with pytest.raises(UserError, match="expected a fitted GridSearchCV"):
            tuning_certificate(DPClassifier(delta=1e-4).fit(*blobs))


class TestNoisyAccuracy:
    class Right:
        """Predicts what it is given."""

        def predict(self, X: np.ndarray) -> np.ndarray:
            return X

    @pytest.mark.parametrize(("factor", "fits"), [(1.0, True), (2 / 3, False), (1.5, False)])
    def test_its_noise_is_that_of_its_event(self, factor, fits):
        y = np.arange(50) % 5
        y_hat = np.where(np.arange(50) < 40, y, -1)
        scores = np.array([NoisyAccuracy(noise_multiplier=4.0)(self.Right(), y_hat, y) for _ in range(500)])
        deviation = (scores - 0.8).std() * 50 / (4.0 * factor)
        assert (abs(deviation - 1) < norm.isf(1e-5) / (2 * 500) ** 0.5) == fits
        assert scores.mean() == pytest.approx(0.8, abs=4.0 / 50 * 5 / 500**0.5)

    def test_other_predictions_have_other_noise(self):
        y = np.arange(50) % 5
        scorer = NoisyAccuracy(noise_multiplier=4.0, random_state=0)
        one, other = (scorer(self.Right(), np.where(np.arange(50) < n, y, -1), y) for n in (40, 41))
        assert one == scorer(self.Right(), np.where(np.arange(50) < 40, y, -1), y)
        assert abs((other - one) - 1 / 50) > 1e-6

    def test_other_rows_labels_and_candidates_have_other_noise(self):
        """With as many right at the same places."""

        class Known(BaseEstimator):
            def __init__(self, strength: float = 1.0, shift: int = 0) -> None:
                self.strength, self.shift = strength, shift

            def predict(self, X: np.ndarray) -> np.ndarray:
                return (X[:, 0] + self.shift) % 5

        scorer = NoisyAccuracy(noise_multiplier=4.0, random_state=0)
        X = np.stack([np.arange(50), np.zeros(50)], 1)
        y, moved = np.arange(50) % 5, X + np.array([0, 1])
        scores = [
            scorer(Known(), X, y),
            scorer(Known(), moved, y),
            scorer(Known(), X + np.array([1, 0]), (y + 1) % 5),
            scorer(Known(strength=2.0), X, y),
            scorer(Known(shift=1), X, (y + 1) % 5),
        ]
        assert len(set(scores)) == len(scores)
        assert scorer(Known(), X, y) == scores[0]
        assert len({scorer(Known(), X.astype(object), y) for _ in range(2)}) == 1

    @pytest.mark.parametrize("noise_multiplier", [0, -1, math.inf, math.nan])
    def test_noise_that_is_none(self, noise_multiplier):
        with pytest.raises(ConfigError, match="noise_multiplier="):
            NoisyAccuracy(noise_multiplier=noise_multiplier)


def test_composition_is_dearer_than_the_best_single_fit_and_cheaper_than_the_sum(blobs):
    certificate = tuning_certificate(searched(blobs))
    assert 3.0 < certificate["epsilon"] < 5 * 3.0
    assert certificate["epsilon"] == pytest.approx(
        epsilon_of(
            dp_accounting.ComposedDpEvent([e.event for e in Ledger.from_json(certificate["ledger"]).entries]),
            delta=1e-4,
        )
    )
