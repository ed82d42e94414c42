"""Rows by number from a file in which each row is in one piece: what a batch of a data set on the disk is read by.

A row of a cache lies whole inside its chunk, and chunks are not compressed, so a row is read from its place without the rest of its chunk. What
makes a disk fast is many requests at a time, or few large ones: :meth:`RowFile.expect` tells the system which rows come next, those that are
near each other in one request, and it fetches them while others are in work. A full batch is one sequential reading.
"""

from __future__ import annotations

import os
import weakref
from typing import BinaryIO, Protocol

import numpy as np

from scatterdp.errors import CacheError

_GAP_BYTES = 64 << 10  # reading through a gap of this size costs less than another request
_AT_ONCE_BYTES = 1 << 30  # systems read at most 2 GB in one call


class RowReader(Protocol):
    """Rows of features by number."""

    def expect(self, rows: np.ndarray) -> None:
        """Rows that will be read soon; a hint."""
        ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows ``(len(rows), …)``, the caller's to change."""
        ...


class RowFile:
    """Rows of one size in a file.

    Args:
        file: open for reading, unbuffered; closed with this object.
        name: what errors call it.
        shape: of a row.
        dtype: of its numbers.
        chunks: byte offset of each chunk of ``rows_per_chunk`` rows.
        rows_per_chunk: rows that follow each other without a gap.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        chunks: np.ndarray,
        rows_per_chunk: int,
    ) -> None:
        self._file, self._name, self._shape, self._dtype = file, name, shape, dtype
        self._chunks, self._rows_per_chunk = np.asarray(chunks, np.int64), rows_per_chunk
        self._row_bytes = int(np.prod(shape)) * dtype.itemsize
        weakref.finalize(self, file.close)
        if hasattr(os, "posix_fadvise"):  # what is asked for is read, and no neighbourhood
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def expect(self, rows: np.ndarray) -> None:
        """Have the system fetch rows in the background."""
        if not hasattr(os, "posix_fadvise"):
            return
        descriptor = self._file.fileno()
        for offset, size in self._pieces(np.sort(self._offsets(rows)), gap=_GAP_BYTES):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows ``(len(rows), *shape)`` in the order given; rows may repeat.

        Raises:
            CacheError: the file cannot be read, or is shorter than it was.
        """
        result = np.empty((len(rows), *self._shape), self._dtype)
        content, filled = memoryview(result.view(np.uint8).reshape(-1).data), 0
        try:
            for offset, size in self._pieces(self._offsets(rows), gap=0):
                end = filled + size
                while filled < end:
                    got = os.preadv(self._file.fileno(), [content[filled : min(end, filled + _AT_ONCE_BYTES)]], offset)
                    if not got:
                        raise CacheError(f"{self._name}: is shorter than it was when it was opened; extract again")
                    filled, offset = filled + got, offset + got
        except OSError as error:
            raise CacheError(f"{self._name}: cannot be read ({error.strerror}); look at the disk") from error
        return result

    def _offsets(self, rows: np.ndarray) -> np.ndarray:
        chunk, row = np.divmod(rows, self._rows_per_chunk)
        return self._chunks[chunk] + row * self._row_bytes

    def _pieces(self, offsets: np.ndarray, *, gap: int) -> list[tuple[int, int]]:
        """``(offset, size)`` of the pieces of the file that rows in this order are in, gaps of at most ``gap`` bytes included."""
        gaps = np.diff(offsets) - self._row_bytes
        ends = np.flatnonzero((gaps < 0) | (gaps > gap))
        starts = offsets[np.concatenate([[0], ends + 1])] if len(offsets) else offsets
        stops = offsets[np.concatenate([ends, [len(offsets) - 1]])] + self._row_bytes if len(offsets) else offsets
        return list(zip(starts.tolist(), (stops - starts).tolist(), strict=True))
