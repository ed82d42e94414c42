"""The network that starts as patch features: what it computes, and that it is one that engines can clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scatterdp.engines import check_by_example, loop_engine, mixed_ghost_engine
from scatterdp.errors import ConfigError
from scatterdp.heads import PatchCNN, make_classifier, patch_cnn

SHAPE = (5, 8, 5)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> PatchCNN:
    """A small one whose every number is drawn."""
    for name, value in (("FILTERS", 6), ("COMPONENTS", 3), ("DIRECTIONS", 4)):
        monkeypatch.setattr(patch_cnn, name, value)
    network = PatchCNN(SHAPE, 3)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor).abs() + 0.1)
    orthonormal, _ = torch.linalg.qr(torch.randn_like(network.linear.precondition.directions))
    network.linear.precondition.directions.copy_(orthonormal)
    return network


def cell_of(side: int, cells: int, i: int) -> slice:
    return slice(side * i // cells, -(-side * (i + 1) // cells))


def by_hand(network: PatchCNN, maps: Tensor) -> Tensor:
    """The logits of one example's maps, place by place."""
    responses, bias = torch.empty(6, *SHAPE[1:]), network.filters.bias
    assert bias is not None
    for row in range(SHAPE[1]):
        for column in range(SHAPE[2]):
            patch = network.vectors @ maps[:, row, column] + network.bias[:, 0]
            patch = patch / (patch @ patch / 2 + network.contrast).sqrt()
            whitened = network.whitening @ (patch - network.mean[:, 0])
            responses[:, row, column] = network.filters.weight[:, :, 0, 0] @ whitened + bias
    assigned = torch.cat([F.relu(responses - 0.45), F.relu(-responses - 0.45)])
    cells = [assigned[:, cell_of(8, 3, i), cell_of(5, 2, j)].mean((1, 2)) for i in range(3) for j in range(2)]
    pooled = (torch.stack(cells, 1) - network.pooled_mean[:, 0]) * network.pooled_scale[:, 0]
    features = torch.cat([pooled.flatten(), 0.5 * maps.flatten()])
    directions, factors = network.linear.precondition.directions, network.linear.precondition.factors
    along = directions.t() @ features
    scaled = network.linear.precondition.gain * (features - directions @ ((1 - factors) * along))
    return network.linear.weight @ scaled + network.linear.bias


def test_equals_the_definition(network):
    maps = torch.randn(4, *SHAPE)
    expected = torch.stack([by_hand(network, each) for each in maps])
    torch.testing.assert_close(network(maps.flatten(1)), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(network(maps), network(maps.flatten(1)))


def test_it_begins_without_an_opinion_and_trains_convolution_and_linear_layer():
    network = make_classifier("patch_cnn", (6, 7, 7), 4)
    assert isinstance(network, PatchCNN)
    assert not network(torch.randn(3, 6 * 49)).any()
    assert [name for name, p in network.named_parameters() if p.requires_grad] == [
        "filters.weight", "filters.bias", "linear.weight", "linear.bias",
    ]  # fmt: skip
    assert network.linear.in_features == 2 * 512 * 9 + 6 * 49
    assert len(network.linear.precondition.factors) == 6 * 49 // 2


def test_engines_agree_and_examples_are_kept_apart(network):
    x, y = torch.randn(7, 200), torch.arange(7) % 3
    check_by_example(network, x)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs, labels, reduction="none")

    expected = loop_engine(network, loss, x, y, max_grad_norm=0.1)
    ours = mixed_ghost_engine(network, loss, x, y, max_grad_norm=0.1)
    torch.testing.assert_close(ours.norms, expected.norms, rtol=1e-4, atol=1e-6)
    assert set(ours.gradients) == set(expected.gradients)
    for name, value in expected.gradients.items():
        torch.testing.assert_close(ours.gradients[name], value, rtol=1e-4, atol=1e-6)


def test_features_without_places_are_refused():
    with pytest.raises(ConfigError, match=r"arch=patch_cnn: takes maps of at most 1024 channels, these are 9720×1×1"):
        make_classifier("patch_cnn", (9720, 1, 1), 10)
