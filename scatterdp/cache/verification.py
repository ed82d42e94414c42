"""A published cache against its own digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from scatterdp.cache.digests import squared_norms_of
from scatterdp.cache.files import SPLITS, Split, combined_digest, remedy
from scatterdp.cache.reading import FeatureCache
from scatterdp.errors import CacheError


def verify(path: Path) -> None:
    """Read a published cache whole and compare it with its own digests.

    Checks structure, attributes, file name, every chunk's digest, that features are finite, the squared norms,
    the labels' digest and their range.

    Raises:
        CacheError: names the split and the rows that are wrong.
    """
    path = Path(path)
    with FeatureCache(path) as cache:
        digest = combined_digest(cache.dataset_fingerprint, cache.extractor_fingerprint, cache.dtype)
        ending = f"-{cache.dtype}-{digest}.h5"
        if not path.name.endswith(ending):
            raise CacheError(f"{path}: its name does not belong to its content; rename it to one that ends in {ending}")
        for split in SPLITS:
            _verify_split(cache, split)


def _verify_split(cache: FeatureCache, split: Split) -> None:
    group = cache.group(split)
    labels, norms = cache.labels(split), cache.squared_norms(split)
    try:
        labels_digest = bytes(group.attrs["labels_sha256"]).decode()
    except (KeyError, ValueError, TypeError, OSError, RuntimeError) as error:
        raise CacheError(
            f"{cache.path}: the digest of the {split} split's labels is damaged; {remedy(cache.path)}"
        ) from error
    if hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest() != labels_digest:
        raise CacheError(f"{cache.path}: the {split} split's labels do not match their digest; {remedy(cache.path)}")
    if labels.min() < 0 or labels.max() >= len(cache.class_names):
        raise CacheError(
            f"{cache.path}: labels of the {split} split range from {labels.min()} to {labels.max()}, expected 0 to "
            f"{len(cache.class_names) - 1}; {remedy(cache.path)}"
        )
    for start, rows in cache.iter_rows(split, cache.rows_per_chunk(split)):
        where = f"{cache.path}: {split} rows {start} to {start + len(rows) - 1}"
        if not np.isfinite(rows).all():
            raise CacheError(f"{where} hold NaN or infinity; {remedy(cache.path)}")
        # Another processor may add in another order, so not to the last bit.
        if not np.allclose(norms[start : start + len(rows)], squared_norms_of(rows), rtol=1e-9, atol=0):
            raise CacheError(f"{where} do not match their squared norms; {remedy(cache.path)}")
