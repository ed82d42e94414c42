"""The published experiment with more data: CIFAR-10 and 500 000 pseudo-labelled tiny images, all of them private.

    python -m scatterdp.tiny_images --tiny_images=FILE --batch_size=8192 --lr=16 --delta=9.09e-7 --model=linear --use_scattering \\
        --bn_noise_multiplier=8 --epochs=120 --noise_multiplier=1.1 --feature_dtype=float16

Features that do not fit --memory_budget stay on the disk. The published file is that of Carmon et al. 2019 (arXiv 1905.13736).

Tramèr & Boneh, "Differentially Private Learning Needs Better Features (Or Much More Data)", ICLR 2021.
"""

from __future__ import annotations

import sys

from scatterdp.config import TinyImagesConfig
from scatterdp.experiment import command_line


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, return the exit code."""
    return command_line(TinyImagesConfig, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
