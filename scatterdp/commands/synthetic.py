"""``python -m scatterdp synthetic``: a sheet of synthetic images, to look at.

    python -m scatterdp synthetic --generator=dead_leaves --n=64 --size=32 --out=sheet.png
    python -m scatterdp synthetic --generator=all --out=sheet.png        # one labelled row a generator

The images are fixed functions of the seed; no data set is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from scatterdp.commands.pictures import check_picture
from scatterdp.errors import ConfigError
from scatterdp.extractors.synthetic import GENERATORS, synthetic_images

#: What a sheet may have, all images together.
MOST_PIXELS = 1 << 25


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Draw a sheet of synthetic images; no data set is read."""

    generator: str = "all"
    """dead_leaves, spectrum_noise, wavelet_marginals, random_network, or all of them, a row each."""
    n: int | None = None
    """How many images of each generator (64; all: 12)."""
    size: int = 32
    """Height and width of an image in pixels."""
    channels: Literal[1, 3] = 3
    """1: grey. 3: RGB."""
    seed: int = 0
    """The same seed gives the same images."""
    out: Path = Path("sheet.png")
    """The PNG file to write; must not exist yet."""

    def __post_init__(self) -> None:
        if self.generator != "all" and self.generator not in GENERATORS:
            raise ConfigError(f"generator={self.generator!r}: expected all or one of {', '.join(GENERATORS)}")
        for name, value in (("n", self.n), ("size", self.size)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: expected a whole number ≥ 1")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}: expected a whole number ≥ 0")


def synthetic(config: SyntheticConfig) -> None:
    """Run the command; prints where the sheet is.

    Raises:
        UserError: see the message.
    """
    check_picture("out", config.out)
    from scatterdp.report.contact_sheet import contact_sheet  # matplotlib takes a second to import

    names = list(GENERATORS) if config.generator == "all" else [config.generator]
    count = config.n or (12 if config.generator == "all" else 64)
    pixels = len(names) * count * config.size**2
    if pixels > MOST_PIXELS:
        raise ConfigError(
            f"n={count}, size={config.size}: that is {pixels} pixels, expected at most {MOST_PIXELS} a sheet; "
            "take fewer or smaller images"
        )
    shape = (config.channels, config.size, config.size)
    images = np.concatenate([synthetic_images(name, count, shape, seed=config.seed) for name in names])
    title = f"{', '.join(names) if len(names) == 1 else 'synthetic images'}, {config.size}×{config.size}, seed {config.seed}"
    if len(names) > 1:
        contact_sheet(images, config.out, title=title, columns=count, labels=names)
    else:
        contact_sheet(images, config.out, title=title)
    print(f"sheet: {config.out}")


def run(argv: list[str]) -> int:
    """Run ``synthetic`` with its arguments.

    Raises:
        UserError: see the message.
    """
    config = tyro.cli(SyntheticConfig, prog="scatterdp synthetic", args=argv, use_underscores=True, description=__doc__)
    synthetic(config)
    return 0
