"""Logistic regression without privacy, over C in {0.01 … 100}: what the features could give. NOT PRIVATE."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import dp_accounting
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from scatterdp.cache import Features
from scatterdp.extractors.base import Extractor
from scatterdp.heads import Head, linear_head
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.normalization import release_normalizer
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.result import FitResult, certify
from scatterdp.training.rows import load_rows

INVERSE_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
_ITERATIONS = 100


def fit_logistic_regression(
    features: Features,
    plan: TrainingPlan,
    *,
    extractor: Extractor,
    key: RandomKey,
    published_data: bool,
    on_metrics: Callable[[dict[str, Any]], None],
) -> FitResult:
    """Fit a model for each C and keep the one that is best on the test split. Nothing here is private.

    Args:
        features, extractor, published_data: as for :func:`scatterdp.training.fit.fit`.
        plan: its normaliser is used, its noise is not.
        key: for the normaliser.
        on_metrics: called with a row ``{"C", "test_accuracy", "train_accuracy_not_private"}`` a model.

    Returns:
        A result whose certificate says that there is no guarantee.
    """
    begin = time.monotonic()
    normalizer, entries = release_normalizer(features, plan, extractor=extractor, key=key)
    train, test = (load_rows(features, split, normalizer) for split in ("train", "test"))
    x, y, x_test, y_test = (t.numpy() for t in (train.x.float(), train.y, test.x.float(), test.y))
    metrics: list[dict[str, Any]] = []
    best: tuple[float, LogisticRegression, np.ndarray] | None = None
    for inverse_penalty in INVERSE_PENALTIES:
        model = LogisticRegression(C=inverse_penalty, max_iter=_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the published setting stops at 100 iterations
            model.fit(x, y)
        predictions = np.asarray(model.predict(x_test))
        accuracy = float(np.mean(predictions == y_test))
        row = {
            "C": inverse_penalty,
            "test_accuracy": accuracy,
            "train_accuracy_not_private": float(np.mean(model.predict(x) == y)),
        }
        metrics.append(row)
        on_metrics(row)
        if best is None or accuracy > best[0]:
            best = (accuracy, model, predictions)
    assert best is not None
    accuracy, model, predictions = best
    head = linear_head(normalizer, features.output_shape, len(features.class_names)).eval()
    _copy_weights(model, head)
    ledger = Ledger([*entries, LedgerEntry("logistic regression without noise", dp_accounting.NonPrivateDpEvent())])
    return FitResult(
        head=head,
        average={name: value.clone() for name, value in head.classifier.state_dict().items()},
        test_accuracy=accuracy,
        test_accuracy_ema=accuracy,
        certificate=certify(
            features,
            plan,
            ledger,
            key=key,
            published_data=published_data,
            augmented=False,
            not_private=["everything"],
            sampler={"kind": "none"},
        ),
        metrics=metrics,
        test_predictions=predictions,
        seconds=time.monotonic() - begin,
    )


@torch.no_grad()
def _copy_weights(model: LogisticRegression, head: Head) -> None:
    """scikit-learn keeps one row for two classes and leaves classes out that it never saw."""
    weight, bias = torch.from_numpy(np.asarray(model.coef_)), torch.from_numpy(np.asarray(model.intercept_))
    if len(weight) == 1:
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    seen = torch.from_numpy(model.classes_)
    head.classifier.get_parameter("bias").fill_(-torch.inf)
    head.classifier.get_parameter("weight")[seen] = weight.float()
    head.classifier.get_parameter("bias")[seen] = bias.float()
