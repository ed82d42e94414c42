"""A person's own arrays: an ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test``."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.folder import file_safe_name
from scatterdp.datasets.store import NPZ_ERRORS
from scatterdp.errors import DatasetError

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> Dataset:
    """Read an ``.npz``. Pickled objects in it are refused.

    Images are uint8, ``(N, H, W)``, ``(N, H, W, 1)`` or ``(N, H, W, 3)``, or floats of such a shape in [0, 1],
    which become round(255 · x). Labels ``(N,)`` are integers 0…K−1 or strings; K is the length of the optional
    array ``class_names``, else the largest training label + 1. Without ``class_names``, string labels are
    numbered in sorted order.

    Args:
        path: the file.

    Returns:
        The data set, called like the file.

    Raises:
        DatasetError: not a readable ``.npz``; missing arrays; values, shapes or labels that do not fit.
    """
    arrays = _load(path)
    images = {split: _images(path, f"x_{split}", arrays[f"x_{split}"]) for split in ("train", "test")}
    for split in ("train", "test"):
        x, y = images[split], arrays[f"y_{split}"]
        if y.shape != (len(x),):
            raise DatasetError(f"{path}: y_{split} has shape {y.shape}, expected ({len(x)},), one label an image")
        if len(x) == 0:
            raise DatasetError(f"{path}: x_{split} is empty, expected at least one image")
    labels, class_names = _labels(path, arrays)
    return Dataset(
        name=file_safe_name(path.stem),
        x_train=images["train"],
        y_train=labels["train"],
        x_test=images["test"],
        y_test=labels["test"],
        class_names=class_names,
    )


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        # numpy takes any file that is no zip for a pickle and would complain about that.
        if not zipfile.is_zipfile(path):
            raise DatasetError(f"{path}: not a readable .npz (no zip archive or cut short), save it with numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _KEYS if key not in archive]
            if missing:
                raise DatasetError(
                    f"{path}: the .npz lacks {', '.join(missing)}, it holds {', '.join(archive.files) or 'nothing'}"
                )
            arrays = {key: archive[key] for key in (*_KEYS, "class_names") if key in archive}
    except (*NPZ_ERRORS, MemoryError) as error:
        if isinstance(error, DatasetError):
            raise
        if "allow_pickle" in str(error):
            raise DatasetError(
                f"{path}: it holds pickled objects, which are not read: store arrays of numbers and strings"
            ) from error
        raise DatasetError(f"{path}: not a readable .npz, save it again with numpy.savez ({error})") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy gives the bytes of a member that is no .npy
            raise DatasetError(f"{path}: {key} is not a numpy array, save it again with numpy.savez")
    return arrays


def _images(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape[1:]:
        raise DatasetError(f"{path}: {name} has shape {images.shape}, expected (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if images.dtype.kind != "f":
        raise DatasetError(f"{path}: {name} is {images.dtype}, expected uint8, or floats in [0, 1]")
    outside = int(np.count_nonzero(~((images >= 0) & (images <= 1))))  # NaN compares false
    if outside:
        raise DatasetError(f"{path}: {name} has {outside} values that are not in [0, 1] (NaN included), rescale them")
    return np.rint(images.astype(np.float64) * 255).astype(np.uint8)


def _labels(path: Path, arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    y_train, y_test = arrays["y_train"], arrays["y_test"]
    class_names = _class_names(path, arrays["class_names"]) if "class_names" in arrays else None
    kinds = {array.dtype.kind for array in (y_train, y_test)}
    if not (kinds <= set("iu") or kinds <= set("US")):
        raise DatasetError(
            f"{path}: y_train is {y_train.dtype} and y_test is {y_test.dtype}, expected both integers or both strings"
        )
    if len(np.unique(y_train)) < 2:
        raise DatasetError(f"{path}: y_train holds one class only, a classifier needs at least two")
    if kinds <= set("US"):
        train, test = (_as_text(path, name, arrays[name]) for name in ("y_train", "y_test"))
        names = class_names if class_names is not None else tuple(sorted(set(train)))
        numbers = {name: number for number, name in enumerate(names)}
        for array_name, values in (("y_train", train), ("y_test", test)):
            unknown = sorted(set(values) - set(numbers))
            if unknown:
                known = "class_names" if class_names is not None else "y_train"
                raise DatasetError(f"{path}: {array_name} has the label {unknown[0]!r}, which {known} lacks")
        return {
            "train": np.array([numbers[value] for value in train], dtype=np.int64),
            "test": np.array([numbers[value] for value in test], dtype=np.int64),
        }, names
    num_classes = len(class_names) if class_names is not None else int(y_train.max()) + 1
    for array_name, values in (("y_train", y_train), ("y_test", y_test)):
        if values.min() < 0 or values.max() >= num_classes:
            raise DatasetError(
                f"{path}: labels out of range: {array_name} has labels from {values.min()} to {values.max()}, "
                f"expected 0 to {num_classes - 1}"
            )
    if class_names is None and num_classes > len(y_train):
        raise DatasetError(
            f"{path}: y_train has the label {num_classes - 1} but only {len(y_train)} images, "
            "expected classes numbered 0, 1, 2, …"
        )
    names = class_names if class_names is not None else tuple(str(number) for number in range(num_classes))
    return {"train": y_train.astype(np.int64), "test": y_test.astype(np.int64)}, names


def _class_names(path: Path, class_names: np.ndarray) -> tuple[str, ...]:
    if class_names.ndim != 1 or class_names.dtype.kind not in "US":
        raise DatasetError(
            f"{path}: class_names is {class_names.dtype} of shape {class_names.shape}, expected a list of strings"
        )
    names = tuple(_as_text(path, "class_names", class_names))
    if len(set(names)) != len(names):
        raise DatasetError(f"{path}: class_names holds a name twice, expected one name a class")
    return names


def _as_text(path: Path, name: str, array: np.ndarray) -> list[str]:
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in array.tolist()]
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: {name} holds bytes that are not UTF-8 text, store strings") from error
