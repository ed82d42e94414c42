"""What a user gives to an estimator, checked as scikit-learn does it: ``ValueError`` and ``TypeError`` that name what is wrong.

An array on disk (``numpy.memmap``, an HDF5 data set) stays there: it is read in blocks, also to look for values that are not finite.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d, validate_data

from scatterdp.errors import ConfigError

if TYPE_CHECKING:
    from scatterdp.linear import Matrix
    from scatterdp.privacy.randomness import RandomKey

BLOCK = 4096


def check_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> Matrix:
    """Rows of finite numbers ``(N, D)``; sets or checks ``n_features_in_``.

    Raises:
        ValueError: another shape, no numbers, NaN or infinity.
        TypeError: a sparse matrix.
    """
    if is_sliceable(X):
        if len(X.shape) != 2 or min(X.shape) < 1:
            raise ValueError(f"X has shape {tuple(X.shape)}: expected (N, D) with at least one row and one feature")
        if X.dtype.kind not in "fiub":
            raise ValueError(f"X has type {X.dtype}: expected numbers")
        _check_size(estimator, X.shape[1], reset=reset)
        rows = X
    else:
        rows = validate_data(estimator, X, reset=reset, dtype="numeric", ensure_all_finite=False)
    check_finite(rows)
    return rows


def check_images(estimator: BaseEstimator, X: Any, *, reset: bool, shape: tuple[int, int, int] | None = None) -> Matrix:
    """Images ``(N, H, W)`` or ``(N, H, W, 3)`` of bytes; ``n_features_in_`` is the number of values in one.

    Args:
        estimator: whose input they are.
        X: the images.
        reset: fitting: remember the size.
        shape: ``(C, H, W)`` that is expected when predicting.

    Raises:
        ValueError: something else.
    """
    images = X if is_sliceable(X) else np.asarray(X)
    grey = len(images.shape) == 3
    if not (grey or (len(images.shape) == 4 and images.shape[3] == 3)) or min(images.shape) < 1:
        raise ValueError(
            f"X has shape {tuple(images.shape)}: features={estimator.get_params()['features']!r} takes images (N, H, W) or (N, H, W, 3)"
        )
    if images.dtype != np.uint8:
        raise ValueError(f"X has type {images.dtype}: expected images of bytes (uint8, 0 to 255)")
    if shape is not None and image_shape(images) != shape:
        raise ValueError(
            f"X has images of (C, H, W) = {image_shape(images)}: the classifier was fitted on images of {shape}"
        )
    _check_size(estimator, int(np.prod(images.shape[1:])), reset=reset)
    return images


def image_shape(images: Matrix) -> tuple[int, int, int]:
    """``(C, H, W)`` of images ``(N, H, W[, 3])``."""
    height, width = images.shape[1:3]
    return (images.shape[3] if len(images.shape) == 4 else 1), height, width


def check_labels(X: Matrix, y: Any) -> np.ndarray:
    """Labels ``(N,)``, one a row of X.

    Raises:
        ValueError: none, several a row, numbers that are no classes, another number of them.
    """
    if y is None:
        raise ValueError("DPClassifier requires y to be passed, but the target y is None")
    labels = column_or_1d(y, warn=True)
    check_consistent_length(X, labels)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("Input y contains NaN or infinity")
    check_classification_targets(labels)
    return labels


def class_numbers(y: np.ndarray, classes: Any) -> tuple[np.ndarray, np.ndarray]:
    """The classes, sorted, and each label's number.

    Args:
        y: ``(N,)`` labels.
        classes: all that there may be, public; None: those in ``y``, which are then treated as public.

    Raises:
        ValueError: fewer than two classes, or a label that is none of them.
    """
    if classes is None:
        known, found = np.unique(y, return_inverse=True)
        if len(known) < 2:
            raise ValueError(
                "y contains one class only: a classifier needs at least two classes; name all with classes="
            )
        return known, found
    known = np.unique(np.asarray(classes))
    if known.ndim != 1 or len(known) < 2:
        raise ValueError(f"classes={classes!r}: expected at least two classes")
    number = {label: index for index, label in enumerate(known.tolist())}
    try:
        return known, np.array([number[label] for label in y.tolist()])
    except KeyError:  # which one is not said: labels are private
        raise ValueError("y contains a label that is not among classes=; name every class") from None


def check_finite(rows: Matrix) -> None:
    """Refuse NaN and what is infinite in single precision.

    Raises:
        ValueError: some value is.
    """
    if getattr(rows, "dtype", np.dtype(float)).kind in "iub":
        return
    for block in blocks_of(rows):
        with np.errstate(over="ignore"):
            values = np.asarray(block).astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            what = "NaN" if np.isnan(values).any() else "infinity or a value too large for dtype('float32')"
            raise ValueError(f"Input X contains {what}.")


def blocks_of(rows: Matrix) -> Iterator[np.ndarray]:
    """Pieces of consecutive rows."""
    for start in range(0, rows.shape[0], BLOCK):
        yield rows[start : start + BLOCK]


def is_sliceable(X: Any) -> bool:
    """An array that is no NumPy array in memory, but gives them by slices (an HDF5 data set), or a memory map."""
    if type(X) is np.ndarray:
        return False
    if isinstance(X, np.memmap):
        return True
    looks_like_it = (
        isinstance(getattr(X, "dtype", None), np.dtype) and hasattr(X, "shape") and hasattr(X, "__getitem__")
    )
    return looks_like_it and not isinstance(X, np.ndarray) and not hasattr(X, "tocsr") and not hasattr(X, "iloc")


def random_key(random_state: Any) -> RandomKey:
    """The key of scikit-learn's ``random_state``.

    ``None``: 256 bits from the operating system. An integer: reproducible, and known to whoever knows it. A ``RandomState`` was
    seeded by someone, with 32 bits as a rule: its bytes count as known too.

    Raises:
        ConfigError: something else.
    """
    from scatterdp.privacy.randomness import RandomKey

    if random_state is None:
        return RandomKey.from_system()
    if isinstance(random_state, numbers.Integral) and not isinstance(random_state, bool | np.bool_):
        return RandomKey.from_seed(int(random_state))
    if isinstance(random_state, np.random.RandomState):
        return RandomKey(random_state.bytes(32), "seed")
    raise ConfigError(f"random_state={random_state!r}: expected None, an integer or a numpy RandomState")


def _check_size(estimator: Any, size: int, *, reset: bool) -> None:
    if reset:
        estimator.n_features_in_ = size
    elif size != estimator.n_features_in_:
        raise ValueError(
            f"X has {size} features, but {type(estimator).__name__} is expecting {estimator.n_features_in_} features as input"
        )
