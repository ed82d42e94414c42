"""Features of any pre-trained network, cached.

    python -m transfer.extract --backbone=torchvision:resnet18 --weights=default --images=FOLDER
    python -m transfer.extract --backbone=timm:vit_small_patch14_dinov2 --weights=FILE --images=cifar10
    python -m transfer.extract --backbone=module:mine.py:make_network --images=FILE.npz       # RUNS YOUR CODE in mine.py

``module:FILE.py:FUNCTION`` imports your file and calls ``FUNCTION()``, without arguments; it returns a ``torch.nn.Module`` that maps images
``(B, C, H, W)`` in [0, 1] to features ``(B, D)`` or maps ``(B, K, h, w)``. torchvision and timm are an optional extra: ``pip install .[transfer]``.
Whatever a network was trained on is taken as public.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from transfer.extraction import ExtractionConfig, command_line, extract_backbone
from transfer.preprocessing import Normalization
from transfer.sources import DEFAULT


@dataclass(frozen=True, kw_only=True)
class TransferExtractConfig(ExtractionConfig):
    """Features of any pre-trained network, cached; nothing is trained and nothing is released."""

    backbone: str
    """torchvision:NAME, timm:NAME, module:FILE.py:FUNCTION (runs your code), cifar100_resnext or simclr_r50_2x_sk1."""
    weights: str = DEFAULT
    """A checkpoint (.pth, .safetensors; read without running code), or default: what torchvision or timm publish for the network, or what
    your function returns."""
    image_size: int | None = None
    """Side of the square that images are resized to. None: what the network was trained with."""
    crop: float | None = None
    """Share of the shorter side that a central square keeps, before resizing. None: the network's."""
    normalize: Normalization | None = None
    """Colour means and deviations of ImageNet or CIFAR, or none. None: the network's."""


def extract(config: TransferExtractConfig) -> Path:
    """Run the command; returns the cache's path.

    Raises:
        UserError: see the message.
    """
    return extract_backbone(
        config,
        config.backbone,
        config.weights,
        image_size=config.image_size,
        crop=config.crop,
        normalize=config.normalize,
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, extract, return the exit code."""
    return command_line(
        TransferExtractConfig, extract, module="transfer.extract", description=__doc__ or "", arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
