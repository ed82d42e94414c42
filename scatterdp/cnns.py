"""The published networks: private convolutional networks on ScatterNet features or end to end.

    python -m scatterdp.cnns --dataset=mnist --use_scattering
    python -m scatterdp.cnns --dataset=fmnist

Tramèr & Boneh, "Differentially Private Learning Needs Better Features (Or Much More Data)", ICLR 2021.
"""

from __future__ import annotations

import sys

from scatterdp.config import CnnsConfig
from scatterdp.experiment import command_line


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, return the exit code."""
    return command_line(CnnsConfig, __doc__ or "", arguments)


if __name__ == "__main__":
    sys.exit(main())
