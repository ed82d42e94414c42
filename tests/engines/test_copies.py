"""Augmentation multiplicity: several rows of one example share one clipped gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import ENGINES, decisions

ALL = sorted(ENGINES.keys() - {"linear"})
MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 3), (4,)),
    "sequence": (nn.Sequential(nn.Linear(4, 5), nn.Flatten(), nn.Linear(15, 3)), (3, 4)),
    "convolution": (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 3)), (2, 4, 4)),
    "wide convolution": (nn.Sequential(nn.Conv2d(20, 24, 3), nn.Flatten(), nn.Linear(96, 3)), (20, 4, 4)),
    "strided groups": (
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(24, 3)),
        (4, 5, 6),
    ),
    "embedding": (nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)), (3,)),
}


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def batch_of(name: str, examples: int, copies: int) -> tuple[nn.Module, Tensor, Tensor]:
    model, shape = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples * copies, *shape, generator=generator)
    if name == "embedding":
        x = torch.randint(0, 9, x.shape, generator=generator)
    return model, x, torch.randint(0, 3, (examples,), generator=generator).repeat_interleave(copies)


def clipped_by_autograd(model: nn.Module, x: Tensor, y: Tensor, copies: int, bound: float) -> dict[str, Tensor]:
    """The definition: the gradient of each example's mean loss over its copies, clipped, added up."""
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for rows in torch.arange(len(x)).split(copies):
        loss = cross_entropy(model(x[rows]), y[rows]).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for name, gradient in zip(sums, gradients, strict=True):
            sums[name] += gradient * min(1.0, bound / norm.item())
    return sums


@pytest.mark.parametrize("bound", [0.3, 100.0])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ALL)
def test_the_mean_gradient_of_the_copies_is_clipped_once(engine, name, copies, bound):
    model, x, y = batch_of(name, 4, copies)
    ours = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=bound, copies=copies)
    assert ours.norms.shape == (4,)
    for parameter, gradient in clipped_by_autograd(model, x, y, copies, bound).items():
        torch.testing.assert_close(ours.gradients[parameter], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ALL)
def test_copies_are_not_examples(engine):
    model, x, y = batch_of("linear", 4, 3)
    together = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.1, copies=3)
    apart = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.1)
    assert together.gradients["weight"].norm() <= 4 * 0.1 * (1 + 1e-6)
    assert apart.gradients["weight"].norm() > together.gradients["weight"].norm()


@pytest.mark.parametrize("engine", ALL)
def test_one_bad_copy_drops_its_example_alone(engine):
    model, x, y = batch_of("convolution", 4, 3)
    x[4, 0, 0, 0] = float("nan")
    ours = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.5, copies=3)
    rest = torch.tensor([0, 1, 2, *range(6, 12)])
    theirs = ENGINES[engine](model, cross_entropy, x[rest], y[rest], max_grad_norm=0.5, copies=3)
    assert torch.isnan(ours.norms).tolist() == [False, True, False, False]
    for parameter, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[parameter], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_an_empty_batch_and_rows_that_are_no_whole_examples(engine):
    model, x, y = batch_of("linear", 4, 3)
    if engine != "linear":
        empty = ENGINES[engine](model, cross_entropy, x[:0], y[:0], max_grad_norm=1.0, copies=3)
        assert empty.norms.shape == (0,)
        assert not any(value.any() for value in empty.gradients.values())
    with pytest.raises(ValueError, match="copies=3"):
        ENGINES[engine](model, cross_entropy, x[:4], y[:4], max_grad_norm=1.0, copies=3)


def test_the_mixed_rule_counts_copies_as_positions():
    model, x, y = batch_of("wide convolution", 2, 3)
    alone, *_ = decisions(model, cross_entropy, x, y)
    together, *_ = decisions(model, cross_entropy, x.repeat_interleave(6, 0), y.repeat_interleave(6), copies=18)
    assert alone.ghost  # 2 · 4² < 180 · 24
    assert not together.ghost  # 2 · 72² > 180 · 24
