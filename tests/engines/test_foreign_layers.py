"""Layers of torchvision and timm: known by their full names, stood in for by classes of those names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import ENGINES, check_by_example, without_batch_norm
from scatterdp.errors import UserError


class LayerNorm2d(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerNorm(nn.LayerNorm):
    pass


class GroupNorm(nn.GroupNorm):
    pass


class Linear(nn.Linear):
    pass


def named(kind: type[nn.Module], module: str) -> type:
    """A class of the same name and behaviour that says it is of another module."""
    return type(kind.__name__, (kind,), {"__module__": module, "__qualname__": kind.__name__})


def model(norm: nn.Module, after: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.GELU(), nn.Conv2d(8, 6, 3), nn.Flatten(), after, nn.Linear(96, 4)
    )
    with torch.no_grad():
        for p in layers.parameters():
            p += 0.1 * torch.randn_like(p)
    return layers.double()


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


@pytest.mark.parametrize(
    ("engine", "copies"), [("ghost", 1), ("ghost", 2), ("mixed_ghost", 1), ("mixed_ghost", 2), ("crb", 1)]
)
@pytest.mark.parametrize(
    ("norm", "after"),
    [
        (named(LayerNorm2d, "torchvision.models.convnext")(8), nn.Identity()),
        (named(LayerNorm2d, "timm.layers.norm")(8), named(LayerNorm, "timm.layers.norm")(96)),
        (named(GroupNorm, "timm.layers.norm")(4, 8), nn.Identity()),
        (nn.Identity(), named(Linear, "timm.layers.linear")(96, 96)),
    ],
    ids=["torchvision", "timm layer", "timm group", "timm linear"],
)
def test_their_gradients_are_the_loops(engine, copies, norm, after):
    network = model(norm, after)
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(6) % 4
    ours, witness = (ENGINES[name](network, loss, x, y, max_grad_norm=0.5, copies=copies) for name in (engine, "loop"))
    torch.testing.assert_close(ours.norms, witness.norms, rtol=1e-5, atol=0)  # ghost norms are rounded up
    assert ours.gradients.keys() == witness.gradients.keys()
    for name, gradient in witness.gradients.items():
        torch.testing.assert_close(
            ours.gradients[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item(), msg=name
        )


def test_a_class_of_the_same_short_name_is_nobodys():
    with pytest.raises(UserError, match=r"\(LayerNorm2d\): no rule for per-example gradients of its weight, bias"):
        ENGINES["mixed_ghost"](
            model(LayerNorm2d(8), nn.Identity()),
            loss,
            torch.randn(2, 3, 8, 8).double(),
            torch.arange(2),
            max_grad_norm=1.0,
        )


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: dropout and activation within."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class Shifted(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def test_the_activation_within_a_batch_normalisation_is_kept():
    network = without_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)))
    x = torch.randn(5, 3, 8, 8)
    expected = F.relu(F.group_norm(network.get_submodule("0")(x), 2))
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(
        without_batch_norm(BatchNormAct2d(4))(x[:, [0, 1, 2, 0]]), F.relu(F.group_norm(x[:, [0, 1, 2, 0]], 2))
    )


def test_a_batch_normalisation_of_somebodys_own_is_not_swapped_in_silence():
    with pytest.raises(
        UserError, match=r"module of type Shifted: a batch normalisation of its own kind.*swap it by hand"
    ):
        without_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), Shifted(4)))


class StochasticDepth(nn.Module):
    """As torchvision's: each example's branch is kept or not."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((len(x), 1), 0.5)) / 0.5


class OverTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_branches_that_are_dropped_by_chance_do_not_hide_a_model_that_keeps_examples_apart():
    network = nn.Sequential(nn.Linear(5, 7), StochasticDepth(), nn.Linear(7, 3)).train()
    check_by_example(network, torch.randn(2, 5))
    assert network[1].training
    with pytest.raises(UserError, match="what it gives examples together is not what it gives them alone"):
        check_by_example(nn.Sequential(nn.Linear(5, 7), OverTheBatch(), nn.Linear(7, 3)), torch.randn(2, 5))
