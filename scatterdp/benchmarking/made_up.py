"""Features of any number and size, for measuring: pixels of random images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np

from scatterdp.cache import FeatureCache, extract_features
from scatterdp.datasets import Dataset
from scatterdp.datasets.joined import JoinedImages
from scatterdp.extractors import make_extractor

_IMAGES, _BYTES = 10_000, 256 << 20  # of images that are drawn, at most; the rows go round them
_TEST_ROWS = 1000
_CLASSES = 10


def made_up_features(folder: Path, *, rows: int, dimensions: int) -> FeatureCache:
    """A cache in float16, two bytes a number. One that is there already is opened.

    Args:
        folder: where the cache goes.
        rows: of the training split; 1000 of the test split.
        dimensions: of a row.
    """
    rng, images = np.random.default_rng(0), max(_TEST_ROWS, min(_IMAGES, _BYTES // dimensions))
    height = next(side for side in range(math.isqrt(dimensions), 0, -1) if dimensions % side == 0)
    pixels = rng.integers(0, 256, (images, height, dimensions // height), dtype=np.uint8)
    dataset = Dataset(
        name=f"made-up-{rows}",
        x_train=cast(np.ndarray, JoinedImages([pixels] * -(-rows // images), length=rows)),
        y_train=rng.integers(0, _CLASSES, rows),
        x_test=pixels[:_TEST_ROWS],
        y_test=rng.integers(0, _CLASSES, _TEST_ROWS),
        class_names=tuple(map(str, range(_CLASSES))),
    )
    extractor = make_extractor("pixels", dataset.image_shape)
    return extract_features(dataset, extractor, features_dir=folder, dtype="float16", progress=True)
