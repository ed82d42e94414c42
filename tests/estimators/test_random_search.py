"""A search with a random number of trials."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from scatterdp.errors import ConfigError
from scatterdp.estimators import DPClassifier, DPRandomSearch, NoisyAccuracy, composed_certificate, random_search
from scatterdp.estimators.composition import fresh
from scatterdp.privacy.checking import check_certificate
from scatterdp.privacy.gaussian import inverse_square_sum
from scatterdp.privacy.ledger import Ledger
from scatterdp.privacy.tuning import NumberOfTrials
from scatterdp.report.guarantee import guarantee_in_words

CANDIDATES = {"head": ["class_means", "least_squares"], "centre": [True, False]}


def search(**parameters) -> DPRandomSearch:
    settings = {"epsilon": 2.0, "delta": 1e-4, "mean_trials": 4.0, "random_state": 1, **parameters}
    return DPRandomSearch(DPClassifier(), settings.pop("candidates", CANDIDATES), **settings)


@pytest.fixture(scope="module")
def fitted(blobs) -> DPRandomSearch:
    return search().fit(*blobs)


def test_it_learns(fitted, blobs):
    assert fitted.score(*blobs) > 0.8
    assert set(fitted.best_params_) == {"head", "centre"}
    assert fitted.best_params_["head"] == fitted.best_estimator_.head
    assert fitted.predict_proba(blobs[0]).shape == (600, 3)
    assert fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.n_features_in_ == 6


def test_the_certificate_is_of_the_whole_search(fitted):
    certificate = json.loads(json.dumps(fitted.privacy_certificate_))
    checked = check_certificate(certificate)
    assert checked.disagreements == []
    assert 1.99 < certificate["epsilon"] <= 2.0
    (entry,) = certificate["ledger"]
    assert entry["event"]["type"] == "RepeatAndSelectDpEvent"
    assert entry["event"]["mean"] == 4.0
    assert fitted.best_estimator_.privacy_certificate_ == fitted.privacy_certificate_
    told = " ".join(guarantee_in_words(certificate, checked).split())
    assert "the best of a random number of trials, 4 on average, each a sum with Gaussian noise" in told
    assert "how long the search took" in told


def test_neighbours_keep_the_others_positions(fitted):
    assert "zero-out" in fitted.privacy_certificate_["adjacency"]
    assert "zero-out" in composed_certificate(make_pipeline(Normalizer(), fitted), delta=1e-4)["adjacency"]


def test_further_fits_warn(blobs, fitted, tmp_path):
    """Of the search, of its best classifier and of what was saved: with what they cost together, the search's ε included."""
    again = search().fit(*blobs)
    with pytest.warns(UserWarning, match=r"DPRandomSearch.fit: a further fit is a fresh spend") as warned:
        again.fit(*blobs)
    assert len(warned) == 1
    best = again.best_estimator_
    assert best._spent == again.privacy_certificate_["ledger"]
    best.save(tmp_path / "model")
    for classifier in (best, DPClassifier.load(tmp_path / "model")):
        with pytest.warns(UserWarning, match=r"DPClassifier.fit: a further fit is a fresh spend"):
            classifier.fit(*blobs)
        assert classifier._spent[0]["name"] == "best of a random number of trials"


def test_a_candidate_with_less_noise_is_refused():
    classifier = DPClassifier(delta=1e-4, head="class_means", centre=False)
    (planned,) = classifier.planned_ledger(480, (6,), 3)
    squares = inverse_square_sum(planned.event)
    assert squares is not None
    random_search._check_gaussian(classifier, 480, (6,), 3, squares**-0.5)
    with pytest.raises(ConfigError, match="less noise"):
        random_search._check_gaussian(classifier, 480, (6,), 3, 1.01 * squares**-0.5)


def test_the_best_is_saved_with_it(fitted, blobs, tmp_path):
    fitted.best_estimator_.save(tmp_path / "model")
    again = DPClassifier.load(tmp_path / "model")
    assert again.privacy_certificate_ == fitted.privacy_certificate_
    np.testing.assert_array_equal(again.predict_proba(blobs[0]), fitted.predict_proba(blobs[0]))


def test_every_trial_stays_within_its_share(blobs, monkeypatch):
    """The fit and the score of each trial, as they happen, cost no more than the entry's Gaussian."""
    fits, scores = [], []
    fit, score = DPClassifier.fit, NoisyAccuracy.__call__

    def seen_fit(self, X, y):
        fits.append((len(X), fit(self, X, y).privacy_certificate_["ledger"]))
        return self

    def seen_score(self, estimator, X, y):
        scores.append((len(X), self.noise_multiplier))
        return score(self, estimator, X, y)

    monkeypatch.setattr(DPClassifier, "fit", seen_fit)
    monkeypatch.setattr(NoisyAccuracy, "__call__", seen_score)
    found = search().fit(*blobs)
    sigma = found.privacy_certificate_["ledger"][0]["event"]["event"]["events"][0]["noise_multiplier"]
    assert len(fits) == len(scores) >= 1
    assert all(size == 480 for size, _ in fits)
    assert all((size, noise) == (120, sigma) for size, noise in scores)
    for _, ledger in fits:
        squares = inverse_square_sum(Ledger.from_json(ledger).event)
        assert squares is not None
        assert 0.99 * sigma**-2 < squares <= sigma**-2 * (1 + 1e-9)


def test_nobody_is_in_the_fit_and_in_the_score(blobs, monkeypatch):
    X = np.concatenate([blobs[0], np.arange(600)[:, None]], 1)
    seen = []
    fit = DPClassifier.fit
    monkeypatch.setattr(DPClassifier, "fit", lambda self, X, y: seen.append(set(X[:, -1])) or fit(self, X, y))
    score = NoisyAccuracy.__call__

    def seen_score(self, estimator, X, y):
        assert not seen[-1] & set(X[:, -1])
        assert seen[-1] == seen[0]
        return score(self, estimator, X, y)

    monkeypatch.setattr(NoisyAccuracy, "__call__", seen_score)
    search().fit(X, blobs[1])


def test_the_best_score_wins(blobs, monkeypatch):
    scores = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(NumberOfTrials, "draw", lambda self, key: 3)
    monkeypatch.setattr(random_search.NoisyAccuracy, "__call__", lambda *_: next(scores))
    assert search().fit(*blobs).best_score_ == 0.9


def test_the_same_seed_finds_the_same(fitted, blobs):
    again = fresh(fitted).fit(*blobs)
    assert again.best_score_ == fitted.best_score_
    np.testing.assert_array_equal(again.predict_proba(blobs[0]), fitted.predict_proba(blobs[0]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(blobs[0]), fitted.predict(blobs[0]))


def test_the_users_estimator_is_left_alone(blobs):
    classifier = DPClassifier()
    before = copy.deepcopy(classifier.__dict__)
    DPRandomSearch(classifier, CANDIDATES, delta=1e-4, mean_trials=2.0).fit(*blobs)
    assert classifier.__dict__ == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"candidates": {"epsilon": [1.0]}}, "epsilon is set by the search"),
        ({"candidates": {"head": ["dp_sgd"]}}, "samples batches"),
        ({"mean_trials": 1.0}, "mean=1.0"),
        ({"shape": math.inf}, "may be 0"),
        ({"validation_share": 1.0}, "validation_share=1.0"),
        ({"epsilon": -1.0}, "epsilon=-1.0"),
    ],
)
def test_parameters_out_of_range(blobs, parameters, message):
    with pytest.raises(ConfigError, match=message):
        search(**parameters).fit(*blobs)


def test_not_fitted(blobs):
    with pytest.raises(NotFittedError):
        search().predict(blobs[0])


def change_sigma(entry):
    entry["event"]["event"]["events"][0]["noise_multiplier"] *= 2


def change_mean(entry):
    entry["event"]["mean"] = 2.0


def change_release(entry):
    entry["details"]["releases"][0]["details"]["noise_multiplier"] *= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_sigma, "the event of the best of a random number of trials is not that of its trials"),
        (change_mean, "is not that of its trials"),
        (change_release, "is not that of its noise multiplier"),
    ],
)
def test_what_was_changed_is_found(fitted, change, said):
    certificate = json.loads(json.dumps(fitted.privacy_certificate_))
    change(certificate["ledger"][0])
    assert any(said in sentence for sentence in check_certificate(certificate).disagreements)
