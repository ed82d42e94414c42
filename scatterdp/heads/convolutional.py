"""Convolutional classifiers of feature maps and of images (Tramèr & Boneh 2021, appendix B).

Each takes flat rows ``(b, C·h·w)``, as the training loop gives them, and returns logits. Activations are tanh (Papernot et al.
2021: bounded activations keep per-example gradients small) and there is no normalisation layer inside. Maxima are taken before tanh, which
leaves them the largest: the same numbers, and fewer of them to compute.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scatterdp.errors import ConfigError

Shape = tuple[int, int, int]


class Images(nn.Unflatten):
    """Flat rows ``(b, C·H·W)`` as images ``(b, C, H, W)``, on a processor with a pixel's channels side by side in memory.

    Convolutions keep that order, in which pooling is many times and convolutions of images somewhat faster (docs/clipping.md).
    """

    channels_last = True

    def __init__(self, shape: Shape) -> None:
        super().__init__(1, shape)

    def forward(self, input: Tensor) -> Tensor:
        images = super().forward(input)
        if not self.channels_last or input.device.type != "cpu":
            return images
        channels, *sides = images.shape[1:]
        # By way of flat rows: a single channel lies in both orders, and would be taken for the other.
        return images.flatten(2).transpose(1, 2).flatten(1).unflatten(1, (*sides, channels)).movedim(3, 1)


def scatternet_cnn(shape: Shape, num_classes: int, *, small: bool = False) -> nn.Sequential:
    """On ScatterNet maps: colour 64-M-64 (small: 16-16-M-32-32), grey 16 and 32 channels with a stride of 2 and a hidden layer of 32.

    Args:
        shape: ``(K, h, w)`` of the maps; more than 100 channels are taken for colour.
        num_classes: outputs.
        small: see there; grey half the channels (the published code has no smaller grey network, a wider one goes by that name).
    """
    if shape[0] > 100:
        plan = (16, 16, "M", 32, 32) if small else (64, "M", 64)
        return _network(nn.Unflatten(1, shape), _body(shape[0], plan, rounded_up=True), shape, num_classes, hidden=None)
    first, second = (8, 16) if small else (16, 32)
    body = [*_convolution(shape[0], first, 3, stride=2, padding=1), *_convolution(first, second, 3, padding=1)]
    return _network(nn.Unflatten(1, shape), body, shape, num_classes, hidden=32)


def end_to_end_cnn(shape: Shape, num_classes: int, *, small: bool = False) -> nn.Sequential:
    """On images: colour 32-32-M-64-64-M-128-128-M (small: 16-16-M-32-32-M-64-M) with a hidden layer of 128;
    grey 16 channels of 8×8 and 32 of 4×4, both with stride 2, and a hidden layer of 32.

    Args:
        shape: ``(C, H, W)`` of the images.
        num_classes: outputs.
        small: see there; grey half the channels, as in :func:`scatternet_cnn`.
    """
    if shape[0] == 1:
        first, second = (8, 16) if small else (16, 32)
        body = [
            *_convolution(1, first, 8, nn.MaxPool2d(2, 1), stride=2, padding=2),
            *_convolution(first, second, 4, nn.MaxPool2d(2, 1), stride=2),
        ]
        return _network(Images(shape), body, shape, num_classes, hidden=32)
    plan = (16, 16, "M", 32, 32, "M", 64, "M") if small else (32, 32, "M", 64, 64, "M", 128, 128, "M")
    return _network(Images(shape), _body(shape[0], plan, rounded_up=False), shape, num_classes, hidden=128)


def _body(channels: int, plan: tuple[int | str, ...], *, rounded_up: bool) -> list[nn.Module]:
    """Convolutions of 3×3 to so many channels, and ``M`` for halving both sides."""
    body: list[nn.Module] = []
    for layer, following in zip(plan, (*plan[1:], None), strict=True):
        if layer != "M":
            pools = [nn.MaxPool2d(2, ceil_mode=rounded_up)] if following == "M" else []
            body += _convolution(channels, int(layer), 3, *pools, padding=1)
            channels = int(layer)
    return body


def _convolution(
    inputs: int, outputs: int, kernel: int, *pools: nn.Module, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding), *pools, nn.Tanh()]


def _network(
    images: nn.Unflatten, body: list[nn.Module], shape: Shape, num_classes: int, *, hidden: int | None
) -> nn.Sequential:
    try:
        with torch.random.fork_rng(devices=[]):
            features = math.prod(nn.Sequential(*body)(torch.zeros(1, *shape)).shape)
    except RuntimeError as error:
        raise ConfigError(
            f"dataset: inputs of {'×'.join(map(str, shape))} are too small for this network; take python -m scatterdp.baselines, or give "
            '--use_scattering --extractor="scatternet(J=1)"'
        ) from error
    tail: list[nn.Module] = [nn.Flatten()]
    if hidden is not None:
        tail += [nn.Linear(features, hidden), nn.Tanh()]
        features = hidden
    return nn.Sequential(images, *body, *tail, nn.Linear(features, num_classes))
