"""Labels as the user has them: whole numbers or strings, which become the classes."""

from __future__ import annotations

import re

import numpy as np

from scatterdp.tables.arrays import open_npy, open_npz
from scatterdp.tables.delimited import read_label_lines
from scatterdp.tables.hdf5 import labels_of, open_dataset
from scatterdp.tables.source import HDF5_SUFFIXES, KEYED_SUFFIXES, Source

LABEL_SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES, ".csv", ".txt")

_LEADING_ZERO = re.compile(r"[+-]?0[0-9]")
_MOST_EXACT = 2**53  # whole floating-point numbers beyond it stand for several


def read_labels(source: Source) -> np.ndarray:
    """Labels from a file of their own: ``(N,)`` int64 or strings.

    Raises:
        DatasetError: see the message.
    """
    if source.path.is_dir() or source.suffix not in LABEL_SUFFIXES:
        what = "is a folder" if source.path.is_dir() else f"has the suffix {source.suffix or '(none)'}"
        raise source.error(f"{what}, expected {', '.join(LABEL_SUFFIXES)}, FILE.npz:KEY or FILE.h5:KEY")
    if source.suffix in (".csv", ".txt"):
        return labels_from_text(read_label_lines(source), source)
    if source.suffix == ".npy":
        return labels_from_array(np.asarray(open_npy(source)), source)
    if source.suffix == ".npz":
        return labels_from_array(np.asarray(open_npz(source)), source)
    return labels_from_array(labels_of(open_dataset(source), source), source)


def label_source(argument: str, text: str) -> Source:
    """Where labels in a file of their own are.

    Raises:
        DatasetError: no such file.
    """
    return Source.parse(argument, text, keyed=(*KEYED_SUFFIXES, ".csv"))


def labels_from_array(array: np.ndarray, source: Source) -> np.ndarray:
    """``(N,)`` whole numbers as int64 (True is 1), text as strings.

    Raises:
        DatasetError: another shape or type, numbers that are not whole or not finite, empty text.
    """
    if array.ndim != 1:
        raise source.error(f"the labels have shape {array.shape}, expected (N,): one label an example")
    if len(array) == 0:
        raise source.error("there are no labels in it, expected one an example")
    kind = array.dtype.kind
    if kind == "O":
        raise source.error("the labels are Python objects, which are not read: save numbers or strings (.astype(str))")
    if kind in "SU":
        return _checked_text(_as_text(array, source), source)
    if kind in "iub":
        if kind == "u" and array.max() > np.iinfo(np.int64).max:
            raise source.error(f"the label {array.max()} is beyond 64 bit with a sign: number the classes from 0")
        return array.astype(np.int64)
    if kind != "f":
        raise source.error(f"the labels are {array.dtype}, expected whole numbers or strings")
    array = array.astype(np.float64)
    for wrong, what in (
        (~np.isfinite(array), "is not finite"),
        (array != np.rint(array), "is not whole"),
        (np.abs(array) > _MOST_EXACT, "is too large to be exact"),
    ):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise source.error(
                f"the label of row {row} (counted from 0), {array[row]:g}, {what}: expected whole numbers or strings"
            )
    return array.astype(np.int64)


def labels_from_text(cells: list[str], source: Source) -> np.ndarray:
    """Numbers when all cells are (``3``, ``3.0``; not ``007``, whose zeros would be lost), else strings.

    Raises:
        DatasetError: as :func:`labels_from_array`.
    """
    if not any(map(_LEADING_ZERO.match, cells)):
        try:
            return np.array(cells, dtype=np.int64) if cells else labels_from_array(np.empty(0), source)
        except (ValueError, OverflowError):
            pass
        try:
            numbers = np.array(cells, dtype=np.float64)
        except ValueError:
            pass
        else:
            return labels_from_array(numbers, source)
    return _checked_text(np.array(cells), source)


def _as_text(array: np.ndarray, source: Source) -> np.ndarray:
    if array.dtype.kind == "U":
        return np.asarray(array)
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise source.error("the labels are bytes that are not UTF-8 text: save strings") from error


def _checked_text(labels: np.ndarray, source: Source) -> np.ndarray:
    if (labels == "").any():
        raise source.error(
            f"the label of row {int(np.argmax(labels == ''))} (counted from 0) is empty: expected a label in each row"
        )
    return labels
