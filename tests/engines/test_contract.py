"""Clip factors, and the sensitivity that both engines owe for any input, however absurd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import ENGINES
from scatterdp.engines.clipping import clip_factors


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - (labels[:, None] == torch.arange(outputs.shape[1])).to(outputs.dtype)).square().mean(1)


LOSSES = {"cross entropy": cross_entropy, "squared error": squared_error}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """L2 distance over all parameters jointly."""
    assert a.keys() == b.keys()
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


def linear_model(weight: np.ndarray, bias: np.ndarray | None) -> nn.Linear:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
        if bias is not None:
            model.bias.copy_(torch.from_numpy(bias))
    return model


def test_clip_factors_are_min_of_one_and_bound_over_norm():
    norms = torch.tensor([0.0, 0.5, 1.0, 2.0, 8.0])
    assert clip_factors(norms, 1.0).tolist() == [1.0, 1.0, 1.0, 0.5, 0.125]
    assert clip_factors(norms, 4.0).tolist() == [1.0, 1.0, 1.0, 1.0, 0.5]


def test_clip_factors_drop_what_is_not_finite():
    assert clip_factors(torch.tensor([torch.nan, torch.inf, 1.0]), 0.5).tolist() == [0.0, 0.0, 0.5]


def test_clip_factors_of_a_scalar_and_of_nothing():
    assert clip_factors(torch.tensor(4.0), 1.0).item() == 0.25
    assert clip_factors(torch.zeros(0), 1.0).shape == (0,)


@pytest.mark.parametrize("bound", [0, 0.0, -1.0, -math.inf, math.nan])
def test_bound_must_be_positive(bound):
    with pytest.raises(ValueError, match=rf"^max_grad_norm={bound}: expected a number ≥ 1e-15$"):
        clip_factors(torch.ones(1), bound)


def test_an_infinite_bound_clips_nothing():
    assert clip_factors(torch.tensor([0.0, 1.0, 1e30]), math.inf).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_engines_refuse_a_bound_that_is_not_positive(engine, size, bound):
    x, y = torch.ones(size, 4), torch.zeros(size, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"max_grad_norm={bound}: expected a number ≥ 1e-15"):
        ENGINES[engine](nn.Linear(4, 2), cross_entropy, x, y, max_grad_norm=bound)


any_float = st.floats(width=32)
wide_float = st.floats(-(2.0**40), 2.0**40, width=32)


@st.composite
def absurd_batches(draw):
    elements = draw(st.sampled_from([any_float, wide_float, st.floats(-2, 2, width=32)]))
    examples, inputs, classes = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(2, 4))
    x = draw(hnp.arrays(np.float32, (examples, inputs), elements=elements))
    y = draw(hnp.arrays(np.int64, examples, elements=st.integers(0, classes - 1)))
    weight = draw(hnp.arrays(np.float32, (classes, inputs), elements=elements))
    bias = draw(st.none() | hnp.arrays(np.float32, classes, elements=elements))
    return linear_model(weight, bias), torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("engine", ENGINES)
@given(batch=absurd_batches(), bound=st.sampled_from([0.01, 0.1, 1.0, 100.0]), data=st.data())
@settings(deadline=None, max_examples=60)
def test_one_example_moves_the_sum_by_at_most_the_bound(engine, loss, batch, bound, data):
    model, x, y = batch
    left_out = data.draw(st.integers(0, len(x) - 1))
    others = torch.arange(len(x)) != left_out

    def clipped_sum(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        result = ENGINES[engine](model, LOSSES[loss], x, y, max_grad_norm=bound).gradients
        assert all(gradient.isfinite().all() for gradient in result.values())
        return result

    assert distance(clipped_sum(x, y), clipped_sum(x[others], y[others])) <= bound * (1 + 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_sensitivity_is_reached(engine):
    """The bound of the property above is not slack: a long gradient ends with norm exactly C over both parameters."""
    model = linear_model(np.zeros((2, 3), np.float32), np.zeros(2, np.float32))
    x, y = torch.tensor([[3.0, -4.0, 12.0]]), torch.tensor([1])
    result = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.1)
    zeros = {name: torch.zeros_like(gradient) for name, gradient in result.gradients.items()}
    assert distance(result.gradients, zeros) == pytest.approx(0.1, rel=1e-6)
    assert result.norms.tolist() == pytest.approx([math.sqrt(0.5) * math.sqrt(13**2 + 1)], rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_residuals_whose_squares_underflow_are_clipped_too(engine):
    """Softmax gradients of 1e-23 times features of 1e19 are gradients of 1e-4, far above a bound of 1e-6."""
    model = linear_model(np.array([[53e-19], [0.0]], np.float32), np.zeros(2, np.float32))
    x, y = torch.tensor([[1e19]]), torch.tensor([0])
    result = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=1e-6)
    zeros = {name: torch.zeros_like(gradient) for name, gradient in result.gradients.items()}
    assert distance(result.gradients, zeros) <= 1e-6 * (1 + 1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_bound_holds_at_every_magnitude(engine, loss, bias):
    """Norms that overflow, factors that are subnormal: no rounding may let a gradient through."""
    generator = torch.Generator().manual_seed(0)
    for exponent in (-40, -22, -10, 0, 10, 15, 18, 19, 30, 38):
        x = torch.randn(1, 5, generator=generator).clamp(-3, 3) * 10.0**exponent
        for weight_exponent in (-30, -17, 0, 10, 17, 18.5, 30):
            weight = torch.randn(3, 5, generator=generator).numpy() * np.float32(10.0**weight_exponent)
            model = linear_model(weight, np.zeros(3, np.float32) if bias else None)
            for bound in (1e-6, 1e-3, 0.1, 100.0):
                gradients = ENGINES[engine](model, LOSSES[loss], x, torch.tensor([1]), max_grad_norm=bound).gradients
                zeros = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
                length = distance(gradients, zeros)
                assert length <= bound * (1 + 1e-5), (exponent, weight_exponent, bound, length / bound)
