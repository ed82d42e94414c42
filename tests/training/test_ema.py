"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scatterdp.training.ema import MovingAverage


def set_weights(model: nn.Linear, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)
        model.bias.fill_(-value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95, 1.0])
def test_follows_the_formula(decay):
    model = nn.Linear(3, 2)
    set_weights(model, 5.0)
    average = MovingAverage(model, decay)
    expected = 5.0
    for step in range(200):
        value = float((step * 7) % 11)
        set_weights(model, value)
        average.update(model, step)
        d = min(decay, (2 + step) / (10 + step))
        expected = d * expected + (1 - d) * value
        torch.testing.assert_close(average.average["weight"], torch.full((2, 3), expected))
        torch.testing.assert_close(average.average["bias"], torch.full((2,), -expected))


def test_first_step_keeps_a_fifth_of_the_beginning():
    model = nn.Linear(1, 1)
    set_weights(model, 1.0)
    average = MovingAverage(model)
    set_weights(model, 0.0)
    average.update(model, 0)
    assert average.average["weight"].item() == pytest.approx(0.2)


def test_default_decay_holds_from_step_150_on():
    """(2 + t) / (10 + t) = 0.95 at t = 150."""
    model = nn.Linear(1, 1)
    for step, expected in ((149, 151 / 159), (150, 0.95), (10_000, 0.95)):
        set_weights(model, 1.0)
        average = MovingAverage(model)
        set_weights(model, 0.0)
        average.update(model, step)
        assert average.average["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_does_not_touch_the_model_and_keeps_its_own_copy():
    model = nn.Linear(2, 2)
    set_weights(model, 3.0)
    average = MovingAverage(model)
    average.update(model, 0)
    assert (model.weight == 3).all()
    average.average["weight"].zero_()
    assert (model.weight == 3).all()
    assert model.weight.requires_grad
    assert not average.average["weight"].requires_grad
