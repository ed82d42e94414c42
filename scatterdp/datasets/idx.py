"""The IDX format of MNIST and Fashion-MNIST (Y. LeCun, "The MNIST database of handwritten digits")."""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from scatterdp.datasets.archives import gunzip, read_file
from scatterdp.datasets.published import Arrays, PublishedDataset
from scatterdp.errors import DatasetError

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
"""File name of each array."""

_ARRAY_NAMES = {file_name: array_name for array_name, file_name in IDX_FILES.items()}


def idx_size(shape: tuple[int, ...]) -> int:
    """Bytes of an IDX file of uint8: the magic number, one dimension each in 4 bytes, the values."""
    return 4 + 4 * len(shape) + math.prod(shape)


def decode_idx(data: bytes, shape: tuple[int, ...], source: str) -> np.ndarray:
    """Decode an IDX file.

    Args:
        data: its bytes.
        shape: the shape that it has to have.
        source: its name for messages.

    Returns:
        uint8 array of ``shape``.

    Raises:
        DatasetError: another magic number, shape or length.
    """
    header = 4 + 4 * len(shape)
    magic = bytes((0, 0, 0x08, len(shape)))  # 0x08: unsigned byte
    if data[:4] != magic:
        raise DatasetError(f"{source} starts with {data[:4].hex()}, expected the IDX magic number {magic.hex()}")
    if len(data) < header:
        raise DatasetError(f"{source} is cut short in its header")
    dimensions = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=len(shape), offset=4))
    if dimensions != shape:
        raise DatasetError(f"{source} says shape {dimensions}, expected {shape}")
    if len(data) != idx_size(shape):
        raise DatasetError(f"{source} has {len(data)} bytes, expected {idx_size(shape)}")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape).copy()  # writable


def find_idx_file(folder: Path, file_name: str) -> Path | None:
    """The plain or gzipped file of this name, whichever is there."""
    candidates = (folder / file_name, folder / f"{file_name}.gz")
    return next((path for path in candidates if os.path.isfile(path)), None)


def read_idx_folder(published: PublishedDataset, folder: Path) -> Arrays:
    """Decode the four IDX files of a folder, each plain or gzipped.

    Raises:
        DatasetError: a file is missing, damaged or of another shape.
    """
    arrays = {}
    for array_name, file_name in IDX_FILES.items():
        path = find_idx_file(folder, file_name)
        if path is None:
            raise DatasetError(f"{folder} lacks {file_name}.gz")
        shape = published.shapes[array_name]
        arrays[array_name] = decode_idx(read_file(path, idx_size(shape)), shape, str(path))
    return arrays


def idx_member_limits(published: PublishedDataset, prefix: str, suffix: str) -> dict[str, int]:
    """Largest size of each IDX file inside an archive, by member name (gzip adds little to what it cannot shrink)."""
    slack = 1 << 16 if suffix == ".gz" else 0
    return {
        f"{prefix}{file_name}{suffix}": idx_size(published.shapes[array_name]) + slack
        for array_name, file_name in IDX_FILES.items()
    }


def decode_idx_members(published: PublishedDataset, members: Iterable[tuple[str, bytes]]) -> Arrays:
    """Decode IDX files read from an archive.

    Args:
        published: what is expected.
        members: name (with any folder, ``.gz`` if compressed) and content of each.

    Raises:
        DatasetError: a damaged file or one of another shape.
    """
    arrays = {}
    for name, data in members:
        file_name = name.rpartition("/")[2]
        array_name = _ARRAY_NAMES[file_name.removesuffix(".gz")]
        shape = published.shapes[array_name]
        plain = gunzip(data, idx_size(shape), name) if name.endswith(".gz") else data
        arrays[array_name] = decode_idx(plain, shape, name)
    return arrays
