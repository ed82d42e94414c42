"""What a folder has of caches, complete or not, without reading features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py

from scatterdp.cache.files import FILE_NAME, partial_path
from scatterdp.cache.journal import count, journaled
from scatterdp.cache.lock import lock_owner
from scatterdp.cache.reading import FeatureCache
from scatterdp.cache.schema import open_hdf5, read_attributes
from scatterdp.errors import CacheError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a folder has of one cache, published or not.

    Attributes:
        path: where the published file is or will be.
        published: whether it is there.
        damage: why the file cannot be read, or None.
        size: bytes of the file.
        attributes: the file's root attributes; empty where it cannot be read.
        rows: examples of the train and the test split.
        rows_done: examples of both splits that are complete.
        writer: who is writing it right now (``"process 123"``), or None.
    """

    path: Path
    published: bool
    damage: str | None
    size: int
    attributes: dict[str, Any]
    rows: tuple[int, int]
    rows_done: int
    writer: str | None


def list_caches(features_dir: Path) -> list[Path]:
    """Paths of the caches in a folder, published or unfinished (then the path they will have), by name."""
    names = {path.name for path in features_dir.glob("*.h5")}
    for suffix in (".partial", ".creating"):
        names |= {path.name.removesuffix(suffix) for path in features_dir.glob(f"*.h5{suffix}")}
    return [features_dir / name for name in sorted(names)]


def summarize(path: Path) -> Summary:
    """What is known of the cache at ``path`` without reading its features."""
    published = path.exists()
    file = path if published else partial_path(path)
    writer = lock_owner(path)
    damage, attributes, rows, done = None, {}, (0, 0), 0
    try:
        if published:
            with FeatureCache(path) as cache:
                attributes, rows = cache.attributes, (cache.num_rows("train"), cache.num_rows("test"))
            done = sum(rows)
        else:
            with open_hdf5(file) as opened:
                attributes = read_attributes(opened, file)
                rows = (len(opened["train/labels"]), len(opened["test/labels"]))  # pyright: ignore[reportArgumentType]
            done = sum(map(count, journaled(path).values()))
    except CacheError as error:
        damage = str(error).removeprefix(f"{file}: ").partition(";")[0]
    except (KeyError, TypeError, OSError, RuntimeError) as error:
        damage = f"its structure is damaged ({error})"
    size = file.stat().st_size if file.exists() else 0
    return Summary(
        path=path,
        published=published,
        damage=damage,
        size=size,
        attributes=attributes,
        rows=rows,
        rows_done=done,
        writer=writer,
    )


def is_feature_cache(file: Path) -> bool:
    """Whether a file, published or partial, is one of ours.

    An HDF5 file is one by its attributes; a file that HDF5 cannot open (truncated, say) is one by its name.
    """
    try:
        with h5py.File(file, "r", locking=False) as opened:
            return "schema_version" in opened.attrs and "extractor_fingerprint" in opened.attrs
    except (OSError, RuntimeError, KeyError, ValueError):
        return FILE_NAME.fullmatch(file.name.removesuffix(".partial")) is not None
