"""Arrays out of a pickle without running it.

A pickle is a program: reading one freely runs whatever its author wrote. This reader knows plain containers, numbers and text, and from NumPy
the three names by which arrays are written. Those names stand for objects of this module, so that nothing of NumPy is called
with what the file says, and every other name is refused before anything is called. Arrays are not read but mapped: their bytes stay in the file.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from scatterdp.errors import DatasetError

_MAPPED_BYTES = 1 << 20  # longer runs of bytes are mapped; frames, which must be read, are shorter
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
            struct.error, MemoryError, RecursionError, OSError)  # fmt: skip


def read_pickled_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dictionary by name; entries that are no arrays are left out.

    Args:
        path: a pickle of any protocol of a dictionary whose keys are text.

    Returns:
        Arrays of numbers, mapped read-only where they are long.

    Raises:
        DatasetError: it holds anything but containers, numbers, text and arrays of numbers; it is damaged; it is no dictionary.
    """
    try:
        with path.open("rb") as file:
            value = _ArrayUnpickler(_MappedFile(file, path)).load()
        if not isinstance(value, dict):
            raise DatasetError(
                f"{path}: the pickle is a {type(value).__name__}, expected a dictionary of arrays; save it as .npz"
            )
        named = {name.decode("latin1") if isinstance(name, bytes) else name: item for name, item in value.items()}
        return {name: item.array(path) for name, item in named.items() if isinstance(item, _Array)}
    except _DAMAGED as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise DatasetError(f"{path}: not a pickle of arrays that can be read ({reason}); save it as .npz") from error


@dataclass(frozen=True)
class _Span:
    """Bytes of the file that were passed over."""

    start: int
    size: int


class _MappedFile:
    """What the unpickler reads from: a long run of bytes comes as its place."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self.path = file, path
        self._size = os.fstat(file.fileno()).st_size
        self.readline = file.readline

    def read(self, size: int) -> Any:
        start = self._file.tell()
        if size > self._size - start:  # before memory is asked for
            raise EOFError("it is cut short")
        if size < _MAPPED_BYTES:
            return self._file.read(size)
        self._file.seek(size, os.SEEK_CUR)
        return _Span(start, size)


class _Name:
    """Stands for one of NumPy's functions; takes no state, so a pickle cannot change it."""

    __slots__ = ("_make",)

    def __init__(self, make: Any) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise ValueError("it changes what it may only call")

    def __setstate__(self, state: Any) -> NoReturn:
        raise ValueError("it changes what it may only call")


class _Dtype:
    """A type of numbers that is being unpickled."""

    __slots__ = ("value",)

    def __init__(self, text: Any, *_: Any) -> None:
        dtype = np.dtype(text.decode("ascii") if isinstance(text, bytes) else str(text))
        if dtype.kind not in "biuf":
            raise ValueError(f"it holds an array of {dtype}, expected numbers")
        self.value = dtype

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array that is being unpickled: its shape, type and where its bytes are."""

    __slots__ = ("content", "dtype", "order", "shape")

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.fill(content, dtype, shape, "F" if is_fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> None:
        self.shape, self.dtype, self.order = tuple(int(size) for size in shape), dtype.value, order
        self.content = content
        size = content.size if isinstance(content, _Span) else len(content)
        if size != math.prod(self.shape) * self.dtype.itemsize or min(self.shape, default=1) < 0:
            raise ValueError("an array's bytes do not fit its shape")

    def array(self, path: Path) -> np.ndarray:
        order: Any = self.order
        if isinstance(self.content, _Span):
            return np.memmap(path, self.dtype, "r", self.content.start, self.shape, order)
        return np.frombuffer(bytes(self.content), self.dtype).reshape(self.shape, order=order)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: str, *_: Any) -> _Array:
    array = _Array()
    array.fill(content, dtype, shape, order)
    return array


_NAMES = {
    "_reconstruct": _Name(lambda *_: _Array()),
    "_frombuffer": _Name(_from_buffer),
    "dtype": _Name(_Dtype),
    "ndarray": _Name(lambda *_: _Array()),
}


class _ArrayUnpickler(pickle._Unpickler):  # the one in Python: the one in C must be given every byte
    """Knows :data:`_NAMES` and nothing else."""

    def __init__(self, file: _MappedFile) -> None:
        super().__init__(file, encoding="bytes")  # type: ignore[arg-type]
        self._path = file.path

    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _NAMES:
            return _NAMES[name]
        raise DatasetError(
            f"{self._path}: the pickle names {module}.{name}, which could run code; only arrays and plain containers are read: "
            "save it as .npz"
        )
