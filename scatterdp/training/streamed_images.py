"""Images that are decoded while training, as features and as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scatterdp.cache import Split
from scatterdp.datasets.images import to_channels_first_float
from scatterdp.datasets.streamed import StreamedDataset, StreamedImages
from scatterdp.extractors.base import Extractor
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.ahead import read_ahead
from scatterdp.training.augmentation import flip_and_crop
from scatterdp.training.rows import Piece


class ImageFeatures:
    """:class:`scatterdp.cache.Features` of a streamed data set; nothing is cached.

    Args:
        dataset: its splits.
        extractor: applied to the images, such as ``pixels``.
        folder: where the key of commitments lies.
    """

    dtype = "float32"

    def __init__(self, dataset: StreamedDataset, extractor: Extractor, folder: Path) -> None:
        self.dataset, self.extractor, self.path = dataset, extractor, folder / dataset.name
        self.dataset_fingerprint = dataset.fingerprint()

    @property
    def dataset_name(self) -> str:
        return self.dataset.name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.extractor.input_shape

    @property
    def extractor_name(self) -> str:
        return self.extractor.name

    @property
    def extractor_fingerprint(self) -> str:
        return self.extractor.fingerprint

    @property
    def extractor_config(self) -> dict[str, Any]:
        return {"image_size": self.dataset.train.image_size}

    @property
    def output_shape(self) -> tuple[int, int, int]:
        return self.extractor.output_shape

    def images(self, split: Split) -> StreamedImages:
        return self.dataset.train if split == "train" else self.dataset.test

    def content_digest(self) -> str:
        """The data set's fingerprint, which is of the images; features are computed when they are asked for."""
        return self.dataset_fingerprint

    def num_rows(self, split: Split) -> int:
        return len(self.images(split))

    def labels(self, split: Split) -> np.ndarray:
        return self.images(split).labels

    def iter_rows(
        self, split: Split, rows_per_block: int, *, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        reader, stop = self.row_reader(split), self.num_rows(split) if stop is None else stop
        for start in range(first, stop, rows_per_block):
            yield start, reader.read(np.arange(start, min(start + rows_per_block, stop)))

    def row_reader(self, split: Split) -> ImageReader:
        return ImageReader(self.images(split), self.extractor)


@dataclass(frozen=True)
class ImageReader:
    """Features ``(b, K, h, w)`` of images by row number, extracted when they are asked for."""

    images: StreamedImages
    extractor: Extractor

    def expect(self, rows: np.ndarray) -> None:
        pass

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.extractor(torch.from_numpy(to_channels_first_float(self.images.read(rows)))).cpu().numpy()


@dataclass(frozen=True)
class ImageRows:
    """Images of one split, decoded when a batch asks for them, the next piece while this one is in work.

    Args:
        images: the split.
        y: ``(N,)`` int64, on the device.
        extractor: on the device.
        physical_batch_size: rows in a piece.
        augmentation: the run's key, to flip and crop each image at random; None: as they are. The draws of an example depend on the key, the
            step and its row, never on another example.
    """

    images: StreamedImages
    y: Tensor
    extractor: Extractor
    physical_batch_size: int
    augmentation: RandomKey | None = None

    def pieces(self, indices: np.ndarray, *, step: int) -> Iterator[Piece]:
        if len(indices) == 0:
            return
        draws = (
            None
            if self.augmentation is None
            else self.augmentation.generator("augmentation", counter=step).random((len(self.images), 3))
        )
        parts = [
            indices[start : start + self.physical_batch_size]
            for start in range(0, len(indices), self.physical_batch_size)
        ]

        def pixels(number: int) -> np.ndarray:
            values = to_channels_first_float(self.images.read(parts[number]))
            return values if draws is None else flip_and_crop(values, draws[parts[number]])

        for part, values in zip(parts, read_ahead(pixels, len(parts), ahead=1), strict=True):
            x = self.extractor(torch.from_numpy(values)).flatten(1)
            yield Piece(x, self.y[torch.from_numpy(part).to(self.y.device)], None)
