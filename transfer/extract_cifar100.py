"""Features of a ResNeXt-29, 8×64d, that was trained on CIFAR-100: 1024 numbers an image.

    python -m transfer.extract_cifar100                                           # CIFAR-10 with the published checkpoint in its place
    python -m transfer.extract_cifar100 --weights=model.pth --images=FOLDER       # any images; resized to 32×32

The checkpoint is the ``resnext-8x64d`` CIFAR-100 model of https://github.com/bearpaw/pytorch-classification (``model_best.pth.tar``). Both
common namings of its tensors are read (:mod:`transfer.architectures.resnext`), with and without ``module.`` and ``state_dict`` around them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from transfer.extraction import ExtractionConfig, command_line, extract_backbone

BACKBONE = "cifar100_resnext"


@dataclass(frozen=True, kw_only=True)
class Cifar100Config(ExtractionConfig):
    """Features of a ResNeXt-29 trained on CIFAR-100, cached; nothing is trained and nothing is released."""

    weights: Path = Path("transfer/resnext-8x64d/model_best.pth.tar")
    """The checkpoint. It is read without running code."""


def extract(config: Cifar100Config) -> Path:
    """Run the command; returns the cache's path.

    Raises:
        UserError: see the message.
    """
    return extract_backbone(config, BACKBONE, str(config.weights))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, extract, return the exit code."""
    return command_line(
        Cifar100Config, extract, module="transfer.extract_cifar100", description=__doc__ or "", arguments=arguments
    )


if __name__ == "__main__":
    sys.exit(main())
