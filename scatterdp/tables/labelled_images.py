"""More labelled images for a data set: one file with images and their (pseudo-)labels, read from where it lies.

| file | what is read |
|---|---|
| a pickle (``.pickle``, ``.pkl``) | the published file of 500 000 tiny images (Carmon et al. 2019): a dictionary with the two arrays below; nothing in it is run |
| ``.npz`` | the two arrays |
| ``.h5``, ``.hdf5`` | the two data sets |

``data`` are images ``(n, H, W, 3)`` or ``(n, H, W)`` uint8, ``extrapolated_targets`` (or ``targets``) their labels, ``(n,)`` whole numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from scatterdp.datasets.images import Images
from scatterdp.datasets.pickled import read_pickled_arrays
from scatterdp.errors import DatasetError
from scatterdp.tables.arrays import open_npz
from scatterdp.tables.hdf5 import open_dataset
from scatterdp.tables.source import HDF5_SUFFIXES, Source, listed

IMAGES = "data"
LABELS = ("extrapolated_targets", "targets")
_PICKLES = (".pickle", ".pkl")
_SUFFIXES = (*_PICKLES, ".npz", *HDF5_SUFFIXES)


class ImagesOfFile:
    """Images that stay in their file until rows are asked for.

    Args:
        source: the file.
        images: what it holds.
    """

    def __init__(self, source: Source, images: Any) -> None:
        self._source, self._images = source, images
        self.shape: tuple[int, ...] = tuple(images.shape)
        self.dtype: np.dtype = images.dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        try:
            return np.asarray(self._images[rows])
        except (OSError, RuntimeError) as error:  # HDF5 tells damage only when it comes to it
            raise self._source.error(f"its images cannot be read ({error}): write or copy it again") from error


def open_labelled_images(
    argument: str, text: str, *, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[Images, np.ndarray]:
    """Images and labels of a file.

    Args:
        argument: the flag without its dashes, for messages.
        text: the file as the user wrote it.
        image_shape: ``(C, H, W)`` that the images must have.
        num_classes: labels are in [0, num_classes).

    Returns:
        Images ``(n, H, W[, 3])`` uint8, which stay in the file, and labels ``(n,)`` int64.

    Raises:
        DatasetError: no such file, another kind of file, or arrays that do not fit.
    """
    source = Source.parse(argument, text, keyed=())
    if source.path.is_dir() or source.suffix not in _SUFFIXES:
        raise source.error(f"expected a file {', '.join(_SUFFIXES)} with {IMAGES} and {LABELS[0]}")
    images, labels = _arrays(source)
    channels, height, width = image_shape
    expected = (height, width) if channels == 1 else (height, width, channels)
    if images.dtype != np.uint8 or tuple(images.shape[1:]) != expected or len(images.shape) < 2:
        raise source.error(
            f"its {IMAGES} is {images.dtype} of shape {tuple(images.shape)}, expected uint8 (n, {', '.join(map(str, expected))}) like the data set's "
            "images: reshape or resize them"
        )
    if tuple(labels.shape) != (images.shape[0],) or labels.dtype.kind not in "iu":
        raise source.error(
            f"its labels are {labels.dtype} of shape {tuple(labels.shape)}, expected whole numbers ({images.shape[0]},), one an image"
        )
    values = np.asarray(labels[:])
    if len(values) == 0:
        raise source.error("holds no images")
    if values.min() < 0 or values.max() >= num_classes:
        raise source.error(
            f"labels from {values.min()} to {values.max()}, expected 0 to {num_classes - 1}: save them as the data set's class numbers"
        )
    return ImagesOfFile(source, images), values.astype(np.int64)


def _arrays(source: Source) -> tuple[Any, Any]:
    if source.suffix in _PICKLES:
        try:
            arrays = read_pickled_arrays(source.path)
        except DatasetError as error:
            raise source.error(str(error).removeprefix(f"{source.path}: ")) from error
        found = [name for name in LABELS if name in arrays]
        if IMAGES not in arrays or not found:
            raise source.error(
                f"holds the arrays {listed(map(str, arrays)) or '(none)'}, expected {IMAGES} and {LABELS[0]}"
            )
        return arrays[IMAGES], arrays[found[0]]
    opened = open_npz if source.suffix == ".npz" else open_dataset
    images = opened(dataclasses.replace(source, key=IMAGES))
    try:
        return images, opened(dataclasses.replace(source, key=LABELS[0]))
    except DatasetError as error:
        try:
            return images, opened(dataclasses.replace(source, key=LABELS[1]))
        except DatasetError:
            raise error from None  # of the name that is expected
