"""Features computed once and kept: one HDF5 file per data set, extractor and number type.

The file's structure – groups, attributes, every chunk's place – is made at once and never changes afterwards; rows are
then written at their fixed places. So a process may die at any moment and leave a file in which only the contents
of some rows are missing. The steps, in the order that makes this safe:

    NAME.h5.creating   the structure, allocated to its final size        → renamed when complete
    NAME.h5.partial    rows are written here, chunk by chunk             → renamed when complete
    NAME.h5.progress   how many rows of each split are complete; replaced atomically, after the rows themselves
    NAME.h5            the published cache; nothing but a finished file ever has this name
    NAME.h5.lock       held by the writer while it lives (NAME.h5.pid says who it is)

A published file's content depends on the data set, the extractor and the versions only: no time stamps, no
order of events. ``features/README.md`` describes the schema.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Self

import filelock
import h5py
import numpy as np
from tqdm import tqdm

from scatterdp.datasets.images import to_channels_first_float
from scatterdp.errors import CacheError, CacheLockedError, ConfigError

if TYPE_CHECKING:
    from scatterdp.datasets.dataset import Dataset
    from scatterdp.extractors.base import Extractor

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
FILE_NAME = re.compile(r"[A-Za-z0-9._+-]+-(float32|float16)-[0-9a-f]{16}\.h5")

_CHUNK_BYTES = 2 << 20  # a chunk holds about this much: large enough to read fast, small enough to redo
_JOURNAL_SECONDS = 0.5  # what a kill may cost; syncing the disk after every chunk would slow fast extractors
_LOCK_GRACE_SECONDS = 0.25  # `cache ls` takes a lock for an instant to see whether it is held
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_ATTRIBUTE_BYTES = 60_000  # HDF5's limit is 64 KiB


# ---------------------------------------------------------------- names


def combined_digest(dataset_fingerprint: str, extractor_fingerprint: str, dtype: str) -> str:
    """The 16 hexadecimal digits in a cache's file name."""
    text = json.dumps([dataset_fingerprint, extractor_fingerprint, dtype])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_path(dataset: Dataset, extractor: Extractor, *, features_dir: Path, dtype: str = "float32") -> Path:
    """Where the features of a data set belong: ``features_dir/DATASET-EXTRACTOR-DTYPE-DIGEST.h5``.

    Raises:
        ConfigError: an unknown dtype.
    """
    _check_dtype(dtype)
    digest = combined_digest(dataset.fingerprint, extractor.fingerprint, dtype)
    readable = re.sub(r"[^A-Za-z0-9._+-]", "_", f"{dataset.name}-{extractor.name}")
    return Path(features_dir) / f"{readable}-{dtype}-{digest}.h5"


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def partial_path(path: Path) -> Path:
    """Where the rows of an unfinished cache are, for the cache's final path."""
    return _beside(path, ".partial")


def companion_paths(path: Path) -> tuple[Path, ...]:
    """Every file that writing the cache at ``path`` may leave beside it, the lock file last."""
    suffixes = (".creating", ".partial", ".progress", ".progress.new", ".pid", ".lock")
    return tuple(_beside(path, suffix) for suffix in suffixes)


def _remedy(path: Path) -> str:
    arguments = shlex.join([f"--features_dir={path.parent}", path.name])
    return f"remove it with `python -m scatterdp cache rm {arguments}` and extract again"


# ---------------------------------------------------------------- reading


class FeatureCache:
    """A published feature cache, opened for reading; a context manager.

    Args:
        path: the HDF5 file.
        dataset_fingerprint: when given, the file must hold this data set's features.
        extractor_fingerprint: when given, they must be this extractor's.

    Raises:
        CacheError: the file is missing, damaged, incomplete, no feature cache, or of other fingerprints.
    """

    def __init__(
        self, path: Path, *, dataset_fingerprint: str | None = None, extractor_fingerprint: str | None = None
    ) -> None:
        self.path = Path(path)
        self._file = _open_hdf5(self.path)
        try:
            self._attributes = _read_attributes(self._file, self.path)
            self._check_structure()
            for what, expected, found in (
                ("data set", dataset_fingerprint, self.dataset_fingerprint),
                ("extractor configuration", extractor_fingerprint, self.extractor_fingerprint),
            ):
                if expected is not None and expected != found:
                    raise CacheError(
                        f"{self.path}: holds the features of another {what} (fingerprint {found[:16]}…, expected "
                        f"{expected[:16]}…), was it renamed? {_remedy(self.path).capitalize()}"
                    )
        except BaseException:
            self._file.close()
            raise

    def _check_structure(self) -> None:
        try:
            for split in SPLITS:
                group: Any = self._file[split]
                features, rows = group["features"], len(group["labels"])
                fits = (
                    features.shape == (rows, *self.output_shape)
                    and features.dtype == DTYPES[self.dtype]
                    and features.chunks is not None
                    and group["squared_norms"].shape == (rows,)
                    and group["chunk_sha256"].shape == (math.ceil(rows / features.chunks[0]), 32)
                )
                if not fits:
                    raise CacheError(
                        f"{self.path}: the {split} split's arrays do not fit together; {_remedy(self.path)}"
                    )
                if not group["chunk_sha256"][:].any(axis=1).all():
                    raise CacheError(f"{self.path}: the {split} split is not complete; {_remedy(self.path)}")
        except CacheError:
            raise
        except (KeyError, TypeError, ValueError, OSError, RuntimeError, AttributeError) as error:
            raise CacheError(f"{self.path}: its structure is damaged ({error}); {_remedy(self.path)}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dataset_name(self) -> str:
        return self._attributes["dataset_name"]

    @property
    def dataset_fingerprint(self) -> str:
        return self._attributes["dataset_fingerprint"]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._attributes["class_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the images behind the features."""
        return tuple(self._attributes["image_shape"])

    @property
    def extractor_name(self) -> str:
        return self._attributes["extractor_name"]

    @property
    def extractor_fingerprint(self) -> str:
        return self._attributes["extractor_fingerprint"]

    @property
    def extractor_config(self) -> dict[str, Any]:
        return dict(self._attributes["extractor_config"])

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """``(K, h, w)`` of one example's features."""
        return tuple(self._attributes["output_shape"])

    @property
    def dtype(self) -> str:
        """``"float32"`` or ``"float16"``, as stored."""
        return self._attributes["dtype"]

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that wrote the file."""
        return dict(self._attributes["versions"])

    def _group(self, split: Split) -> Any:
        if split not in SPLITS:
            raise ConfigError(f"split={split!r}: expected 'train' or 'test'")
        return self._file[split]

    def num_rows(self, split: Split) -> int:
        """N, the number of examples of a split."""
        return self._group(split)["features"].shape[0]

    def rows_per_chunk(self, split: Split) -> int:
        """Rows that are stored together; blocks of a multiple of it read fastest."""
        return self._group(split)["features"].chunks[0]

    def labels(self, split: Split) -> np.ndarray:
        """``(N,)`` int64."""
        return self._read(split, "labels", slice(None))

    def squared_norms(self, split: Split) -> np.ndarray:
        """``(N,)`` float64: ‖x‖² of each example's features as they are stored."""
        return self._read(split, "squared_norms", slice(None))

    def iter_rows(self, split: Split, rows_per_block: int) -> Iterator[tuple[int, np.ndarray]]:
        """Read a split from first to last.

        Args:
            split: ``"train"`` or ``"test"``.
            rows_per_block: examples a block; the last block may be shorter.

        Yields:
            ``(start, block)``: the block's first row and its ``(B, K, h, w)`` features, a fresh array.
        """
        if rows_per_block < 1:
            raise ConfigError(f"rows_per_block={rows_per_block}: expected an integer ≥ 1")
        for start in range(0, self.num_rows(split), rows_per_block):
            yield start, self._read(split, "features", slice(start, start + rows_per_block))

    def read(self, split: Split, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Features ``(len(indices), K, h, w)`` of some rows, in the order given; rows may repeat.

        Raises:
            IndexError: an index outside [0, N).
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        rows = self.num_rows(split)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= rows):
            raise IndexError(f"indices from {wanted.min()} to {wanted.max()}: expected 0 to {rows - 1} ({split} split)")
        result = np.empty((len(wanted), *self.output_shape), DTYPES[self.dtype])
        order = np.argsort(wanted, kind="stable")
        chunk_rows = self.rows_per_chunk(split)
        # One read a chunk: HDF5's own selection of single rows is far slower than reading their chunk whole.
        for places in np.split(order, np.flatnonzero(np.diff(wanted[order] // chunk_rows)) + 1) if len(order) else ():
            start, stop = wanted[places[0]], wanted[places[-1]] + 1
            result[places] = self._read(split, "features", slice(start, stop))[wanted[places] - start]
        return result

    def _read(self, split: Split, name: str, rows: slice) -> np.ndarray:
        try:
            return self._group(split)[name][rows]
        except (OSError, RuntimeError) as error:
            raise CacheError(f"{self.path}: cannot read {split}/{name} ({error}); {_remedy(self.path)}") from error


def _open_hdf5(path: Path) -> h5py.File:
    if not path.is_file():
        raise CacheError(f"{path}: no such feature cache; extract the features with `python -m scatterdp extract`")
    try:
        # A published file never changes, and locks fail on some read-only and network file systems.
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise CacheError(f"{path}: no permission to read it; ask its owner") from error
        reason = "is truncated" if "truncated" in str(error) else "is not a readable HDF5 file"
        raise CacheError(f"{path}: {reason}; {_remedy(path)}") from error


_TEXT_ATTRIBUTES = ("dataset_name", "dataset_fingerprint", "extractor_name", "extractor_fingerprint", "dtype")
_JSON_ATTRIBUTES = ("class_names", "image_shape", "output_shape", "extractor_config", "versions")


def _attributes_digest(attributes: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def _write_attributes(file: h5py.File, attributes: dict[str, Any]) -> None:
    for name in _TEXT_ATTRIBUTES:
        file.attrs[name] = np.bytes_(attributes[name].encode())
    for name in _JSON_ATTRIBUTES:
        text = json.dumps(attributes[name], sort_keys=True).encode()
        if len(text) > _ATTRIBUTE_BYTES:
            raise CacheError(f"{name}: {len(text)} bytes as JSON, expected at most {_ATTRIBUTE_BYTES} (HDF5's limit)")
        file.attrs[name] = np.bytes_(text)
    file.attrs["attributes_sha256"] = np.bytes_(_attributes_digest(attributes))
    file.attrs["schema_version"] = np.int64(SCHEMA_VERSION)


def _read_attributes(file: h5py.File, path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = {name: file.attrs[name] for name in file.attrs}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CacheError(f"{path}: its attributes are damaged ({error}); {_remedy(path)}") from error
    if "schema_version" not in found:
        raise CacheError(f"{path}: is an HDF5 file but not a feature cache; move it elsewhere")
    if found["schema_version"] != SCHEMA_VERSION:
        raise CacheError(
            f"{path}: has schema version {found['schema_version']}, this version of scatterdp reads {SCHEMA_VERSION}; "
            f"{_remedy(path)}"
        )
    try:
        attributes: dict[str, Any] = {name: bytes(found[name]).decode() for name in _TEXT_ATTRIBUTES}
        attributes |= {name: json.loads(bytes(found[name])) for name in _JSON_ATTRIBUTES}
        digest = bytes(found["attributes_sha256"]).decode()
    except (KeyError, ValueError, TypeError) as error:
        raise CacheError(f"{path}: its attributes are damaged ({error}); {_remedy(path)}") from error
    if digest != _attributes_digest(attributes):
        raise CacheError(f"{path}: its attributes are damaged (their digest does not match); {_remedy(path)}")
    return attributes


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
    group = cache._group(split)
    labels, norms = cache.labels(split), cache.squared_norms(split)
    try:
        labels_digest, digests = bytes(group.attrs["labels_sha256"]).decode(), group["chunk_sha256"][:]
    except (KeyError, ValueError, TypeError, OSError, RuntimeError) as error:
        raise CacheError(f"{cache.path}: the {split} split's digests are damaged; {_remedy(cache.path)}") from error
    if hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest() != labels_digest:
        raise CacheError(f"{cache.path}: the {split} split's labels do not match their digest; {_remedy(cache.path)}")
    if labels.min() < 0 or labels.max() >= len(cache.class_names):
        raise CacheError(
            f"{cache.path}: labels of the {split} split range from {labels.min()} to {labels.max()}, expected 0 to "
            f"{len(cache.class_names) - 1}; {_remedy(cache.path)}"
        )
    for chunk, (start, rows) in enumerate(cache.iter_rows(split, cache.rows_per_chunk(split))):
        where = f"{cache.path}: {split} rows {start} to {start + len(rows) - 1}"
        if hashlib.sha256(rows.tobytes()).digest() != digests[chunk].tobytes():
            raise CacheError(f"{where} do not match their digest; {_remedy(cache.path)}")
        if not np.isfinite(rows).all():
            raise CacheError(f"{where} hold NaN or infinity; {_remedy(cache.path)}")
        # Another processor may add in another order, so not to the last bit.
        if not np.allclose(norms[start : start + len(rows)], _squared_norms(rows), rtol=1e-9, atol=0):
            raise CacheError(f"{where} do not match their squared norms; {_remedy(cache.path)}")


def _squared_norms(rows: np.ndarray) -> np.ndarray:
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return np.einsum("ij,ij->i", flat, flat)


# ---------------------------------------------------------------- the writer's lock


@contextlib.contextmanager
def writer_lock(path: Path, *, timeout: float = 0.0) -> Iterator[None]:
    """Hold the writer's lock of the cache at ``path``. A dead process holds no lock.

    Raises:
        CacheLockedError: a live process holds it for longer than ``timeout`` seconds.
    """
    owner = _beside(path, ".pid")
    lock = filelock.FileLock(_beside(path, ".lock"))
    try:
        lock.acquire(timeout=max(timeout, _LOCK_GRACE_SECONDS))
    except filelock.Timeout as error:
        raise CacheLockedError(
            f"{path}: {_owner_text(owner)} is writing this feature cache; wait until it has finished, or end it first"
        ) from error
    try:
        owner.write_text(f"{os.getpid()} {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def lock_owner(path: Path) -> str | None:
    """Who is writing the cache at ``path`` right now (``"process 123"``), or None."""
    if not _beside(path, ".lock").exists():
        return None
    lock = filelock.FileLock(_beside(path, ".lock"))
    try:
        with lock.acquire(timeout=0):
            return None
    except filelock.Timeout:
        return _owner_text(_beside(path, ".pid"))
    except PermissionError:
        return None  # a shared folder that we may only read: we cannot know


def _owner_text(owner: Path) -> str:
    try:
        pid, host = owner.read_text().split()
    except (FileNotFoundError, ValueError):  # it has just come, or is just leaving
        return "another process"
    return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"


# ---------------------------------------------------------------- what a folder holds


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
                attributes, rows = cache._attributes, (cache.num_rows("train"), cache.num_rows("test"))
            done = sum(rows)
        else:
            with _open_hdf5(file) as opened:
                attributes = _read_attributes(opened, file)
                rows = (len(opened["train/labels"]), len(opened["test/labels"]))  # pyright: ignore[reportArgumentType]
            done = sum(_journaled_rows(path).values())
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


def _journaled_rows(path: Path) -> dict[Split, int]:
    """Complete rows of each split by the journal; zero where there is none.

    Raises:
        CacheError: the journal cannot be understood.
    """
    journal = _beside(path, ".progress")
    try:
        found = json.loads(journal.read_text())
        return {split: int(found[split]) for split in SPLITS}
    except FileNotFoundError:
        return dict.fromkeys(SPLITS, 0)
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{journal}: is unreadable ({error}); {_remedy(path)}") from error


# ---------------------------------------------------------------- writing


def extract_features(
    dataset: Dataset,
    extractor: Extractor,
    *,
    features_dir: Path,
    dtype: str = "float32",
    batch_size: int | None = None,
    progress: bool = False,
    lock_timeout: float = 0.0,
) -> FeatureCache:
    """The cache of a data set's features: opened if it has been published, otherwise computed first.

    An extraction that was interrupted at any moment is taken up where it stopped, and ends in the same content (with
    another batch size, up to the rounding of the extractor).

    Args:
        dataset: images and labels.
        extractor: what to compute, on the device where it is.
        features_dir: folder of the caches; made when missing.
        dtype: ``"float32"``, or ``"float16"`` for half the size and 11 bits of precision.
        batch_size: images a call of the extractor (speed and memory only); the rows of one chunk by default.
        progress: show a progress bar on standard error.
        lock_timeout: seconds to wait for another process that writes the same cache.

    Returns:
        The published cache, open for reading; the caller closes it (``with``).

    Raises:
        ConfigError: dtype or batch size out of range, or the extractor takes images of another shape.
        CacheLockedError: another live process is writing this cache.
        CacheError: the published file is damaged or of other fingerprints; features are not finite or do not fit
            the dtype; the disk is full (what is complete is kept and taken up by the next run).
    """
    _check_dtype(dtype)
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: expected an integer ≥ 1")
    if extractor.input_shape != dataset.image_shape:
        raise ConfigError(
            f"input_shape={extractor.input_shape}: the images of {dataset.name} are {dataset.image_shape}; "
            "make the extractor for that shape"
        )
    path = cache_path(dataset, extractor, features_dir=Path(features_dir), dtype=dtype)

    def published() -> FeatureCache:
        return FeatureCache(path, dataset_fingerprint=dataset.fingerprint, extractor_fingerprint=extractor.fingerprint)

    if path.exists():
        return published()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writer_lock(path, timeout=lock_timeout):
            if not path.exists():  # another process may have published it while we waited
                _Writer(path, dataset, extractor, dtype).run(batch_size, progress)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full(path, dataset, extractor, dtype) from error
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
            raise CacheError(
                f"features_dir={features_dir}: cannot write there ({error.strerror}); choose another folder"
            ) from error
        raise
    return published()


def _disk_full(path: Path, dataset: Dataset, extractor: Extractor, dtype: str) -> CacheError:
    partial = partial_path(path)
    kept = f"; what is complete is kept in {partial.name} and taken up by the next run" if partial.exists() else ""
    return CacheError(
        f"features_dir={path.parent}: the disk or quota is full: the cache needs about "
        f"{_feature_bytes(dataset, extractor, dtype)} bytes, {shutil.disk_usage(path.parent).free} are free{kept}; "
        "free some space or choose another folder"
    )


def _rows_per_chunk(rows: int, row_bytes: int) -> int:
    return min(max(1, _CHUNK_BYTES // row_bytes), rows)


def _feature_bytes(dataset: Dataset, extractor: Extractor, dtype: str) -> int:
    """The file's size, to within a few per cent from above."""
    row_bytes = math.prod(extractor.output_shape) * DTYPES[dtype].itemsize
    total = 1 << 16
    for rows in (len(dataset.y_train), len(dataset.y_test)):
        rows_per_chunk = _rows_per_chunk(rows, row_bytes)
        total += math.ceil(rows / rows_per_chunk) * (rows_per_chunk * row_bytes + 256) + 16 * rows
    return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one split's values are in the file, in bytes from its start."""

    rows: int
    rows_per_chunk: int
    chunks: list[int]
    squared_norms: int
    chunk_sha256: int


class _Writer:
    """Writes one cache from whatever its last writer left to the published file. Runs under the lock."""

    def __init__(self, path: Path, dataset: Dataset, extractor: Extractor, dtype: str) -> None:
        self.path, self.partial, self.journal = path, partial_path(path), _beside(path, ".progress")
        self.dataset, self.extractor, self.dtype = dataset, extractor, DTYPES[dtype]
        self.row_shape = extractor.output_shape
        self.attributes: dict[str, Any] = {
            "dataset_name": dataset.name,
            "dataset_fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "image_shape": list(dataset.image_shape),
            "extractor_name": extractor.name,
            "extractor_fingerprint": extractor.fingerprint,
            "extractor_config": dataclasses.asdict(extractor.config),
            "output_shape": list(extractor.output_shape),
            "dtype": dtype,
            "versions": {name: _version(name) for name in ("scatterdp", "torch", "kymatio", "h5py")},
        }

    def run(self, batch_size: int | None, progress: bool) -> None:
        places = self._existing()
        if places is None:
            self._create()
            places = self._places()
        done = self._read_journal(places)
        if any(done.values()):
            logger.info("%s: going on after %s rows", self.partial.name, done)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(self.partial, "r+b", buffering=0))
            bar = None
            if progress:  # a hidden bar is not free of risk: it takes a lock that forked processes share
                total = sum(place.rows for place in places.values())
                bar = stack.enter_context(
                    tqdm(
                        total=total,
                        initial=sum(done.values()),
                        desc=f"{self.dataset.name}, {self.extractor.name}",
                        unit="img",
                    )
                )
            try:
                for split in SPLITS:
                    for rows in self._write_split(file, split, places[split], done, batch_size):
                        if bar is not None:
                            bar.update(rows)
            finally:  # also after Ctrl-C or an error: keep what is complete
                self._write_journal(file, done)
        os.replace(self.partial, self.path)
        _sync_folder(self.path.parent)
        self.journal.unlink(missing_ok=True)

    # ------------------------------------------------ the file's structure

    def _existing(self) -> dict[Split, _Place] | None:
        """The partial file's places, or None where there is none to go on with."""
        if not self.partial.exists():
            return None
        try:
            with _open_hdf5(self.partial) as file:
                if _read_attributes(file, self.partial) != self.attributes:
                    raise CacheError("it was begun by other versions of the libraries")
            return self._places()
        except (CacheError, KeyError, ValueError, RuntimeError, OSError) as error:
            reason = str(error).removeprefix(f"{self.partial}: ").partition(";")[0]  # its remedy is what we do
            logger.warning("%s cannot be resumed, starting over (%s)", self.partial, reason)
            return None

    def _create(self) -> None:
        """Make the structure, allocate the disk and rename it to the partial file."""
        needed = _feature_bytes(self.dataset, self.extractor, self.attributes["dtype"])
        # The leftovers go first: their space counts, and a journal must never describe another partial file.
        creating = _beside(self.path, ".creating")
        for leftover in (self.journal, self.partial, creating):
            leftover.unlink(missing_ok=True)
        if shutil.disk_usage(self.path.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.partial))
        try:
            # Probed before HDF5 is involved, which leaves a file open when it fails to grow it.
            with open(creating, "wb") as file:
                _allocate(file, needed)
            with h5py.File(creating, "w", libver="earliest", locking=False) as file:
                _write_attributes(file, self.attributes)
                for split in SPLITS:
                    self._create_split(file, split)
            with open(creating, "r+b") as file:
                _allocate(file, os.path.getsize(creating))
                os.fsync(file.fileno())
        except BaseException:
            creating.unlink(missing_ok=True)
            raise
        os.replace(creating, self.partial)
        _sync_folder(self.path.parent)

    def _create_split(self, file: h5py.File, split: Split) -> None:
        images, labels = self.dataset.split(split)
        rows_per_chunk = _rows_per_chunk(len(images), math.prod(self.row_shape) * self.dtype.itemsize)
        group = file.create_group(split)
        stored = labels.astype("<i8")
        group.attrs["labels_sha256"] = np.bytes_(hashlib.sha256(stored.tobytes()).hexdigest())
        group.create_dataset("labels", data=stored)
        group.create_dataset("squared_norms", data=np.zeros(len(images), "<f8"))
        group.create_dataset("chunk_sha256", data=np.zeros((math.ceil(len(images) / rows_per_chunk), 32), np.uint8))
        # All chunks get their place now (early) and are not filled (never): writing rows later changes no metadata.
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((rows_per_chunk, *self.row_shape))
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)
        space = h5py.h5s.create_simple((len(images), *self.row_shape))
        h5py.h5d.create(group.id, b"features", h5py.h5t.py_create(self.dtype), space, dcpl=properties)

    def _places(self) -> dict[Split, _Place]:
        places: dict[Split, _Place] = {}
        with _open_hdf5(self.partial) as file:
            for split in SPLITS:
                group: Any = file[split]
                features = group["features"]
                rows, rows_per_chunk = len(self.dataset.split(split)[0]), features.chunks[0]
                offsets: dict[int, int] = {}

                def note(info: Any, offsets: dict[int, int] = offsets) -> None:
                    offsets[info.chunk_offset[0]] = info.byte_offset

                features.id.chunk_iter(note)
                if features.shape != (rows, *self.row_shape) or sorted(offsets) != list(range(0, rows, rows_per_chunk)):
                    raise CacheError(f"{split}/features is not laid out as expected")
                places[split] = _Place(
                    rows=rows,
                    rows_per_chunk=rows_per_chunk,
                    chunks=[offsets[start] for start in sorted(offsets)],
                    squared_norms=group["squared_norms"].id.get_offset(),
                    chunk_sha256=group["chunk_sha256"].id.get_offset(),
                )
        return places

    # ------------------------------------------------ the rows

    def _write_split(
        self, file: BinaryIO, split: Split, place: _Place, done: dict[Split, int], batch_size: int | None
    ) -> Iterator[int]:
        """Write what is missing of a split; yields the number of rows after each step."""
        images = self.dataset.split(split)[0]
        batch_size = batch_size or place.rows_per_chunk
        # Whole chunks that a batch fills: a batch never begins inside a chunk that another run may have ended in.
        step = max(1, batch_size // place.rows_per_chunk) * place.rows_per_chunk
        written = time.monotonic()
        for start in range(done[split], place.rows, step):
            stop = min(start + step, place.rows)
            features = np.empty((stop - start, *self.row_shape), self.dtype)
            for low in range(start, stop, batch_size):
                high = min(low + batch_size, stop)
                features[low - start : high - start] = self._extract(images[low:high], split, low)
            for first in range(start, stop, place.rows_per_chunk):
                self._write_chunk(file, place, first, features[first - start : first - start + place.rows_per_chunk])
            done[split] = stop
            if time.monotonic() - written >= _JOURNAL_SECONDS:
                self._write_journal(file, done)
                written = time.monotonic()
            yield stop - start

    def _extract(self, images: np.ndarray, split: Split, first_row: int) -> np.ndarray:
        """Features ``(B, K, h, w)`` of a batch in the stored type; refuses what is not finite."""
        import torch  # seconds to import, and reading a cache does not need it

        output = self.extractor(torch.from_numpy(to_channels_first_float(images)))
        if tuple(output.shape) != (len(images), *self.row_shape) or output.dtype != torch.float32:
            raise CacheError(
                f"extractor {self.extractor.name}: returned {output.dtype} of shape {tuple(output.shape)}, "
                f"expected torch.float32 {(len(images), *self.row_shape)}"
            )
        values = output.cpu().numpy()
        with np.errstate(over="ignore"):  # looked at below
            stored = values.astype(self.dtype)
        finite = np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            if np.isfinite(values[bad]).all():
                raise CacheError(
                    f"dtype=float16: the features of {split} row {first_row + bad} reach "
                    f"{np.abs(values[bad]).max():g}, more than {np.finfo(np.float16).max:g}; take dtype=float32"
                )
            raise CacheError(
                f"extractor {self.extractor.name}: the features of {split} row {first_row + bad} are NaN or infinite; "
                "look at that image"
            )
        return stored

    def _write_chunk(self, file: BinaryIO, place: _Place, start: int, rows: np.ndarray) -> None:
        chunk = start // place.rows_per_chunk
        content = rows.tobytes()
        _write_at(file, place.chunks[chunk], content)
        _write_at(file, place.squared_norms + 8 * start, _squared_norms(rows).astype("<f8").tobytes())
        _write_at(file, place.chunk_sha256 + 32 * chunk, hashlib.sha256(content).digest())

    # ------------------------------------------------ the journal

    def _read_journal(self, places: dict[Split, _Place]) -> dict[Split, int]:
        """Complete rows of each split; zero where the journal is missing or says nothing that can be."""
        try:
            done = _journaled_rows(self.path)
            for split, place in places.items():
                rows = done[split]
                if not 0 <= rows <= place.rows or (rows != place.rows and rows % place.rows_per_chunk):
                    raise CacheError(f"{self.journal}: {rows} {split} rows cannot be; {_remedy(self.path)}")
        except CacheError as error:
            logger.warning("starting over: %s", str(error).partition(";")[0])  # its remedy is what we do
            return dict.fromkeys(SPLITS, 0)
        return done

    def _write_journal(self, file: BinaryIO, done: dict[Split, int]) -> None:
        """Say how far the rows are, after they have reached the disk."""
        os.fsync(file.fileno())
        new = _beside(self.path, ".progress.new")
        with open(new, "w") as journal:
            json.dump(done, journal)
            journal.flush()
            os.fsync(journal.fileno())
        os.replace(new, self.journal)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _write_at(file: BinaryIO, offset: int, content: bytes) -> None:
    file.seek(offset)
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _allocate(file: BinaryIO, size: int) -> None:
    """Reserve disk space, so that a full disk shows now and not after hours; a no-op where it cannot be done."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _sync_folder(folder: Path) -> None:
    """Make a rename last; Windows has no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
