"""What the three extraction commands share: images → backbone → features in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from scatterdp.cache import ranks_of_environment
from scatterdp.commands.extract import extract_to_cache
from scatterdp.datasets.together import load_together
from scatterdp.errors import ConfigError, DatasetError
from scatterdp.exits import exit_code, parsed
from scatterdp.training.device import resolve_device
from transfer.sources import make_backbone

FEATURES_DIR = Path("transfer/features")
_BATCH_SIZE = 64  # images whose maps fit a common machine's memory, for all of these networks


@dataclass(frozen=True, kw_only=True)
class ExtractionConfig:
    """Images, and where their features go."""

    images: str = "cifar10"
    """mnist, fmnist, cifar10, digits, a folder train/<class>/*.png|jpg + test/<class>/…, or an .npz file."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the cached features; float16 halves the disk that they take."""
    batch_size: int = _BATCH_SIZE
    """Images in the network at once. Speed and memory only."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data_dir: Path | None = None
    """Where data sets are looked for and kept. None: $SCATTERDP_DATA, else ./data."""
    features_dir: Path = FEATURES_DIR
    """Where extracted features are cached; made when missing."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: expected a whole number ≥ 1")


_Config = TypeVar("_Config", bound=ExtractionConfig)


def extract_backbone(
    config: ExtractionConfig,
    backbone: str,
    weights: str,
    *,
    image_size: int | None = None,
    crop: float | None = None,
    normalize: str | None = None,
) -> Path:
    """Compute and cache; prints what and how fast.

    Returns:
        The cache's path.

    Raises:
        UserError: see the message.
    """
    for name, value, most in (("image_size", image_size, math.inf), ("crop", crop, 1)):
        if value is not None and not 0 < value <= most:
            raise ConfigError(f"{name}={value}: expected a number above 0" + (" and at most 1" if most == 1 else ""))
    ranks = ranks_of_environment()
    try:
        dataset = load_together(config.images, config.data_dir, ranks)
    except DatasetError as error:  # the other commands' flag is called dataset
        raise DatasetError(str(error).replace("--dataset=", "--images=", 1)) from error
    extractor = make_backbone(
        backbone, weights, dataset.image_shape, image_size=image_size, crop=crop, normalize=normalize
    ).to(resolve_device(config.device))
    with extract_to_cache(
        dataset,
        extractor,
        ranks,
        features_dir=config.features_dir,
        dtype=config.feature_dtype,
        batch_size=config.batch_size,
    ) as features:
        return features.path


def command_line(
    config_class: type[_Config],
    extract: Callable[[_Config], Path],
    *,
    module: str,
    description: str,
    arguments: list[str] | None,
) -> int:
    """Parse a command line into a config, extract, return the exit code."""

    def command() -> None:
        extract(parsed(config_class, prog=f"python -m {module}", args=arguments, description=description))

    return exit_code(command)
