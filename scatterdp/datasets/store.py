"""Verified arrays on disk, so that the next load is local and quick."""

from __future__ import annotations

import math
import os
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from scatterdp.datasets.published import Arrays, PublishedDataset
from scatterdp.errors import DatasetError

NPZ_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError, OSError, KeyError, RuntimeError)
"""What numpy and zipfile raise on a damaged, truncated, encrypted or pickled ``.npz``."""

_HEADER_SLACK = 4096


def stored_files(published: PublishedDataset, folder: Path) -> list[Path]:
    """The places of stored arrays in ``folder``, in the order in which they are read.

    The second is used only if the first is taken by a file that fails its digest: that one may be the user's own.
    """
    return [folder / f"{published.name}.npz", folder / f"{published.name}-verified.npz"]


def read_stored(published: PublishedDataset, path: Path) -> Arrays:
    """Read stored arrays. They are not verified here.

    Raises:
        DatasetError: not a readable ``.npz``, or one with other arrays.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        with np.load(path, allow_pickle=False) as stored:
            for array_name, shape in published.shapes.items():
                # Looked at before numpy allocates what the file asks for.
                if sizes.get(f"{array_name}.npy", 0) > math.prod(shape) + _HEADER_SLACK:
                    raise DatasetError(f"{path}: {array_name} is larger than that of {published.name}")
                arrays[array_name] = stored[array_name]
    except NPZ_ERRORS as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is not a readable .npz of {published.name}: {error}") from error
    return arrays


def write_stored(published: PublishedDataset, folder: Path, arrays: Arrays) -> Path:
    """Store verified arrays atomically: a reader sees the whole file or none.

    Args:
        published: the data set.
        folder: made if it is not there.
        arrays: verified arrays.

    Returns:
        The file written. An existing ``NAME.npz`` is left as it is.

    Raises:
        OSError: the folder cannot be written.
    """
    first, second = stored_files(published, folder)
    path = second if os.path.lexists(first) else first
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{published.name}-", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                x_train=arrays["x_train"],
                y_train=arrays["y_train"],
                x_test=arrays["x_test"],
                y_test=arrays["y_test"],
            )
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock out others who share the folder; the data is public
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
