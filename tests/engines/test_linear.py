"""The closed form against one example at a time, and its edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import ENGINES, linear_engine, loop_engine


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def smoothed_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none", label_smoothing=0.2)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - (labels[:, None] == torch.arange(outputs.shape[1])).to(outputs.dtype)).square().mean(1)


def margin(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.multi_margin_loss(outputs, labels, reduction="none")


LOSSES = {f.__name__: f for f in (cross_entropy, smoothed_cross_entropy, squared_error, margin)}


def make(seed: int, examples: int, inputs: int, classes: int, *, bias=True, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(inputs, classes, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    x = scale * torch.randn(examples, inputs, generator=generator, dtype=dtype)
    y = torch.randint(0, classes, (examples,), generator=generator)
    return model, x, y


@given(
    seed=st.integers(0, 2**31),
    examples=st.integers(0, 9),
    inputs=st.integers(1, 12),
    classes=st.integers(2, 6),
    bias=st.booleans(),
    scale=st.floats(1e-3, 1e3),
    bound=st.floats(1e-3, 1e3),
    loss=st.sampled_from(sorted(LOSSES)),
    given_norms=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_equals_the_loop(seed, examples, inputs, classes, bias, scale, bound, loss, given_norms):
    model, x, y = make(seed, examples, inputs, classes, bias=bias, scale=scale, dtype=torch.float64)
    squared_norms = x.square().sum(1) if given_norms else None
    fast = linear_engine(model, LOSSES[loss], x, y, max_grad_norm=bound, squared_norms=squared_norms)
    slow = loop_engine(model, LOSSES[loss], x, y, max_grad_norm=bound)
    assert fast.gradients.keys() == slow.gradients.keys() == dict(model.named_parameters()).keys()
    for name in fast.gradients:
        torch.testing.assert_close(fast.gradients[name], slow.gradients[name], rtol=1e-7, atol=1e-9 * bound)
    torch.testing.assert_close(fast.norms, slow.norms, rtol=1e-7, atol=1e-12)


@given(
    seed=st.integers(0, 2**31),
    examples=st.integers(1, 40),
    inputs=st.integers(1, 60),
    bias=st.booleans(),
    bound=st.sampled_from([0.01, 0.1, 1.0, 1e6]),
    loss=st.sampled_from(sorted(LOSSES)),
)
@settings(deadline=None, max_examples=40)
def test_equals_the_loop_in_single_precision(seed, examples, inputs, bias, bound, loss):
    model, x, y = make(seed, examples, inputs, 4, bias=bias, scale=0.3)
    fast = linear_engine(model, LOSSES[loss], x, y, max_grad_norm=bound)
    slow = loop_engine(model, LOSSES[loss], x, y, max_grad_norm=bound)
    total = float(slow.norms.clamp(max=bound).sum())
    for name in fast.gradients:
        torch.testing.assert_close(fast.gradients[name], slow.gradients[name], rtol=1e-5, atol=1e-5 * total)
    torch.testing.assert_close(fast.norms, slow.norms, rtol=1e-5, atol=1e-5)


def test_norms_are_those_of_the_gradient_of_all_parameters():
    model, x, y = make(0, 4, 5, 3)
    norms = linear_engine(model, cross_entropy, x, y, max_grad_norm=1.0).norms
    residuals = torch.softmax(model(x), 1) - F.one_hot(y, 3)
    expected = residuals.norm(dim=1) * (x.square().sum(1) + 1).sqrt()
    torch.testing.assert_close(norms, expected.detach())


def test_given_squared_norms_are_used():
    model, x, y = make(0, 4, 5, 3, bias=False)
    own = linear_engine(model, cross_entropy, x, y, max_grad_norm=1.0).norms
    given_norms = linear_engine(
        model, cross_entropy, x, y, max_grad_norm=1.0, squared_norms=9 * x.square().sum(1)
    ).norms
    torch.testing.assert_close(given_norms, 3 * own)


def test_regression_outputs_are_served_too():
    model, x, _ = make(1, 6, 5, 1)
    y = torch.linspace(-1, 1, 6)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).abs() ** 1.5

    fast = linear_engine(model, loss, x, y, max_grad_norm=0.5)
    slow = loop_engine(model, loss, x, y, max_grad_norm=0.5)
    for name in fast.gradients:
        torch.testing.assert_close(fast.gradients[name], slow.gradients[name])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_that_are_not_finite_contribute_zero(engine, bad, bias):
    model, x, y = make(2, 5, 3, 2, bias=bias)
    spoilt = x.clone()
    spoilt[1, 0] = bad
    spoilt[4] = bad
    kept = torch.tensor([0, 2, 3])
    result = ENGINES[engine](model, cross_entropy, spoilt, y, max_grad_norm=0.3)
    expected = ENGINES[engine](model, cross_entropy, x[kept], y[kept], max_grad_norm=0.3)
    for name in result.gradients:
        torch.testing.assert_close(result.gradients[name], expected.gradients[name])
    torch.testing.assert_close(result.norms[kept], expected.norms)
    assert not result.norms[torch.tensor([1, 4])].isfinite().any()


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_are_not_finite_give_zero(engine):
    model, x, y = make(2, 5, 3, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    result = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=1.0)
    assert all((gradient == 0).all() for gradient in result.gradients.values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given_norms", [True, False])
def test_empty_batch_gives_zeros_and_no_norms(engine, bias, given_norms):
    model = nn.Linear(4, 3, bias=bias)
    result = ENGINES[engine](
        model,
        cross_entropy,
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        max_grad_norm=1.0,
        squared_norms=torch.zeros(0) if given_norms else None,
    )
    assert {name: tuple(g.shape) for name, g in result.gradients.items()} == (
        {"weight": (3, 4), "bias": (3,)} if bias else {"weight": (3, 4)}
    )
    assert all((gradient == 0).all() for gradient in result.gradients.values())
    assert result.norms.shape == (0,)


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_gradient_contributes_zero(engine):
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.0, 1.0]))
    x, y = torch.ones(3, 4), torch.tensor([1, 1, 1])
    result = ENGINES[engine](model, squared_error, x, y, max_grad_norm=1.0)
    assert result.norms.tolist() == [0, 0, 0]
    assert all((gradient == 0).all() for gradient in result.gradients.values())


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(4, 2)), nn.Identity(), nn.Bilinear(4, 4, 2)])
def test_other_modules_are_refused(model):
    with pytest.raises(TypeError, match=rf"^engine 'linear': expected torch\.nn\.Linear, got {type(model).__name__}$"):
        linear_engine(model, cross_entropy, torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), max_grad_norm=1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_model_and_data_stay_as_they_are(engine):
    model, x, y = make(3, 5, 3, 2)
    x[2, 1] = math.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x_before = x.clone()
    result = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x.nan_to_num(7), x_before.nan_to_num(7))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(gradient.requires_grad for gradient in result.gradients.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_works_where_gradients_are_switched_off(engine):
    model, x, y = make(3, 5, 3, 2)
    expected = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.1)
    with torch.no_grad():
        result = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.1)
    for name in result.gradients:
        assert torch.equal(result.gradients[name], expected.gradients[name])


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_frozen_parameters_take_no_part(frozen):
    model = nn.Linear(5, 3)
    getattr(model, frozen).requires_grad_(False)
    x, y = 2 * torch.randn(7, 5), torch.arange(7) % 3
    ours = linear_engine(model, cross_entropy, x, y, max_grad_norm=0.3)
    loop = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.3)
    assert frozen not in ours.gradients
    torch.testing.assert_close(ours.gradients, loop.gradients, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.norms, loop.norms, rtol=1e-5, atol=1e-6)


def test_how_many_rows_there_are_changes_no_row():
    """Where logits cancel, their rounding is all that is left, and libraries round by the number of rows."""
    torch.manual_seed(0)
    model = nn.Linear(784, 10, bias=False)
    basis = torch.linalg.qr(model.weight.detach().double().t())[0]
    some = torch.randn(60, 784, dtype=torch.float64)
    for row in ((some - (some @ basis) @ basis.t()) * 1e12).float():
        norms = []
        for rows in (1, 3, 11, 12, 255, 256, 257, 523):
            x, y = row.repeat(rows, 1), torch.zeros(rows, dtype=torch.int64)
            norms.append(linear_engine(model, cross_entropy, x, y, max_grad_norm=1.0).norms)
        assert len(torch.cat(norms).unique()) == 1


@pytest.mark.parametrize("engine", [linear_engine, loop_engine])
@pytest.mark.parametrize("inputs", [33, 783, 1001])
@pytest.mark.parametrize("by_columns", [False, True], ids=["by rows", "by columns"])
def test_where_a_row_lies_does_not_change_it(engine, inputs, by_columns):
    """Libraries round by a row's place in memory, too."""
    torch.manual_seed(0)
    model = nn.Linear(inputs, 2, bias=False)
    basis = torch.linalg.qr(model.weight.detach().double().t())[0]
    row = torch.randn(inputs, dtype=torch.float64)
    x = ((row - basis @ (basis.t() @ row)) * 1e12).float().repeat(300, 1)
    x = x.t().contiguous().t() if by_columns else x
    norms = engine(model, squared_error, x, torch.zeros(300, dtype=torch.int64), max_grad_norm=1.0).norms
    assert len(norms.unique()) == 1
