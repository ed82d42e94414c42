"""Features of SimCLR v2, trained on ImageNet without labels: ResNet-50 of width 2 with selective kernels, 4096 numbers an image.

    python -m transfer.extract_simclr                                             # CIFAR-10 with transfer/r50_2x_sk1.pth
    python -m transfer.extract_simclr --weights=r50_2x_sk1.pth --images=FOLDER    # any images

The checkpoint is ``r50_2x_sk1.pth`` as https://github.com/Separius/SimCLRv2-Pytorch converts it from the published TensorFlow one; the same
network is built here (:mod:`transfer.architectures.simclr`).

What happens to an image, as in the published experiment: the central square of 7/8 of the shorter side (of 32 pixels, 28; an odd pixel goes to
the upper left); bicubic interpolation to 224×224, pixels counted from their corners, as TensorFlow 1 does; values clipped to [0, 1]. No mean
is subtracted. Grey images become three equal colours.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from transfer.extraction import ExtractionConfig, command_line, extract_backbone

BACKBONE = "simclr_r50_2x_sk1"


@dataclass(frozen=True, kw_only=True)
class SimclrConfig(ExtractionConfig):
    """Features of SimCLR v2's ResNet-50 (width 2, selective kernels), cached; nothing is trained and nothing is released."""

    weights: Path = Path("transfer/r50_2x_sk1.pth")
    """The checkpoint, converted to PyTorch. It is read without running code."""


def extract(config: SimclrConfig) -> Path:
    """Run the command; returns the cache's path.

    Raises:
        UserError: see the message.
    """
    return extract_backbone(config, BACKBONE, str(config.weights))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, extract, return the exit code."""
    return command_line(
        SimclrConfig, extract, module="transfer.extract_simclr", description=__doc__ or "", arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
