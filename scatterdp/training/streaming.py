"""Rows that stay on the disk: each batch is read when its step comes, normalised on the fly, the next pieces fetched meanwhile.

The same numbers as rows in memory, bit for bit on a CPU: both paths normalise in single precision, round to the cache's number type and go on from
there, and ``‖x‖²`` is computed once, in the same blocks. That holds for normalisers that treat each number or each example by itself. A
preconditioner multiplies matrices, whose rounding depends on how many rows are multiplied at once, and costs more than reading: what it makes
is written once to a file without a name beside the cache, which is gone with the process, however that ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scatterdp.cache import Features, RowFile, RowReader, Split
from scatterdp.errors import UserError
from scatterdp.heads import Precondition
from scatterdp.sizes import available_memory
from scatterdp.training.ahead import read_ahead
from scatterdp.training.rows import DEFAULT_PHYSICAL_BATCH, FeatureRows, Piece, load_rows, normalized, normalized_blocks

_READ_AHEAD = 2  # pieces that are read while one is in work
_FEW_BYTES = 1 << 20
_EXPECTED_AHEAD = 8  # pieces beyond, that the system is told of


@dataclass(frozen=True, eq=False)
class StreamedRows:
    """Rows read from a file for every batch.

    Args:
        reader: features ``(b, K, h, w)``, or rows ``(b, D)`` that are normalised already.
        y: ``(N,)`` int64.
        squared_norms: ``(N,)`` float32, ``‖x‖²`` of the rows as rounded.
        normalizer: applied to what is read.
        dtype: to which normalised rows are rounded.
        physical_batch_size: rows in a piece.
        first: the reader's number of row 0.
    """

    reader: RowReader
    y: Tensor
    squared_norms: Tensor
    normalizer: nn.Module
    dtype: torch.dtype
    physical_batch_size: int = DEFAULT_PHYSICAL_BATCH
    first: int = 0

    def pieces(self, indices: np.ndarray, *, step: int) -> Iterator[Piece]:
        size = self.physical_batch_size
        parts = [indices[start : start + size] for start in range(0, len(indices), size)]
        told = 0

        def read(number: int) -> np.ndarray:
            nonlocal told
            # The first piece waits for few requests; then they run ahead.
            while told < min(len(parts), 2 * number + 2, number + 1 + _EXPECTED_AHEAD):
                self.reader.expect(parts[told] + self.first)
                told += 1
            return self.reader.read(parts[number] + self.first)

        # The thread reads and does nothing else: tensor operations of two threads at a time, each with threads of its own, take turns badly.
        buffer = torch.empty(0)
        for part, block in zip(parts, read_ahead(read, len(parts), ahead=_READ_AHEAD), strict=True):
            if not len(buffer):
                buffer = torch.empty(len(part), int(np.prod(block.shape[1:])), device=self.y.device)
            places = torch.from_numpy(part).to(self.y.device)
            yield Piece(self._normalized(block, buffer[: len(part)]), self.y[places], self.squared_norms[places])

    def _normalized(self, block: np.ndarray, x: Tensor) -> Tensor:
        # A few rows at a time stay in the processor's cache from one operation to the next.
        few = max(1, _FEW_BYTES // (4 * x.shape[1])) if x.device.type == "cpu" else len(block)
        for start in range(0, len(block), few):
            part = block[start : start + few]
            x[start : start + few] = normalized(part, self.normalizer, device=x.device, dtype=self.dtype)
        return x


def open_rows(
    features: Features,
    split: Split,
    normalizer: nn.Module,
    *,
    device: torch.device | str = "cpu",
    physical_batch_size: int = DEFAULT_PHYSICAL_BATCH,
    budget: int | None = None,
    first: int = 0,
    stop: int | None = None,
) -> FeatureRows | StreamedRows:
    """One split's rows, ``first`` to before ``stop``: in memory where they take at most ``budget`` bytes (None: any number), else streamed.

    Raises:
        UserError: a row that is not finite after normalisation; no room on the disk for preconditioned rows.
    """
    stop = features.num_rows(split) if stop is None else stop
    make = load_rows if budget is None or rows_bytes(features, stop - first) <= budget else stream_rows
    return make(
        features, split, normalizer, device=device, physical_batch_size=physical_batch_size, first=first, stop=stop
    )


def stream_rows(
    features: Features,
    split: Split,
    normalizer: nn.Module,
    *,
    device: torch.device | str = "cpu",
    physical_batch_size: int = DEFAULT_PHYSICAL_BATCH,
    first: int = 0,
    stop: int | None = None,
) -> StreamedRows:
    """Rows that stay on the disk, ``first`` to before ``stop``. Reads them once, for ``‖x‖²`` and to compare them with their digests.

    Memory: labels and norms, 12 bytes a row, and a few pieces.

    Raises:
        UserError: as :func:`open_rows`.
    """
    stop = features.num_rows(split) if stop is None else stop
    squared_norms = torch.empty(stop - first, device=device)
    preconditioned = any(isinstance(module, Precondition) for module in normalizer.modules())
    scratch = _Scratch(features, stop - first) if preconditioned else None
    for start, values, norms in normalized_blocks(features, split, normalizer, device=device, first=first, stop=stop):
        squared_norms[start - first : start - first + len(norms)] = norms
        if scratch is not None:
            scratch.append(values)
    return StreamedRows(
        reader=features.row_reader(split) if scratch is None else scratch.reader(),
        y=torch.from_numpy(features.labels(split)[first:stop]).to(device),
        squared_norms=squared_norms,
        normalizer=normalizer if scratch is None else nn.Identity(),
        dtype=getattr(torch, features.dtype),
        physical_batch_size=physical_batch_size,
        first=first if scratch is None else 0,
    )


class _Scratch:
    """Normalised rows in a file without a name."""

    def __init__(self, features: Features, rows: int) -> None:
        self._folder, self._size = features.path.parent, rows_bytes(features, rows)
        self._rows, self._width = rows, int(np.prod(features.output_shape))
        self._dtype = np.dtype(features.dtype)
        free = shutil.disk_usage(self._folder).free
        if free < self._size:
            raise self._no_room(free)
        self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (closed by the reader)

    def append(self, values: Tensor) -> None:
        content = values.cpu().numpy().data.cast("B")
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise self._no_room(shutil.disk_usage(self._folder).free) from error

    def reader(self) -> RowFile:
        return RowFile(
            self._file,  # type: ignore[arg-type]
            name=f"{self._folder}: preconditioned rows",
            shape=(self._width,),
            dtype=self._dtype,
            chunks=np.zeros(1, np.int64),
            rows_per_chunk=self._rows,
        )

    def _no_room(self, free: int) -> UserError:
        return UserError(
            f"features_dir={self._folder}: preconditioned features beyond the memory budget need {self._size} bytes there while training runs, "
            f"{free} are free; free some space, or give a larger --memory_budget or --precondition=0"
        )


def matrix_bytes(features: Features, split: Split) -> int:
    """What a split's rows take in memory."""
    return rows_bytes(features, features.num_rows(split))


def rows_bytes(features: Features, rows: int) -> int:
    """What so many rows take in memory."""
    return rows * int(np.prod(features.output_shape)) * np.dtype(features.dtype).itemsize


def default_budget(device: torch.device | str, processes: int = 1) -> int | None:
    """This process's share of half the memory that is free where rows are kept; None where the system does not say.

    Args:
        device: where they are kept.
        processes: that share the memory, of one machine as far as anyone knows.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2  # each process has a device of its own
    free = available_memory()
    if free is None and hasattr(os, "sysconf"):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None if free is None else free // 2 // processes
