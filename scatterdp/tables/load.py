"""One function for every kind of table, and one for the two tables of a fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scatterdp.datasets.folder import file_safe_name
from scatterdp.errors import ConfigError, DatasetError
from scatterdp.tables.arrays import open_npy, open_npz
from scatterdp.tables.delimited import column_names, read_columns
from scatterdp.tables.hdf5 import is_cache, open_cache, open_dataset
from scatterdp.tables.images import has_splits, read_image_splits, read_image_table
from scatterdp.tables.labels import label_source, labels_from_text, read_labels
from scatterdp.tables.source import HDF5_SUFFIXES, Source, listed
from scatterdp.tables.table import FeatureTable, Rows, check_finite, check_numbers

TABLE_SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES, ".csv")


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What is fitted and, where there is one, what it is tested on; both with labels."""

    train: FeatureTable
    test: FeatureTable | None


def read_table(
    features: str,
    labels: str | None = None,
    *,
    argument: str = "features",
    labels_argument: str = "labels",
    like: tuple[int, ...] | None = None,
) -> FeatureTable:
    """One table.

    Args:
        features: ``FILE.npy``, ``FILE.npz[:KEY]``, ``FILE.h5[:KEY]``, ``FILE.csv``, a feature cache with its split
            (``FILE.h5:train``, ``FILE.h5:test``), or a folder of images.
        labels: ``FILE.npy``, ``FILE.npz[:KEY]``, ``FILE.h5[:KEY]``, one label a line in ``FILE.csv`` or ``FILE.txt``, ``FILE.csv:COLUMN``; for
            features in a ``.csv`` also the name of one of its columns. Caches and class folders bring their own.
        argument, labels_argument: what messages call the two.
        like: the shape of one row that is expected, ``(D,)``, ``(H, W)`` or ``(H, W, 3)``. None: any.

    Returns:
        The table; every value is finite.

    Raises:
        DatasetError: missing, of an unknown kind, damaged, of another shape, values that cannot be used, labels that do not fit.
        CacheError: a damaged feature cache.
    """
    source = Source.parse(argument, features)
    if source.path.is_dir():
        _refuse_labels(source, labels, labels_argument, "the folders' names are the labels")
        if has_splits(source.path):
            raise source.error(f"it holds train/, name the split: --{argument}={source.path / 'test'}")
        if like is not None and len(like) == 1:
            raise source.error(f"is a folder of images, expected a table of rows of {like[0]} numbers")
        return read_image_table(source, like=like)
    _check_suffix(source)
    if source.suffix in HDF5_SUFFIXES and source.key in (None, "train", "test") and is_cache(source):
        _refuse_labels(source, labels, labels_argument, "a feature cache holds its labels")
        if source.key is None:
            raise source.error(
                f"is a feature cache with two splits, name one: --{argument}={source.path}:train or …:test"
            )
        table = open_cache(source, "train" if source.key == "train" else "test")
        _check_like(table.x, like, source)
        return table
    x, found = _features(source, labels, labels_argument)
    check_numbers(x, source)
    _check_like(x, like, source)
    if found is None and labels is not None:
        found = read_labels(_label_source(source, labels_argument, labels))
    elif found is not None and labels is not None:
        labels = f"column {labels} of {source.path}"
    if found is not None and len(found) != len(x):
        lines = str(labels).lower().endswith((".csv", ".txt"))
        header = (
            "; is its first line a header? (name the column: FILE.csv:COLUMN)"
            if lines and len(found) == len(x) + 1
            else ""
        )
        raise DatasetError(
            f"{argument}={features} has {len(x)} rows but {labels_argument}={labels} has {len(found)} labels: "
            f"expected one label a row{header}"
        )
    check_finite(x, source)
    return FeatureTable(x=x, labels=found, name=file_safe_name(source.path.stem))


def read_tables(
    features: str, labels: str | None = None, test_features: str | None = None, test_labels: str | None = None
) -> Tables:
    """What a fit needs: training features with labels, and test features with labels where there are some.

    A feature cache, or a folder with ``train/`` and ``test/``, brings its own test split.

    Args:
        features, labels: as for :func:`read_table`.
        test_features, test_labels: the same for what is not private.

    Raises:
        ConfigError: test labels without test features, or test features beside a test split.
        DatasetError: as :func:`read_table`; no labels, a single class, a test label that no training row has.
    """
    if test_labels is not None and test_features is None:
        raise ConfigError(f"test_labels={test_labels}: there are no test features, give --test_features too")
    train, test = _splits(features, labels)
    if train.labels is None:
        raise DatasetError(
            f"features={features}: "
            + ("the images are in no class folders" if train.is_images else "labels are missing")
            + (", expected FOLDER/<class>/*.png" if train.is_images else ", give --labels=FILE")
        )
    if test is not None and test_features is not None:
        raise ConfigError(f"test_features={test_features}: {features} brings a test split; leave test_features out")
    if test_features is not None:
        test = read_table(
            _test_split(test_features),
            test_labels,
            argument="test_features",
            labels_argument="test_labels",
            like=tuple(train.x.shape[1:]),
        )
        if test.labels is None:
            raise DatasetError(f"test_features={test_features}: labels are missing, give --test_labels=FILE")
    check_classes(train, test, features)
    return Tables(train=train, test=test)


def check_classes(train: FeatureTable, test: FeatureTable | None, features: str) -> None:
    """Raise DatasetError on a single class, on test labels that no training row has, on numbers here and text there."""
    assert train.labels is not None
    classes = np.unique(train.labels)
    if len(classes) < 2:
        raise DatasetError(f"features={features}: all labels are {classes[0]}, a classifier needs at least two classes")
    if test is None:
        return
    assert test.labels is not None
    if test.labels.dtype.kind != classes.dtype.kind:
        kinds = ["numbers" if labels.dtype.kind == "i" else "text" for labels in (classes, test.labels)]
        raise DatasetError(
            f"features={features}: the training labels are {kinds[0]} but the test labels {kinds[1]}, expected the same kind"
        )
    strangers = np.setdiff1d(test.labels, classes)
    if len(strangers):
        raise DatasetError(
            f"features={features}: the test labels name the class {strangers[0]}, which no training row has: "
            "add examples of it, or leave it out of the test"
        )


def _splits(features: str, labels: str | None) -> tuple[FeatureTable, FeatureTable | None]:
    """The table of ``--features`` and the test split that it may bring."""
    source = Source.parse("features", features)
    if source.path.is_dir() and has_splits(source.path):
        _refuse_labels(source, labels, "labels", "the folders' names are the labels")
        return read_image_splits(source)
    if source.suffix in HDF5_SUFFIXES and source.key is None and is_cache(source):
        _refuse_labels(source, labels, "labels", "a feature cache holds its labels")
        return open_cache(source, "train"), open_cache(source, "test")
    return read_table(features, labels), None


def _test_split(features: str) -> str:
    """A feature cache that is given for the test stands for its test split."""
    source = Source.parse("test_features", features)
    in_cache = source.suffix in HDF5_SUFFIXES and source.path.is_file() and source.key is None and is_cache(source)
    return f"{features}:test" if in_cache else features


def _features(source: Source, labels: str | None, labels_argument: str) -> tuple[Rows, np.ndarray | None]:
    """The features and, from a ``.csv`` that has them in a column, the labels."""
    if source.suffix == ".npy":
        return open_npy(source), None
    if source.suffix == ".npz":
        return open_npz(source), None
    if source.suffix in HDF5_SUFFIXES:
        return open_dataset(source), None
    column = labels if labels is not None and labels in column_names(source) else None
    if labels is not None and column is None:
        _label_source(source, labels_argument, labels)  # a misspelled column is said before its cells are no numbers
    columns = read_columns(source, labels=column)
    if columns.labels is None:
        return columns.x, None
    return columns.x, labels_from_text(columns.labels, source)


def _label_source(features: Source, argument: str, labels: str) -> Source:
    try:
        return label_source(argument, labels)
    except DatasetError:
        if features.suffix != ".csv" or "/" in labels or ":" in labels:
            raise
        raise DatasetError(
            f"{argument}={labels}: is neither a file nor a column of {features.path} ({listed(column_names(features))})"
        ) from None


def _refuse_labels(source: Source, labels: str | None, argument: str, why: str) -> None:
    if labels is not None:
        raise source.error(f"{why}; leave {argument}={labels} out")


def _check_suffix(source: Source) -> None:
    if source.suffix not in TABLE_SUFFIXES:
        raise source.error(
            f"has the suffix {source.suffix or '(none)'}, expected {', '.join(TABLE_SUFFIXES)} or a folder of images"
        )


def _check_like(x: Rows, like: tuple[int, ...] | None, source: Source) -> None:
    if like is None:
        return
    expected, *image = like
    if image:
        raise source.error(f"is a table, expected a folder of images of {image[0]}×{expected} pixels")
    if x.shape[1] != expected:
        raise source.error(f"its rows have {x.shape[1]} features, expected {expected}")
