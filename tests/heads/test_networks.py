"""Convolutional and residual networks: shapes, sizes, and that they can be trained privately."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scatterdp.engines import check_private, loop_engine, mixed_ghost_engine
from scatterdp.errors import ConfigError
from scatterdp.heads import CLASSIFIERS, Images, make_classifier

SHAPES = {
    "linear": (6, 2, 2),
    "scatternet_cnn": (243, 8, 8),
    "scatternet_cnn_small": (243, 8, 8),
    "cnn": (3, 32, 32),
    "cnn_small": (3, 32, 32),
    "patch_cnn": (243, 8, 5),
} | {name: (3, 32, 32) for name in CLASSIFIERS if "resnet" in name}


def count(name: str, shape: tuple[int, int, int]) -> int:
    return sum(p.numel() for p in make_classifier(name, shape, 10).parameters())


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_flat_rows_become_logits(name):
    shape = SHAPES[name]
    rows = torch.randn(2, shape[0] * shape[1] * shape[2])
    assert make_classifier(name, shape, 7)(rows).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("cnn", (1, 28, 28), 26_010),  # the published MNIST network
        ("cnn", (3, 32, 32), 550_570),
        ("scatternet_cnn", (81, 7, 7), 16 * 81 * 9 + 16 + 32 * 16 * 9 + 32 + 512 * 32 + 32 + 330),
        ("scatternet_cnn", (243, 8, 8), 64 * 243 * 9 + 64 + 64 * 64 * 9 + 64 + 64 * 16 * 10 + 10),
        ("resnet20", (3, 32, 32), 269_722),
        ("preact_resnet20", (3, 32, 32), 269_722),
    ],
)
def test_sizes_are_the_published_ones(name, shape, parameters):
    assert count(name, shape) == parameters


@pytest.mark.parametrize(
    ("name", "shape", "channels", "hidden"),
    [
        ("scatternet_cnn", (243, 8, 8), (64, 64), None),
        ("scatternet_cnn_small", (243, 8, 8), (16, 16, 32, 32), None),
        ("scatternet_cnn", (81, 7, 7), (16, 32), 32),
        ("scatternet_cnn_small", (81, 7, 7), (8, 16), 32),
        ("cnn", (3, 32, 32), (32, 32, 64, 64, 128, 128), 128),
        ("cnn_small", (3, 32, 32), (16, 16, 32, 32, 64), 128),
        ("cnn", (1, 28, 28), (16, 32), 32),
        ("cnn_small", (1, 28, 28), (8, 16), 32),
    ],
)
def test_layers_are_the_published_ones(name, shape, channels, hidden):
    model = make_classifier(name, shape, 10)
    modules = list(model.modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert tuple(module.out_channels for module in convolutions) == channels
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    assert [module.out_features for module in linear] == ([10] if hidden is None else [hidden, 10])
    # Every layer but the last is followed by tanh; nothing else is curved but pooling.
    curved = [module for module in modules if isinstance(module, nn.Tanh)]
    assert len(curved) == len(convolutions) + len(linear) - 1
    rest = {type(module) for module in modules} - {nn.Conv2d, nn.Linear, nn.Tanh, nn.MaxPool2d}
    assert rest <= {nn.Sequential, nn.Unflatten, Images, nn.Flatten}


@pytest.mark.parametrize(
    ("name", "shape"), [("cnn", (3, 32, 32)), ("cnn", (1, 28, 28)), ("scatternet_cnn", (243, 8, 8))]
)
def test_maxima_before_tanh_are_those_after_it(name, shape):
    model = make_classifier(name, shape, 10).double()
    layers = list(model.children())
    for place in [number for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]:
        layers[place], layers[place + 1] = layers[place + 1], layers[place]
    published = nn.Sequential(*layers)
    assert [type(layer) for layer in published] != [type(layer) for layer in model.children()]
    x, y = torch.randn(5, math.prod(shape), dtype=torch.float64), torch.arange(5)
    for found, expected in zip(*(gradients_of(each, x, y) for each in (model, published)), strict=True):
        torch.testing.assert_close(found, expected)


def gradients_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_images_lie_channels_last_and_are_the_same(shape):
    images, rows = Images(shape), torch.randn(5, math.prod(shape))
    assert torch.equal(images(rows), rows.view(5, *shape))
    assert images(rows).stride() == (math.prod(shape), 1, shape[0] * shape[2], shape[0])
    images.channels_last = False
    assert images(rows).is_contiguous()


@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_residual_networks_have_three_stages_of_halved_sides(activation, pre_activation):
    name = f"{'preact_' if pre_activation else ''}resnet20{'_tanh' if activation == 'tanh' else ''}"
    model = make_classifier(name, (3, 32, 32), 10)
    sides: list[tuple[int, ...]] = []
    activations: set[type] = set()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: sides.append(tuple(output.shape[1:])))
        if isinstance(module, (nn.ReLU, nn.Tanh)):
            activations.add(type(module))
    model(torch.randn(1, 3 * 32 * 32))
    assert sides == [(16, 32, 32)] * 7 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6
    assert activations == {nn.ReLU if activation == "relu" else nn.Tanh}
    assert all(module.num_groups == 16 for module in model.modules() if isinstance(module, nn.GroupNorm))


def test_initial_weights_are_a_function_of_the_seed_and_leave_torchs_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (make_classifier("cnn", (1, 28, 28), 10, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_every_network_can_be_clipped_per_example(name):
    shape = SHAPES[name]
    # in double precision: a ReLU turns a rounding near zero into another gradient
    model = make_classifier(name, shape, 3).double()
    check_private(model)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, shape[0] * shape[1] * shape[2], dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 1, 2])

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, labels, reduction="none")

    ours, expected = (
        engine(model, loss, rows, labels, max_grad_norm=0.5) for engine in (mixed_ghost_engine, loop_engine)
    )
    torch.testing.assert_close(ours.norms, expected.norms, rtol=1e-4, atol=1e-5)
    for parameter, gradient in expected.gradients.items():
        torch.testing.assert_close(ours.gradients[parameter], gradient, rtol=1e-4, atol=1e-5)


def test_unknown_names_and_images_that_are_too_small():
    with pytest.raises(ConfigError, match=r"^head='transformer': expected one of linear, "):
        make_classifier("transformer", (3, 32, 32), 10)
    with pytest.raises(ConfigError, match=r"^dataset: inputs of 1×8×8 are too small for this network"):
        make_classifier("cnn", (1, 8, 8), 10)
