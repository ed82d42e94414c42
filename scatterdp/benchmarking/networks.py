"""The networks that are measured, and made-up batches for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scatterdp.heads import make_classifier

Shape = tuple[int, int, int]
NUM_CLASSES = 10

#: Name → ``(channels, height, width)`` of its inputs: ScatterNet maps of CIFAR-10 (J = 2), or CIFAR-10 images.
NETWORKS: dict[str, Shape] = {
    "scatternet_cnn": (243, 8, 8),
    "cnn": (3, 32, 32),
    "resnet20": (3, 32, 32),
    "vgg11": (3, 32, 32),
}

_VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


def vgg11(shape: Shape, num_classes: int) -> nn.Sequential:
    """VGG-11 for small images: eight 3×3 convolutions and one linear layer, 9.2 million parameters.

    Configuration A of Simonyan & Zisserman 2015, arXiv 1409.1556, table 1, with a group normalisation of 32 groups after each
    convolution (batch normalisation mixes examples), and without the two hidden layers of 4096, which images of 32×32 do not need.

    Args:
        shape: ``(C, H, W)``, sides of at least 32; rows come flat, ``(b, C·H·W)``.
        num_classes: outputs.
    """
    body: list[nn.Module] = []
    channels = shape[0]
    for layer in _VGG11:
        if layer == "M":
            body.append(nn.MaxPool2d(2))
        else:
            width = int(layer)
            body += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.GroupNorm(32, width), nn.ReLU()]
            channels = width
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(nn.Unflatten(1, shape), *body, *tail)


def make_network(name: str, device: torch.device) -> nn.Module:
    """A network of :data:`NETWORKS` with its initial weights, the same in every process."""
    if name != "vgg11":
        return make_classifier(name, NETWORKS[name], NUM_CLASSES).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return vgg11(NETWORKS[name], NUM_CLASSES).to(device)


def make_batch(name: str, batch_size: int, device: torch.device, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal inputs ``(b, C·h·w)`` and labels ``(b,)`` for a network; made up, a function of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch_size, math.prod(NETWORKS[name]), generator=generator)
    return x.to(device), torch.randint(NUM_CLASSES, (batch_size,), generator=generator).to(device)
