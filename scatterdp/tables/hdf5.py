"""``.h5``: a plain data set, or a feature cache with its two splits."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from scatterdp.cache import FeatureCache, Split
from scatterdp.tables.source import Source, listed
from scatterdp.tables.table import BLOCK_BYTES, FeatureTable, check_finite_block


class CachedRows:
    """The features of a cache's split as ``(N, D)``, D = K·h·w; read in slices like an HDF5 data set."""

    def __init__(self, cache: FeatureCache, split: Split) -> None:
        self._cache = cache  # keeps the file open
        self._features = cache.group(split)["features"]
        self.shape = (self._features.shape[0], int(np.prod(self._features.shape[1:])))
        self.dtype: np.dtype = self._features.dtype
        self.ndim = 2
        self.chunks = (self._features.chunks[0], self.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        values = self._features[rows]
        return values.reshape(-1, self.shape[1]) if values.ndim == self._features.ndim else values.reshape(-1)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype, copy=False) if dtype is not None else self[:]


def is_cache(source: Source) -> bool:
    """Whether the file is a feature cache."""
    with _opened(source) as file:
        try:
            return "schema_version" in file.attrs and "extractor_fingerprint" in file.attrs
        except (OSError, RuntimeError, KeyError) as error:
            raise source.error(f"is a damaged HDF5 file ({error}): write or copy it again") from error


def open_cache(source: Source, split: Split) -> FeatureTable:
    """One split of a feature cache, every chunk compared with its digest once; labels are class names.

    Raises:
        CacheError: it is damaged.
        DatasetError: the split has no rows, or values that are not finite.
    """
    cache = FeatureCache(source.path)
    labels = np.array(cache.class_names)[cache.labels(split)]
    if len(labels) == 0:
        raise source.error(f"the {split} split is empty, expected at least one row")
    rows = CachedRows(cache, split)
    at_once = max(1, BLOCK_BYTES // (rows.shape[1] * rows.dtype.itemsize))
    for start, block in cache.iter_rows(split, at_once):
        check_finite_block(block, start, source)
    return FeatureTable(x=rows, labels=labels, name=cache.dataset_name)


def open_dataset(source: Source) -> h5py.Dataset:
    """The data set of the key, or the only one.

    Raises:
        DatasetError: no HDF5 file, no such key, several data sets and no key.
    """
    file = _opened(source)
    try:
        found = file.get(source.key) if source.key is not None else None
        names: list[str] = []
        if not isinstance(found, h5py.Dataset):
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            found = file[names[0]] if source.key is None and len(names) == 1 else None
        if not isinstance(found, h5py.Dataset):
            if source.key is not None:
                raise source.error(f"holds no data set {source.key}, only {listed(names) or 'nothing'}")
            if not names:
                raise source.error("holds no data set")
            raise source.error(
                f"holds {len(names)} data sets ({listed(names)}), name one: --{source.argument}={source.path}:{names[0]}"
            )
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise source.error(f"is a damaged HDF5 file ({error}): write or copy it again") from error
    if found.shape is None:
        raise source.error("the data set is empty, expected at least one row")
    return found


def labels_of(dataset: h5py.Dataset, source: Source) -> np.ndarray:
    """A data set of labels in memory; variable-length strings become text.

    Raises:
        DatasetError: text that is not UTF-8, or a data set that cannot be read.
    """
    try:
        if h5py.check_string_dtype(dataset.dtype) is not None:
            return np.asarray(dataset.asstr()[...]).astype(str)
        return dataset[...]
    except UnicodeDecodeError as error:
        raise source.error("its text is not UTF-8: store strings as UTF-8") from error
    except (OSError, RuntimeError) as error:
        raise source.error(f"is a damaged HDF5 file ({error}): write or copy it again") from error


def _opened(source: Source) -> h5py.File:
    try:
        return h5py.File(source.path, "r", locking=False)  # only read here, and some file systems have no locks
    except (OSError, RuntimeError) as error:
        if isinstance(error, PermissionError):
            raise source.error("no permission to read it; ask its owner") from error
        raise source.error("is no readable HDF5 file, or cut short: write or copy it again") from error
