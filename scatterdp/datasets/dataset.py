"""A data set: uint8 images and integer labels, train and test, with a fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scatterdp.datasets.images import Images
from scatterdp.errors import DatasetError

_DIGEST_ROWS = 1 << 14


def array_digest(array: Images) -> str:
    """SHA-256 of an array's bytes in C order (hexadecimal). Shape and dtype are not part of it."""
    digest = hashlib.sha256()
    for start in range(0, len(array), _DIGEST_ROWS):  # an array on the disk is read piece by piece
        digest.update(np.ascontiguousarray(array[start : start + _DIGEST_ROWS]).data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images of one size with integer labels.

    Args:
        name: short name, usable in a file name.
        x_train: ``(N, H, W)`` grey or ``(N, H, W, 3)`` RGB, uint8; an array, or images that are read when rows are asked for
            (:class:`scatterdp.datasets.joined.JoinedImages`).
        y_train: ``(N,)`` int64 in ``[0, num_classes)``.
        x_test: like ``x_train``, the same image shape.
        y_test: like ``y_train``.
        class_names: one name a class; the index is the label.
        public: True for the published data sets, whose digests are constants that anyone knows.

    Raises:
        DatasetError: arrays that do not fit together, labels out of range, fewer than two classes.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    public: bool = False

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise DatasetError(
                f"data set {self.name}: found {len(self.class_names)} class, a classifier needs at least two"
            )
        for split in ("train", "test"):
            x, y = self.split(split)
            if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3)):
                raise DatasetError(
                    f"data set {self.name}: x_{split} is {x.dtype} of shape {x.shape}, "
                    "expected uint8 (N, H, W) or (N, H, W, 3)"
                )
            if y.dtype != np.int64 or y.shape != (len(x),):
                raise DatasetError(
                    f"data set {self.name}: y_{split} is {y.dtype} of shape {y.shape}, "
                    f"expected int64 ({len(x)},), one label an image"
                )
            if len(x) == 0:
                raise DatasetError(f"data set {self.name}: the {split} split is empty, expected at least one image")
            if y.min() < 0 or y.max() >= self.num_classes:
                raise DatasetError(
                    f"data set {self.name}: labels of the {split} split range from {y.min()} to {y.max()}, "
                    f"expected 0 to {self.num_classes - 1} ({self.num_classes} classes)"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise DatasetError(
                f"data set {self.name}: train images are {self.x_train.shape[1:]} "
                f"but test images are {self.x_test.shape[1:]}, expected one size"
            )

    def split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of ``"train"`` or ``"test"``."""
        return (self.x_train, self.y_train) if split == "train" else (self.x_test, self.y_test)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` with C = 1 or 3."""
        height, width = self.x_train.shape[1:3]
        return (1 if self.x_train.ndim == 3 else 3, height, width)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each array's bytes."""
        return {name: array_digest(getattr(self, name)) for name in ("x_train", "y_train", "x_test", "y_test")}

    @cached_property
    def fingerprint(self) -> str:
        """One SHA-256 over the four arrays' digests, shapes and the class names.

        It is a deterministic function of the private data: whoever sees it can test a guess of the whole
        data set. It names cache files on the owner's disk and is never published (see
        :func:`scatterdp.privacy.certificate.commitment`).
        """
        text = repr((self.digests, self.x_train.shape, self.x_test.shape, self.class_names))
        return hashlib.sha256(text.encode()).hexdigest()
