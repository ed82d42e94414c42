"""The witness itself, against vectorised per-example gradients of another library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from scatterdp.engines import loop_engine


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4))


def clipped_by_hand(model: nn.Module, x: Tensor, y: Tensor, bound: float) -> tuple[dict[str, Tensor], Tensor]:
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, parameters, (x[None],)), y[None])[0]

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    flat = torch.cat([g.flatten(1) for g in gradients.values()], dim=1)
    norms = flat.square().sum(1).sqrt()
    factors = torch.minimum(torch.ones_like(norms), bound / norms)
    return {name: torch.einsum("b,b...->...", factors, g) for name, g in gradients.items()}, norms


@pytest.mark.parametrize("bound", [1e-2, 1.0, 1e3])
def test_equals_vectorised_gradients(bound):
    model, x, y = network(), torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(7) % 4
    expected, norms = clipped_by_hand(model, x, y, bound)
    result = loop_engine(model, cross_entropy, x, y, max_grad_norm=bound)
    assert result.gradients.keys() == expected.keys()
    for name, gradient in result.gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * bound)
    torch.testing.assert_close(result.norms, norms)


def test_some_are_clipped_and_some_are_not():
    model, x, y = network(), torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 4
    _, norms = clipped_by_hand(model, x, y, 1.0)
    bound = float(norms.median())
    expected, _ = clipped_by_hand(model, x, y, bound)
    result = loop_engine(model, cross_entropy, x, y, max_grad_norm=bound)
    for name, gradient in result.gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_frozen_parameters_have_no_part():
    model = network()
    model[0].requires_grad_(False)
    x, y = torch.ones(2, 1, 4, 4), torch.tensor([0, 1])
    expected, norms = clipped_by_hand(model, x, y, 0.1)
    result = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.1)
    assert result.gradients.keys() == {"1.weight", "1.bias", "4.weight", "4.bias"}
    torch.testing.assert_close(result.norms, norms)
    torch.testing.assert_close(result.gradients["4.weight"], expected["4.weight"])


def test_squared_norms_are_ignored():
    model, x, y = nn.Linear(3, 2), torch.ones(2, 3), torch.tensor([0, 1])
    with_norms = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.1, squared_norms=torch.full((2,), torch.nan))
    without = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.1)
    assert torch.equal(with_norms.gradients["weight"], without.gradients["weight"])


def test_bad_rows_are_left_out_of_a_deep_model_too():
    model, x, y = (
        network(),
        torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0, 1, 2]),
    )
    kept = loop_engine(model, cross_entropy, x[:2], y[:2], max_grad_norm=1.0)
    x[2, 0, 0, 0] = torch.nan
    result = loop_engine(model, cross_entropy, x, y, max_grad_norm=1.0)
    for name in kept.gradients:
        assert torch.equal(result.gradients[name], kept.gradients[name])
    assert torch.isnan(result.norms[2])
