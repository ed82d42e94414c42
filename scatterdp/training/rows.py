"""Where a training step's examples come from: rows in memory, or images extracted anew at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scatterdp.cache import Features, Split
from scatterdp.datasets.images import to_channels_first_float
from scatterdp.errors import UserError
from scatterdp.extractors.base import Extractor
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.augmentation import flip_and_crop

#: Rows in work at once, chosen by measurement: scripts/bench_linear_step.py prints the table.
DEFAULT_PHYSICAL_BATCH = 512


@dataclass(frozen=True)
class Piece:
    """A physical batch: ``x (b, D)`` float32, ``y (b,)`` int64, ``squared_norms (b,)`` float32 of ``‖x‖²`` or None.

    Copies of an example stand in succession, as rows of their own.
    """

    x: Tensor
    y: Tensor
    squared_norms: Tensor | None


class Rows(Protocol):
    """Examples by row number."""

    def pieces(self, indices: np.ndarray, *, step: int) -> Iterator[Piece]:
        """The examples of one logical batch in physical pieces; none for an empty batch.

        A piece is valid until the next one is asked for: its memory may be used again.
        """
        ...


class LabelledRows(Rows, Protocol):
    """Rows whose number and labels are known."""

    @property
    def y(self) -> Tensor:
        """``(N,)`` int64."""
        ...


@dataclass(frozen=True)
class FeatureRows:
    """Normalised, flattened features in memory.

    Args:
        x: ``(N, D)`` float32 or float16.
        y: ``(N,)`` int64.
        squared_norms: ``(N,)`` float32, ``‖x‖²`` of the stored rows.
        physical_batch_size: rows in a piece.
    """

    x: Tensor
    y: Tensor
    squared_norms: Tensor
    physical_batch_size: int = DEFAULT_PHYSICAL_BATCH

    def pieces(self, indices: np.ndarray, *, step: int) -> Iterator[Piece]:
        if len(indices) == 0:
            return
        size = min(self.physical_batch_size, len(indices))
        # One buffer for all pieces: fresh memory for each would cost as much again as the copy, in page faults.
        stored = torch.empty(size, self.x.shape[1], dtype=self.x.dtype, device=self.x.device)
        single = stored if stored.dtype == torch.float32 else torch.empty_like(stored, dtype=torch.float32)
        every = np.array_equal(indices, np.arange(len(self.x)))  # a full batch lies ready, nothing to gather
        for part in torch.from_numpy(indices).to(self.x.device).split(size):
            if every:
                x = self.x[int(part[0]) : int(part[0]) + len(part)]
            else:
                x = torch.index_select(self.x, 0, part, out=stored[: len(part)])
            if single is not stored:
                x = single[: len(part)].copy_(x)
            yield Piece(x, self.y[part], self.squared_norms[part])


def normalized_blocks(
    features: Features,
    split: Split,
    normalizer: nn.Module,
    *,
    device: torch.device | str,
    first: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Rows of a split, ``first`` to before ``stop``, as training sees them: normalised, flattened, in the cache's own precision.

    Yields:
        ``(start, values (b, D), squared_norms (b,))``, the latter float32, of the values as rounded.

    Raises:
        UserError: a row that is not finite after normalisation (float16 overflows at 65504).
    """
    for start, block in features.iter_rows(split, 512, first=first, stop=stop):
        values = normalized(block, normalizer, device=device, dtype=getattr(torch, features.dtype))
        with torch.no_grad():
            norms = values.float().square().sum(1)
        if not norms.isfinite().all():
            raise UserError(
                f"features of the {split} split: row {start + int((~norms.isfinite()).nonzero()[0])} is not finite "
                f"after normalisation in {features.dtype}; use --feature_dtype=float32 or another --input_norm"
            )
        yield start, values, norms


@torch.no_grad()
def normalized(block: np.ndarray, normalizer: nn.Module, *, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Features ``(b, K, h, w)`` as rows ``(b, D)``: normalised in single precision, then rounded to ``dtype``."""
    return normalizer(torch.from_numpy(block).to(device).float()).flatten(1).to(dtype)


def load_rows(
    features: Features,
    split: Split,
    normalizer: nn.Module,
    *,
    device: torch.device | str = "cpu",
    physical_batch_size: int = DEFAULT_PHYSICAL_BATCH,
    first: int = 0,
    stop: int | None = None,
) -> FeatureRows:
    """Read one split into memory, normalised, in the cache's own precision; or its rows from ``first`` to before ``stop``.

    Memory: the split once, plus one block of 512 rows.

    Raises:
        UserError: a row that is not finite after normalisation (float16 overflows at 65504).
    """
    stop = features.num_rows(split) if stop is None else stop
    rows, size = stop - first, int(np.prod(features.output_shape))
    x = torch.empty(rows, size, dtype=getattr(torch, features.dtype), device=device)
    squared_norms = torch.empty(rows, device=device)
    for start, values, norms in normalized_blocks(features, split, normalizer, device=device, first=first, stop=stop):
        x[start - first : start - first + len(values)] = values
        squared_norms[start - first : start - first + len(values)] = norms
    y = torch.from_numpy(features.labels(split)[first:stop]).to(device)
    return FeatureRows(x, y, squared_norms, physical_batch_size)


@dataclass(frozen=True)
class AugmentedRows:
    """Images, randomly flipped and cropped, extracted and normalised at each step: features are never stored.

    Every example comes as ``copies`` rows in succession, each augmented in its own way. The augmentation of an example depends on the
    key, the step and the example's row: never on another example.
    """

    images: np.ndarray
    y: Tensor
    extractor: Extractor
    normalizer: nn.Module
    key: RandomKey
    physical_batch_size: int = DEFAULT_PHYSICAL_BATCH
    copies: int = 1

    def pieces(self, indices: np.ndarray, *, step: int) -> Iterator[Piece]:
        # Drawn for every row, in the batch or not, so that no example's draw moves with another's.
        draws = self.key.generator("augmentation", counter=step).random((len(self.images), self.copies, 3))
        device = self.y.device
        examples = max(1, self.physical_batch_size // self.copies)
        for start in range(0, len(indices), examples):
            part = indices[start : start + examples].repeat(self.copies)
            number = np.arange(len(part)) % self.copies
            images = flip_and_crop(to_channels_first_float(self.images[part]), draws[part, number])
            with torch.no_grad():
                x = self.normalizer(self.extractor(torch.from_numpy(images).to(device))).flatten(1)
            yield Piece(x, self.y[torch.from_numpy(part).to(device)], None)
