"""Features and labels, row by row, wherever they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scatterdp.tables.source import Source

BLOCK_BYTES = 16 << 20
"""About what one block of rows takes."""

SINGLE_PRECISION_MAX = float(np.finfo(np.float32).max)


class Rows(Protocol):
    """What features are read through: a NumPy array, a memory map, an HDF5 data set. A slice of rows is an array in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """One split's features and labels.

    Args:
        x: ``(N, D)`` numbers, or images ``(N, H, W[, 3])`` uint8; rows are read in slices.
        labels: ``(N,)`` int64 or strings, the user's own values; None where none are known.
        name: short name, usable in a file name.
        row_names: a file name a row for a folder of images.
    """

    x: Rows
    labels: np.ndarray | None
    name: str
    row_names: tuple[str, ...] | None = None

    @property
    def is_images(self) -> bool:
        return len(self.x.shape) > 2

    def __len__(self) -> int:
        return self.x.shape[0]


def row_blocks(x: Rows, *, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, np.ndarray]]:
    """Read rows from first to last.

    Args:
        x: ``(N, …)``.
        block_bytes: about how much to hold in memory at once; one row at least. Where rows are stored in chunks, whole ones.

    Yields:
        ``(start, block)``: the block's first row and its rows.
    """
    total = x.shape[0]
    row_bytes = max(1, math.prod(x.shape[1:]) * x.dtype.itemsize)
    rows = max(1, block_bytes // row_bytes)
    chunks = getattr(x, "chunks", None)
    if chunks and chunks[0] * row_bytes <= 2 * block_bytes:  # a chunk that is read twice is unpacked twice
        rows = max(1, rows // chunks[0]) * chunks[0]
    for start in range(0, total, rows):
        yield start, np.asarray(x[start : start + rows])


def check_numbers(x: Rows, source: Source) -> None:
    """Raise DatasetError unless ``x`` is a table of real numbers, ``(N, D)`` with N, D ≥ 1; values are not looked at."""
    if x.dtype.kind == "O":
        raise source.error("it holds Python objects (pickled), which are not read: save an array of numbers")
    if x.dtype.kind not in "fiub":
        raise source.error(f"its values are {x.dtype}, expected real numbers")
    if len(x.shape) != 2:
        raise source.error(
            f"it has shape {tuple(x.shape)}, expected (N, D): one row of D features an example, "
            "so reshape it to that (images: give a folder)"
        )
    if x.shape[0] == 0:
        raise source.error(f"the table is empty (shape {tuple(x.shape)}), expected at least one row")
    if x.shape[1] == 0:
        raise source.error(f"its rows are empty (shape {tuple(x.shape)}), expected at least one feature")


def check_finite(x: Rows, source: Source) -> None:
    """Raise DatasetError, naming the first row, when a value is not finite in single precision; reads all, in blocks."""
    try:
        for start, block in row_blocks(x):
            if block.dtype.kind == "f":
                check_finite_block(block, start, source)
    except (OSError, RuntimeError) as error:  # HDF5 tells damage and missing filters only when it comes to them
        raise source.error(f"its values cannot be read ({error}): write or copy the file again") from error


def check_finite_block(block: np.ndarray, start: int, source: Source) -> None:
    """The same for one block ``(B, …)`` whose first row is row ``start``."""
    # Single precision is what is computed in: 1e39 would become infinite there.
    usable = np.isfinite(block) if block.dtype.itemsize <= 4 else np.abs(block) <= SINGLE_PRECISION_MAX
    if usable.all():
        return
    usable = usable.reshape(len(block), -1)
    row = int(np.argmin(usable.all(axis=1)))
    column = int(np.argmin(usable[row]))
    value = block.reshape(len(block), -1)[row, column]
    if np.isnan(value):
        what = "NaN"
    elif np.isinf(value):
        what = "an infinite value"
    else:
        what = f"{value:g}, beyond single precision,"
    raise source.error(
        f"row {start + row} holds {what} in column {column} (both counted from 0): "
        "replace such values or leave the row out"
    )
