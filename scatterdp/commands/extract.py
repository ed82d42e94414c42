"""``python -m scatterdp extract``: compute and cache features, without training anything.

    python -m scatterdp extract --dataset=cifar10
    python -m scatterdp extract --dataset=FOLDER --J=3 --feature_dtype=float16 --plot=scattering.png
    torchrun --nproc_per_node=4 -m scatterdp extract --dataset=cifar10        # several processes, one cache

An extraction that was interrupted goes on when the same command runs again, with any number of processes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from scatterdp.cache import FeatureCache, Ranks, extract_features, ranks_of_environment
from scatterdp.commands.pictures import check_picture
from scatterdp.datasets import Dataset
from scatterdp.datasets.together import load_together
from scatterdp.errors import ConfigError
from scatterdp.exits import parsed
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.scatternet import ScatterNet
from scatterdp.training.device import resolve_device

SETTINGS = ("J", "L", "max_order", "normalize", "mirror", "pre_pad")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Compute a data set's features once and cache them; nothing is trained and nothing is released."""

    dataset: str = "cifar10"
    """mnist, fmnist, cifar10, digits, a folder train/<class>/*.png|jpg + test/<class>/…, or an .npz file."""
    extractor: str = "scatternet"
    """Which features."""
    J: int | None = None
    """ScatterNet: the scale; the output is 2^J times smaller a side (2)."""
    L: int | None = None
    """ScatterNet: number of orientations (8)."""
    max_order: Literal[1, 2] | None = None
    """ScatterNet: 1, or 2 for second-order coefficients too (2)."""
    normalize: Literal["imagenet", "none"] | None = None
    """ScatterNet: ImageNet's public colour statistics, or none (RGB: imagenet, grey: none)."""
    mirror: bool = False
    """ScatterNet: fold features with those of the mirror image, half the dimensions."""
    pre_pad: bool = False
    """ScatterNet: the images are padded already."""
    feature_dtype: Literal["float32", "float16"] = "float32"
    """Precision of the cached features; float16 halves the disk that they take."""
    batch_size: int | None = None
    """Images a call of the extractor. None: about 32 MiB of features. Speed and memory only."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    data_dir: Path | None = None
    """Where data sets are looked for and kept. None: $SCATTERDP_DATA, else ./data."""
    features_dir: Path = Path("features")
    """Where extracted features are cached."""
    plot: Path | None = None
    """Also draw the filters and one test image's coefficients to this PNG file, which must not exist yet (it shows that image: private if the image is)."""

    def settings(self) -> dict[str, object]:
        """What was said about the extractor."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name in SETTINGS}
        return {name: value for name, value in values.items() if value is not None and value is not False}


def extract(config: ExtractConfig) -> FeatureCache:
    """Run the command; prints where the features are and how fast they came.

    Raises:
        UserError: see the message.
    """
    if config.plot is not None:
        check_picture("plot", config.plot)
    ranks = ranks_of_environment()
    dataset = load_together(config.dataset, config.data_dir, ranks)
    extractor = make_extractor(config.extractor, dataset.image_shape, **config.settings())
    if config.plot is not None and not isinstance(extractor, ScatterNet):
        raise ConfigError(f"plot={config.plot}: there is a picture of scatternet only, this is {extractor.name}")
    features = extract_to_cache(
        dataset,
        extractor.to(resolve_device(config.device)),
        ranks,
        features_dir=config.features_dir,
        dtype=config.feature_dtype,
        batch_size=config.batch_size,
    )
    if config.plot is not None and ranks.rank == 0:
        assert isinstance(extractor, ScatterNet)
        from scatterdp.report.scattering import plot_scattering  # matplotlib takes a second to import

        plot_scattering(extractor, dataset.x_test[0], config.plot)
        print(f"picture: {config.plot}")
    return features


def extract_to_cache(
    dataset: Dataset, extractor: Extractor, ranks: Ranks, *, features_dir: Path, dtype: str, batch_size: int | None
) -> FeatureCache:
    """:func:`scatterdp.cache.extract_features`, telling what is computed, where it goes and how long it took."""
    say = print if ranks.rank == 0 else lambda *_, **__: None
    say(
        f"{dataset.name}: {len(dataset.x_train)} training and {len(dataset.x_test)} test images of "
        f"{'×'.join(map(str, dataset.image_shape))}; features {'×'.join(map(str, extractor.output_shape))}",
        flush=True,
    )
    begin = time.monotonic()
    features = extract_features(
        dataset,
        extractor,
        features_dir=features_dir,
        dtype=dtype,
        batch_size=batch_size,
        progress=ranks.rank == 0,
        ranks=ranks,
    )
    say(f"features: {features.path} after {time.monotonic() - begin:.1f} s")
    return features


def run(argv: list[str]) -> int:
    """Run ``extract`` with its arguments.

    Raises:
        UserError: see the message.
    """
    config = parsed(ExtractConfig, prog="scatterdp extract", args=argv, description=__doc__)
    extract(config).close()
    return 0
