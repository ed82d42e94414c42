"""``.npy`` and ``.npz``: mapped into memory where the file's bytes are the array's, never unpickled."""

from __future__ import annotations

import tokenize
import zipfile
from typing import BinaryIO

import numpy as np

from scatterdp.datasets.store import NPZ_ERRORS
from scatterdp.tables.source import Source, listed

_OBJECTS = "it holds Python objects (pickled), which are not read: save an array of numbers, or of strings for labels"
_BAD_HEADER = (ValueError, SyntaxError, tokenize.TokenError, TypeError, KeyError, OverflowError)
"""What numpy raises on a header that is not one."""

_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name and extra field


def open_npy(source: Source) -> np.ndarray:
    """The array of a ``.npy``, mapped.

    Raises:
        DatasetError: no ``.npy``, cut short, or of Python objects.
    """
    try:
        with source.path.open("rb") as file:
            shape, fortran_order, dtype = _read_header(file, source)
            return _mapped(source, file.tell(), shape, fortran_order, dtype)
    except OSError as error:
        raise source.error(f"cannot be read ({error.strerror}); check the file and who may read it") from error


def open_npz(source: Source) -> np.ndarray:
    """One array of an ``.npz``: that of the key, or the only one. Mapped unless it is compressed.

    Raises:
        DatasetError: no ``.npz``, damaged, a sparse matrix, no such key, several arrays and no key, Python objects.
    """
    if not zipfile.is_zipfile(source.path):
        raise source.error("is no .npz (no zip archive, or cut short): save it with numpy.savez")
    try:
        with zipfile.ZipFile(source.path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if {"format", "shape", "data"} <= members.keys():
                raise source.error(
                    "is a sparse matrix (scipy.sparse): make it dense with .toarray(), or, when that is too large, "
                    "reduce its dimension first"
                )
            info = members[_chosen(source, list(members))]
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                return _mapped_member(source, info)
        with np.load(source.path, allow_pickle=False) as arrays:
            array = arrays[info.filename.removesuffix(".npy")]
    except MemoryError as error:
        raise source.error("is compressed and too large for memory: save it with numpy.savez or as .h5") from error
    except NPZ_ERRORS as error:
        if "allow_pickle" in str(error):
            raise source.error(_OBJECTS) from error
        raise source.error(f"is a damaged .npz ({error}): save it again with numpy.savez") from error
    if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no .npy
        raise source.error(f"{info.filename} in it is no numpy array: save it again with numpy.savez")
    return array


def _chosen(source: Source, keys: list[str]) -> str:
    if source.key is not None:
        if source.key not in keys:
            raise source.error(f"holds no {source.key}, only {listed(keys) or 'nothing'}")
        return source.key
    if len(keys) != 1:
        raise source.error(
            f"holds {len(keys)} arrays ({listed(keys)}), name one: --{source.argument}={source.path}:{keys[0]}"
            if keys
            else "holds no array"
        )
    return keys[0]


def _mapped_member(source: Source, info: zipfile.ZipInfo) -> np.ndarray:
    with source.path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        # The local name and extra field may be longer than the directory's.
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        begin = info.header_offset + _LOCAL_HEADER_BYTES + names
        file.seek(begin)
        shape, fortran_order, dtype = _read_header(file, source)
        size = file.tell() - begin + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size != info.file_size:
            raise source.error(f"is a damaged .npz ({info.filename} has another size): save it again with numpy.savez")
        return _mapped(source, file.tell(), shape, fortran_order, dtype)


def _read_header(file: BinaryIO, source: Source) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except _BAD_HEADER as error:
        raise source.error("holds no readable .npy array: save it with numpy.save") from error
    if dtype.hasobject:
        raise source.error(_OBJECTS)
    return shape, fortran_order, dtype


def _mapped(source: Source, offset: int, shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype) -> np.ndarray:
    if 0 in shape:  # nothing to map
        return np.empty(shape, dtype)
    try:
        return np.memmap(source.path, dtype, mode="r", offset=offset, shape=shape, order="F" if fortran_order else "C")
    except ValueError as error:
        raise source.error("is cut short, it has fewer bytes than its header says: save or copy it again") from error
