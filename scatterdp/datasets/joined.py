"""One data set out of two: more training images behind a data set's own, read from where they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.images import Images

_BLOCK_ROWS = 1024


class JoinedImages:
    """Images of several sources, one behind the other; nothing is copied until rows are asked for.

    Args:
        parts: ``(n, H, W[, 3])`` uint8 each, of one image shape. A part's slices and ascending row numbers are read.
        length: so many images in all, from the first; None: all.
    """

    def __init__(self, parts: Sequence[Images], *, length: int | None = None) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        total = int(self._ends[-1])
        self.shape = (total if length is None else min(length, total), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each image, read in blocks."""
        for start in range(0, len(self), _BLOCK_ROWS):
            yield from self[start : start + _BLOCK_ROWS]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows by a slice without step, or by row numbers ≥ 0 in any order."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                raise ValueError(f"step={step}: only slices without step are read")
            pieces = [part[max(0, start - begin) : max(0, stop - begin)] for part, begin in self._begins()]
            return np.concatenate([piece for piece in pieces if len(piece)]) if start < stop else self._none()
        rows = np.asarray(rows)
        wanted, places = np.unique(rows, return_inverse=True)  # ascending and once: what every source can read
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(self)):
            raise IndexError(f"rows {wanted[0]} to {wanted[-1]}: expected 0 to {len(self) - 1}")
        pieces = [
            part[wanted[(wanted >= begin) & (wanted < begin + len(part))] - begin] for part, begin in self._begins()
        ]
        return np.concatenate([self._none(), *(piece for piece in pieces if len(piece))])[places]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in memory."""
        return self[:] if dtype is None else self[:].astype(dtype)

    def _begins(self) -> list[tuple[Images, int]]:
        return [(part, int(end) - len(part)) for part, end in zip(self._parts, self._ends, strict=True)]

    def _none(self) -> np.ndarray:
        return np.empty((0, *self.shape[1:]), self.dtype)


def with_more_images(dataset: Dataset, x: Images, y: np.ndarray, *, count: int | None = None) -> Dataset:
    """The data set with more training images behind its own; no longer a published one.

    Args:
        dataset: whose training images come first, and whose test images stay.
        x: ``(n, H, W[, 3])`` uint8 of the data set's image shape.
        y: ``(n,)`` int64 labels of the data set's classes.
        count: the first so many of them; None: all.

    Raises:
        DatasetError: labels out of range, another dtype.
    """
    count = len(x) if count is None else count
    return Dataset(
        name=f"{dataset.name}+{count}",
        x_train=cast(np.ndarray, JoinedImages([dataset.x_train, x], length=len(dataset.x_train) + count)),
        y_train=np.concatenate([dataset.y_train, y[:count]]),
        x_test=dataset.x_test,
        y_test=dataset.y_test,
        class_names=dataset.class_names,
    )
