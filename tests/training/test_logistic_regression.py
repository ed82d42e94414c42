"""Logistic regression without privacy: what it says, and that the head is scikit-learn's model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from scatterdp.cache import FeatureCache, extract_features
from scatterdp.datasets import Dataset
from scatterdp.extractors.base import Extractor
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.evaluation import evaluate
from scatterdp.training.logistic_regression import INVERSE_PENALTIES, fit_logistic_regression
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.result import FitResult
from scatterdp.training.rows import load_rows


def fit(features: FeatureCache, extractor: Extractor, **changes: Any) -> tuple[FitResult, list[dict[str, Any]]]:
    values: dict[str, Any] = {
        "num_examples": features.num_rows("train"),
        "batch_size": 20,
        "epochs": 1,
        "lr": 1.0,
        "num_groups": 3,
    }
    plan = TrainingPlan(**(values | changes))
    rows: list[dict[str, Any]] = []
    result = fit_logistic_regression(
        features, plan, extractor=extractor, key=RandomKey.from_seed(0), published_data=False, on_metrics=rows.append
    )
    return result, rows


def test_says_that_nothing_is_private(small_features: FeatureCache, small_extractor: Extractor):
    result, _ = fit(small_features, small_extractor)
    certificate = result.certificate
    assert certificate["private"] is False
    assert certificate["epsilon"] is None
    assert certificate["not_private"][-1] == "everything"
    assert certificate["sampler"] == {"kind": "none"}
    assert [(entry["name"], entry["event"]) for entry in certificate["ledger"]] == [
        ("logistic regression without noise", {"type": "NonPrivateDpEvent"})
    ]


def test_released_statistics_stay_in_the_ledger(small_features: FeatureCache, small_extractor: Extractor):
    result, _ = fit(small_features, small_extractor, input_norm="BN")
    assert [entry["name"] for entry in result.certificate["ledger"]] == [
        "channel statistics",
        "logistic regression without noise",
    ]
    assert result.certificate["private"] is False
    assert result.head.state_dict()["normalizer.mean"].shape == (6,)


@pytest.fixture
def hard_features(small_dataset: Dataset, small_extractor: Extractor, tmp_path: Path) -> Iterator[FeatureCache]:
    """Features whose training labels are wrong for a third: the penalty matters."""
    rng = np.random.default_rng(1)
    labels = small_dataset.y_train.copy()
    wrong = rng.choice(60, 25, replace=False)
    labels[wrong] = rng.integers(0, 3, 25)
    dataset = dataclasses.replace(small_dataset, y_train=labels)
    with extract_features(dataset, small_extractor, features_dir=tmp_path) as features:
        yield features


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("input_norm", ["none", "GroupNorm"])
def test_a_row_for_each_penalty_and_the_best_on_the_test_split(
    hard_features: FeatureCache, small_extractor: Extractor, input_norm
):
    result, rows = fit(hard_features, small_extractor, input_norm=input_norm)
    assert rows == result.metrics
    assert [row["C"] for row in rows] == list(INVERSE_PENALTIES) == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert all(row.keys() == {"C", "test_accuracy", "train_accuracy_not_private"} for row in rows)
    assert len({row["test_accuracy"] for row in rows}) > 2
    assert result.test_accuracy == result.test_accuracy_ema == max(row["test_accuracy"] for row in rows)
    assert result.test_accuracy > 0.8  # chance: 1/3
    train, test = (load_rows(hard_features, split, result.head.normalizer) for split in ("train", "test"))
    for row in rows:
        model = LogisticRegression(C=row["C"], max_iter=100).fit(train.x.numpy(), train.y.numpy())
        assert row["test_accuracy"] == pytest.approx(model.score(test.x.numpy(), test.y.numpy()), abs=1e-9)
    for weights in (None, result.average):
        assert evaluate(result.head.classifier, test, weights)[0] == result.test_accuracy
    best = next(row for row in rows if row["test_accuracy"] == result.test_accuracy)
    assert evaluate(result.head.classifier, train)[0] == best["train_accuracy_not_private"]


@pytest.mark.parametrize("present", [(0, 1), (0, 2), (1, 2)])
def test_two_classes_of_three_in_training(small_dataset: Dataset, small_extractor: Extractor, tmp_path: Path, present):
    """One weight row of scikit-learn becomes two; the class that it never saw is never predicted."""
    kept = np.isin(small_dataset.y_train, present)
    dataset = dataclasses.replace(
        small_dataset, x_train=small_dataset.x_train[kept], y_train=small_dataset.y_train[kept]
    )
    with extract_features(dataset, small_extractor, features_dir=tmp_path) as features:
        result, rows = fit(features, small_extractor)
        test = load_rows(features, "test", result.head.normalizer)
        train = load_rows(features, "train", result.head.normalizer)
        assert evaluate(result.head.classifier, test)[0] == result.test_accuracy
        predicted = result.head.classifier(test.x).argmax(1)
        assert set(predicted.tolist()) == set(present)
        probabilities = torch.softmax(result.head.classifier(test.x), 1)
        assert (probabilities[:, [label for label in range(3) if label not in present]] == 0).all()
        best = max(rows, key=lambda row: row["test_accuracy"])
        assert evaluate(result.head.classifier, train)[0] == best["train_accuracy_not_private"]


def test_probabilities_of_two_classes_are_scikit_learns(
    small_dataset: Dataset, small_extractor: Extractor, tmp_path: Path
):
    splits = {}
    for split in ("train", "test"):
        x, y = small_dataset.split(split)
        splits |= {f"x_{split}": x[y < 2], f"y_{split}": y[y < 2]}
    dataset = dataclasses.replace(small_dataset, **splits, class_names=("above", "below"))
    with extract_features(dataset, small_extractor, features_dir=tmp_path) as features:
        result, _ = fit(features, small_extractor, input_norm="none")
        train, test = (load_rows(features, split, result.head.normalizer) for split in ("train", "test"))
    best = max(result.metrics, key=lambda row: row["test_accuracy"])["C"]
    model = LogisticRegression(C=best, max_iter=100).fit(train.x.numpy(), train.y.numpy())
    ours = torch.softmax(result.head.classifier(test.x), 1).detach().numpy()
    np.testing.assert_allclose(ours, model.predict_proba(test.x.numpy()), atol=1e-4)
