"""Accuracy and mean cross entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scatterdp.training.evaluation import evaluate, predicted_classes
from scatterdp.training.rows import FeatureRows


def make(examples: int = 57, physical_batch_size: int = 10, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 6, generator=generator).to(dtype)
    y = torch.randint(0, 4, (examples,), generator=generator)
    classifier = nn.Linear(6, 4)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return classifier, FeatureRows(x, y, x.float().square().sum(1), physical_batch_size)


@pytest.mark.parametrize("physical_batch_size", [1, 10, 57, 1000])
def test_equals_one_pass_over_all_rows(physical_batch_size):
    classifier, rows = make(physical_batch_size=physical_batch_size)
    accuracy, loss = evaluate(classifier, rows)
    logits = classifier(rows.x)
    assert accuracy == int((logits.argmax(1) == rows.y).sum()) / 57
    assert loss == pytest.approx(F.cross_entropy(logits, rows.y).item(), rel=1e-6)


def test_zero_weights_know_nothing():
    classifier, rows = make()
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    accuracy, loss = evaluate(classifier, rows)
    assert accuracy == int((rows.y == 0).sum()) / 57
    assert loss == pytest.approx(math.log(4), rel=1e-6)


def test_other_weights_replace_the_classifiers_own():
    classifier, rows = make()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    other = {name: torch.zeros_like(value) for name, value in before.items()}
    other["bias"][2] = 1.0
    accuracy, _ = evaluate(classifier, rows, other)
    assert accuracy == pytest.approx((rows.y == 2).float().mean().item())
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_half_precision_rows_are_evaluated_in_single_precision():
    classifier, rows = make(dtype=torch.float16)
    _, loss = evaluate(classifier, rows)
    assert loss == pytest.approx(F.cross_entropy(classifier(rows.x.float()), rows.y).item(), rel=1e-6)


def test_leaves_no_gradients():
    classifier, rows = make()
    evaluate(classifier, rows)
    assert classifier.weight.grad is None


@pytest.mark.parametrize("physical_batch_size", [1, 10, 1000])
def test_predicted_classes_are_those_of_the_accuracy(physical_batch_size):
    classifier, rows = make(physical_batch_size=physical_batch_size)
    predicted = predicted_classes(classifier, rows)
    assert predicted.tolist() == classifier(rows.x).argmax(1).tolist()
    assert (predicted == rows.y.numpy()).mean() == evaluate(classifier, rows)[0]
