"""The published linear experiment: a differentially private linear classifier on ScatterNet features.

    python -m scatterdp.baselines --dataset=cifar10 --bn_noise_multiplier=8      # minutes; test accuracy about 77 %
    python -m scatterdp.baselines --dataset=digits                               # seconds, no network

Tramèr & Boneh, "Differentially Private Learning Needs Better Features (Or Much More Data)", ICLR 2021.
"""

from __future__ import annotations

import sys

from scatterdp.config import BaselinesConfig
from scatterdp.experiment import command_line


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, return the exit code."""
    return command_line(BaselinesConfig, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
