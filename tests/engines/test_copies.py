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


def moved(engine: str, model: nn.Module, x: Tensor, gradients: Tensor, bound: float, copies: int) -> float:
    """By how many bounds the one example of ``copies`` rows moves the sum, whose outputs' gradients are given."""
    found = ENGINES[engine](
        model, lambda o, y: (o * y).flatten(1).sum(1), x, copies * gradients, max_grad_norm=bound, copies=copies
    )
    return torch.cat([value.double().flatten() for value in found.gradients.values()]).norm().item() / bound


@pytest.mark.parametrize("bound", [1.0, 1e-3])
@pytest.mark.parametrize("model", [nn.Linear(16, 1, bias=False), nn.Conv1d(16, 1, 1, bias=False)], ids=repr)
@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost"])
def test_copies_that_cancel_are_too_small_to_count_all_or_none(engine, model, bound):
    most = 0.0
    for exponent in torch.linspace(33.5, 38.4, 50).tolist():
        x, gradients = torch.zeros(2, 16), torch.tensor([[0.5], [-4.0]])
        x[0, 0] = 10**exponent
        x[1, 0] = x[0, 0] / 8
        if isinstance(model, nn.Conv1d):
            x, gradients = x.unsqueeze(2), gradients.unsqueeze(2)
        most = max(most, moved(engine, model, x, gradients, bound, copies=2))
    assert most <= 1.0001


@pytest.mark.parametrize(
    ("model", "shape", "outputs"),
    [(nn.Linear(64, 2), (6, 64), (6, 2)), (nn.Conv2d(32, 32, 1), (32, 3, 3), (32, 3, 3)), (nn.Conv1d(64, 64, 1), (64, 5), (64, 5))],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost"])
def test_gradients_of_biases_that_cancel_are_the_same_in_norm_and_sum(engine, copies, model, shape, outputs):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        gradients = torch.zeros(copies, *outputs)
        of_one = gradients[..., 0] if isinstance(model, nn.Linear) else gradients[:, 0]
        half = of_one.numel() // 2
        values = torch.randint(-8, 9, (half,), generator=generator) * 2.0 ** torch.randint(
            0, 60, (half,), generator=generator
        )
        values = torch.cat([values, -values, torch.zeros(of_one.numel() - 2 * half)])
        of_one.copy_(values[torch.randperm(len(values), generator=generator)].view(of_one.shape))
        assert moved(engine, model, torch.zeros(copies, *shape), gradients, 1e-3, copies) <= 1.0001
