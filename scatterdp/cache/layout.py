"""The unfinished file's structure: made whole at once, so that writing rows later changes no metadata."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import math
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from scatterdp.cache.files import DTYPES, SPLITS, Split, beside, journal_paths, partial_path
from scatterdp.cache.schema import open_hdf5, write_attributes
from scatterdp.errors import CacheError
from scatterdp.writing import sync_folder

_CHUNK_BYTES = 2 << 20  # a chunk holds about this much: large enough to read fast, small enough to redo


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What the structure is made of.

    Args:
        attributes: the file's root attributes.
        labels: of each split; there is a row of features for every label.
    """

    attributes: dict[str, Any]
    labels: dict[Split, np.ndarray]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return tuple(self.attributes["output_shape"])

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.attributes["dtype"]]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """The file's size, to within a few per cent from above."""
        total = 1 << 16
        for labels in self.labels.values():
            rows = rows_per_chunk(len(labels), self.row_bytes)
            total += math.ceil(len(labels) / rows) * (rows * self.row_bytes + 256) + 16 * len(labels)
        return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where one split's values are in the file, in bytes from its start."""

    rows: int
    rows_per_chunk: int
    chunks: list[int]
    squared_norms: int
    digests: int


def rows_per_chunk(rows: int, row_bytes: int) -> int:
    """Rows that are stored together."""
    return min(max(1, _CHUNK_BYTES // row_bytes), rows)


def create(path: Path, layout: Layout) -> None:
    """Make the structure of the cache at ``path``, allocate the disk and rename it to the partial file."""
    partial, creating = partial_path(path), beside(path, ".creating")
    # The leftovers go first: their space counts, and a journal must never describe another partial file.
    for leftover in (*journal_paths(path), partial, creating):
        leftover.unlink(missing_ok=True)
    if shutil.disk_usage(path.parent).free < layout.file_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))
    try:
        # Probed before HDF5 is involved, which leaves a file open when it fails to grow it.
        with open(creating, "wb") as file:
            allocate(file, layout.file_bytes)
        with h5py.File(creating, "w", libver="earliest", locking=False) as file:
            write_attributes(file, layout.attributes)
            for split in SPLITS:
                create_split(file, split, layout)
        with open(creating, "r+b") as file:
            allocate(file, os.path.getsize(creating))
            os.fsync(file.fileno())
    except BaseException:
        creating.unlink(missing_ok=True)
        raise
    os.replace(creating, partial)
    sync_folder(path.parent)


def create_split(file: h5py.File, split: Split, layout: Layout) -> None:
    """One split's group: labels written, everything else in its place and empty."""
    stored = layout.labels[split].astype("<i8")
    rows = rows_per_chunk(len(stored), layout.row_bytes)
    group = file.create_group(split)
    group.attrs["labels_sha256"] = np.bytes_(hashlib.sha256(stored.tobytes()).hexdigest())
    group.create_dataset("labels", data=stored)
    group.create_dataset("squared_norms", data=np.zeros(len(stored), "<f8"))
    group.create_dataset("chunk_xxh3_128", data=np.zeros((math.ceil(len(stored) / rows), 16), np.uint8))
    # All chunks get their place now (early) and are not filled (never): writing rows later changes no metadata.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((rows, *layout.row_shape))
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    space = h5py.h5s.create_simple((len(stored), *layout.row_shape))
    h5py.h5d.create(group.id, b"features", h5py.h5t.py_create(layout.dtype), space, dcpl=properties)


def places_of(partial: Path, layout: Layout) -> dict[Split, Place]:
    """Where everything is in an unfinished file.

    Raises:
        CacheError: it is not laid out as :func:`create` does.
    """
    places: dict[Split, Place] = {}
    with open_hdf5(partial) as file:
        for split in SPLITS:
            group: Any = file[split]
            features = group["features"]
            rows, rows_in_chunk = len(layout.labels[split]), features.chunks[0]
            offsets: dict[int, int] = {}

            def note(info: Any, offsets: dict[int, int] = offsets) -> None:
                offsets[info.chunk_offset[0]] = info.byte_offset

            features.id.chunk_iter(note)
            if features.shape != (rows, *layout.row_shape) or sorted(offsets) != list(range(0, rows, rows_in_chunk)):
                raise CacheError(f"{split}/features is not laid out as expected")
            places[split] = Place(
                rows=rows,
                rows_per_chunk=rows_in_chunk,
                chunks=[offsets[start] for start in sorted(offsets)],
                squared_norms=group["squared_norms"].id.get_offset(),
                digests=group["chunk_xxh3_128"].id.get_offset(),
            )
    return places


def allocate(file: BinaryIO, size: int) -> None:
    """Reserve disk space, so that a full disk shows now and not after hours; a no-op where it cannot be done."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
