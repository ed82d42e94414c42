"""A layer's work is done the moment its output gradient is there, and what its sum does not need is let go."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

from scatterdp.engines import ENGINES, bookkeeping, loop_engine, rules
from scatterdp.engines.arrival import visit_gradients
from scatterdp.engines.bookkeeping import Recorder, by_the_shapes, clip, everywhere
from scatterdp.errors import UserError

BOOK_KEEPING = ("ghost", "mixed_ghost")
DEPTH, CHANNELS, SIDE, EXAMPLES = 12, 4, 32, 8
GRADIENT = EXAMPLES * CHANNELS * SIDE**2 * 4  # bytes of one layer's output gradient


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(1), labels, reduction="none")


def deep() -> tuple[nn.Module, Tensor, Tensor]:
    """Activations that dwarf weights: what must not be held is most of what there is."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Tanh()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, 3))
    return model, torch.randn(EXAMPLES, CHANNELS, SIDE, SIDE), torch.arange(EXAMPLES) % 3


def ordinary_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(cross_entropy(model(x), y).sum(), list(model.parameters()))


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "at the end"])
def test_output_gradients_are_freed_as_in_an_ordinary_backward_pass(monkeypatch, most_bytes, wait):
    model, x, y = deep()
    if wait:  # the control: the measure would see it

        def at_the_end(losses, edges, visit, *, weight):
            gradients = torch.autograd.grad(losses, list(edges.values()), torch.full_like(losses, weight))
            for name, gradient in zip(edges, gradients, strict=True):
                visit(name, gradient)

        monkeypatch.setattr(bookkeeping, "visit_gradients", at_the_end)
    ours = most_bytes(lambda: ENGINES["mixed_ghost"](model, cross_entropy, x, y, max_grad_norm=1.0))
    more = (ours - most_bytes(ordinary_step(model, x, y))) / GRADIENT
    # What is kept of a layer's is 148 numbers an example, not 4096; padded copies of a few examples come on top.
    assert (more > DEPTH - 3) if wait else (more < 3)


def test_when_a_layer_is_measured_the_ones_behind_it_hold_what_their_sums_need_only(monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 3, 3), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(48, 3)
    )
    seen: list[list[tuple[str, bool]]] = []
    measured: list[rules.Rule] = []
    measure = rules.Rule.measure

    def noted(rule: rules.Rule, *, ghost: bool) -> None:
        seen.append([(type(other.module).__name__, hasattr(other, "gradients")) for other in measured])
        measure(rule, ghost=ghost)
        measured.append(rule)

    monkeypatch.setattr(rules.Rule, "measure", noted)
    ENGINES["mixed_ghost"](
        model, cross_entropy, torch.randn(5, 2, 8, 8), torch.tensor([0, 1, 2, 0, 1]), max_grad_norm=1.0
    )
    last, norm, convolution = ("Linear", True), ("GroupNorm", False), ("Conv2d", False)
    assert seen == [[], [last], [last, norm], [last, norm, convolution]]


# ---------------------------------------------------------------- which gradients come, and how


class Branches(nn.Module):
    """Two layers that lead to no other, one that nothing comes from, one of which the gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.idle = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 6)
        self.cut, self.middle, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.idle(x)
        left = torch.tanh(self.left(x))
        middle = torch.tanh(self.middle(left) + self.right(x)) + left
        return self.last(middle + self.cut(left).detach())


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("engine", BOOK_KEEPING)
def test_branches(engine, clipping):
    torch.manual_seed(0)
    model, x, y = Branches(), torch.randn(6, 5), torch.arange(6) % 4
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.3, clipping=clipping)
    ours = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.3, clipping=clipping)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.norms, expected.norms)
    for name in ("idle.weight", "cut.bias"):
        assert not ours.gradients[name].any()
    assert ours.gradients["right.weight"].any()


@pytest.mark.parametrize("engine", BOOK_KEEPING)
def test_what_a_users_hook_makes_of_a_gradient_counts(engine):
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.first, self.second):
                x = layer(x)
                x.register_hook(lambda gradient: 3 * gradient)
                x = torch.tanh(x)
            return self.last(x)

    torch.manual_seed(0)
    model, x, y = Hooked(), torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=9.0)
    ours = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=9.0)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, atol=1e-6, rtol=1e-5)


def test_every_edge_gets_its_gradient_once():
    x = torch.ones(3, requires_grad=True)
    first = 2 * x
    second, third = first * first, 5 * first
    losses = (second * 3 + third).exp().log()
    edges = {name: get_gradient_edge(t) for name, t in (("first", first), ("second", second), ("third", third))}
    seen: dict[str, Tensor] = {}

    def visit(name: str, gradient: Tensor | None) -> None:
        assert name not in seen
        assert gradient is not None
        seen[name] = gradient

    visit_gradients(losses, edges, visit, weight=0.5)
    assert list(seen)[-1] == "first"
    for name, value in (("first", 0.5 * (3 * 2 * 2 + 5)), ("second", 1.5), ("third", 0.5)):
        torch.testing.assert_close(seen[name], torch.full((3,), value))


def test_what_is_raised_in_the_backward_pass_comes_out_as_it_is_and_leaves_no_hooks():
    x = torch.ones(3, requires_grad=True)
    first = 2 * x
    second = first * first
    edges = {"first": get_gradient_edge(first), "second": get_gradient_edge(second)}

    def refuse(name: str, gradient: Tensor | None) -> None:
        raise UserError(f"{name}: no")

    with pytest.raises(UserError, match=r"^second: no$"):
        visit_gradients(second.exp(), edges, refuse, weight=1.0)
    torch.autograd.grad(second.sum(), x)


@pytest.mark.parametrize("engine", BOOK_KEEPING)
def test_an_input_that_is_overwritten_is_refused_by_name_in_the_midst_of_the_backward_pass(engine):
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer = nn.Linear(5, 6), nn.Linear(6, 4)
            self.layer.weight.requires_grad_(False)  # autograd itself then needs no input, and does not object

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            out = self.layer(h)
            with torch.no_grad():
                h.zero_()
            return out

    with pytest.raises(UserError, match=r"^module 'layer' \(Linear\): its input is changed in place after it was read"):
        ENGINES[engine](Overwrites(), cross_entropy, torch.randn(3, 5), torch.tensor([0, 1, 2]), max_grad_norm=1.0)


# ---------------------------------------------------------------- norms that only later layers know


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("engine", BOOK_KEEPING)
def test_an_example_whose_norm_is_infinite_in_the_first_layer_only_is_left_out_of_all(engine, clipping):
    class Saturated(nn.Module):
        """An infinite input is saturated after the first convolution: the gradients of all other layers are finite."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(1, 2)
            self.second, self.last = nn.Conv2d(2, 20, 3), nn.Linear(80, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.second(self.norm(self.first(x).tanh()))
            return self.last(h.flatten(1))

    torch.manual_seed(0)
    model, x, y = Saturated(), torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 3])
    kept = torch.tensor([0, 1, 3])
    expected = ENGINES[engine](model, cross_entropy, x[kept], y[kept], max_grad_norm=0.5, clipping=clipping)
    x[2, 0, 1, 1] = math.inf
    ours = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.5, clipping=clipping)
    assert not ours.norms[2].isfinite()
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, atol=1e-6, rtol=1e-5)


def test_infinite_per_example_gradients_are_replaced_when_the_last_norm_is_known():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(48, 3))
    torch.manual_seed(0)
    x, y = torch.randn(4, 2, 8, 8), torch.tensor([0, 1, 2, 0])
    with Recorder(model) as recorder:
        measured = recorder.rules(cross_entropy(model(x), y), use_ghost=by_the_shapes)
    expected = clip(measured, 4, max_grad_norm=0.5, clipping="flat").gradients
    measured[0][1].squares[1] = math.inf  # the layer that the backward pass comes to last
    without = clip(measured, 4, max_grad_norm=0.5, clipping="flat")
    assert without.norms.isfinite().tolist() == [True, False, True, True]
    kept = torch.tensor([0, 2, 3])
    alone = ENGINES["mixed_ghost"](model, cross_entropy, x[kept], y[kept], max_grad_norm=0.5).gradients
    for name, gradient in alone.items():
        torch.testing.assert_close(without.gradients[name], gradient, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(expected[name], gradient, atol=1e-4)


# ---------------------------------------------------------------- some examples at a time


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("engine", BOOK_KEEPING)
def test_pieces_of_a_batch_add_up(engine, copies, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Tanh(),
        nn.Conv2d(4, 40, 3), nn.Tanh(), nn.Flatten(), nn.Linear(160, 3),
    )  # fmt: skip
    x, y = torch.randn(7 * copies, 2, 8, 8), (torch.arange(7) % 3).repeat_interleave(copies)
    x[3 * copies, 0, 0, 0] = math.nan
    expected = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.5, copies=copies)
    rows_at_once: list[int] = []
    monkeypatch.setattr(rules, "_CACHED_NUMBERS", 1500)
    weighted_sum = rules.ConvolutionRule.weighted_sum

    def noted(rule: rules.ConvolutionRule, factors: Tensor) -> dict[str, Tensor]:
        rows_at_once.append(len(factors))
        return weighted_sum(rule, factors)

    monkeypatch.setattr(rules.ConvolutionRule, "weighted_sum", noted)
    ours = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.5, copies=copies)
    assert 0 < max(rows_at_once) < 7 * copies
    assert ours.norms.isfinite().tolist() == [True] * 3 + [False] + [True] * 3
    torch.testing.assert_close(ours.norms, expected.norms, equal_nan=True)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, atol=1e-6, rtol=1e-5)


class ChangesItsOutput(torch.autograd.Function):
    """Writes to what the next layer has read, once that layer's part of the backward pass is over."""

    @staticmethod
    def forward(ctx, x):
        ctx.z = x.tanh()
        return ctx.z.view_as(ctx.z)

    @staticmethod
    def backward(ctx, *gradients):
        slope = 1 - ctx.z**2
        ctx.z.mul_(50.0)
        return gradients[0] * slope


class ChangesTheGradient(torch.autograd.Function):
    """Writes to a gradient that another layer has been given, too."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0].mul_(100.0)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 30), nn.Linear(30, 30), nn.Linear(30, 3)

    def forward(self, x):
        h = self.a(x)
        w = ChangesTheGradient.apply(h)
        return self.c(w + self.b(h))


class InPlaceTanh(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(20, 30), nn.Linear(30, 3)

    def forward(self, x):
        return self.c(ChangesItsOutput.apply(self.a(x)))


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost"])
@pytest.mark.parametrize("model", [TwoReaders(), InPlaceTanh()], ids=["gradient", "input"])
def test_what_changes_in_the_backward_pass_is_refused(model, engine):
    """The norm would be of the values before, the sum of those after: far beyond the bound."""
    x, y = torch.randn(1, 20), torch.tensor([1])
    with pytest.raises(UserError, match="is changed in place in the backward pass; change a copy"):
        ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=1.0)


@pytest.mark.parametrize("use_ghost", [everywhere, by_the_shapes])
def test_a_normalisation_is_not_computed_again_for_the_sum(use_ghost, monkeypatch):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3))
    x, y = torch.randn(5, 2, 6, 6), torch.arange(5) % 3
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.1).gradients
    measured = bookkeeping.backward(model, cross_entropy, x, y, use_ghost=use_ghost)
    monkeypatch.delattr(rules.GroupNormRule, "normalized")
    found = clip(measured, 5, max_grad_norm=0.1, clipping="flat").gradients
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)
