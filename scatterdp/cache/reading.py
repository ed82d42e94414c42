"""Reading a published cache."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from scatterdp.cache.digests import chunk_digest
from scatterdp.cache.files import DTYPES, SPLITS, Split, remedy
from scatterdp.cache.gathering import RowFile, RowReader
from scatterdp.cache.schema import open_hdf5, read_attributes
from scatterdp.errors import CacheError, ConfigError


class Features(Protocol):
    """Features of a train and a test split with their labels, wherever they are stored; :class:`FeatureCache` says what each is."""

    @property
    def path(self) -> Path: ...

    @property
    def dataset_name(self) -> str: ...

    @property
    def dataset_fingerprint(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def extractor_name(self) -> str: ...

    @property
    def extractor_fingerprint(self) -> str: ...

    @property
    def extractor_config(self) -> dict[str, Any]: ...

    @property
    def output_shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> str: ...

    def content_digest(self) -> str: ...

    def num_rows(self, split: Split) -> int: ...

    def labels(self, split: Split) -> np.ndarray: ...

    def iter_rows(
        self, split: Split, rows_per_block: int, *, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]: ...

    def row_reader(self, split: Split) -> RowReader: ...


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
        self._file = open_hdf5(self.path)
        try:
            self.attributes = read_attributes(self._file, self.path)
            self._check_structure()
            for what, expected, found in (
                ("data set", dataset_fingerprint, self.dataset_fingerprint),
                ("extractor configuration", extractor_fingerprint, self.extractor_fingerprint),
            ):
                if expected is not None and expected != found:
                    raise CacheError(
                        f"{self.path}: holds the features of another {what} (fingerprint {found[:16]}…, expected "
                        f"{expected[:16]}…), was it renamed? {remedy(self.path).capitalize()}"
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
                    and group["chunk_xxh3_128"].shape == (math.ceil(rows / features.chunks[0]), 16)
                )
                if not fits:
                    raise CacheError(
                        f"{self.path}: the {split} split's arrays do not fit together; {remedy(self.path)}"
                    )
                if not group["chunk_xxh3_128"][:].any(axis=1).all():
                    raise CacheError(f"{self.path}: the {split} split is not complete; {remedy(self.path)}")
        except CacheError:
            raise
        except (KeyError, TypeError, ValueError, OSError, RuntimeError, AttributeError) as error:
            raise CacheError(f"{self.path}: its structure is damaged ({error}); {remedy(self.path)}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dataset_name(self) -> str:
        return self.attributes["dataset_name"]

    @property
    def dataset_fingerprint(self) -> str:
        return self.attributes["dataset_fingerprint"]

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.attributes["class_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the images behind the features."""
        return tuple(self.attributes["image_shape"])

    @property
    def extractor_name(self) -> str:
        return self.attributes["extractor_name"]

    @property
    def extractor_fingerprint(self) -> str:
        return self.attributes["extractor_fingerprint"]

    @property
    def extractor_config(self) -> dict[str, Any]:
        return dict(self.attributes["extractor_config"])

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """``(K, h, w)`` of one example's features."""
        return tuple(self.attributes["output_shape"])

    @property
    def dtype(self) -> str:
        """``"float32"`` or ``"float16"``, as stored."""
        return self.attributes["dtype"]

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that wrote the file."""
        return dict(self.attributes["versions"])

    def group(self, split: Split) -> Any:
        """The HDF5 group of a split."""
        if split not in SPLITS:
            raise ConfigError(f"split={split!r}: expected 'train' or 'test'")
        return self._file[split]

    def content_digest(self) -> str:
        """SHA-256 of the stored digests of all chunks: other features, if only by their rounding, have another one."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(self._read(split, "chunk_xxh3_128", slice(None)).tobytes())
        return digest.hexdigest()

    def num_rows(self, split: Split) -> int:
        """N, the number of examples of a split."""
        return self.group(split)["features"].shape[0]

    def rows_per_chunk(self, split: Split) -> int:
        """Rows that are stored together; blocks of a multiple of it read fastest."""
        return self.group(split)["features"].chunks[0]

    def labels(self, split: Split) -> np.ndarray:
        """``(N,)`` int64."""
        return self._read(split, "labels", slice(None))

    def squared_norms(self, split: Split) -> np.ndarray:
        """``(N,)`` float64: ‖x‖² of each example's features as they are stored."""
        return self._read(split, "squared_norms", slice(None))

    def iter_rows(
        self, split: Split, rows_per_block: int, *, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Read a split from first to last; every chunk is compared with its digest.

        Args:
            split: ``"train"`` or ``"test"``.
            rows_per_block: examples a block; the last block may be shorter.
            first, stop: only the rows from ``first`` to before ``stop``. None: to the last.

        Yields:
            ``(start, block)``: the block's first row and its ``(B, K, h, w)`` features, the caller's to change.

        Raises:
            CacheError: rows do not match their digest.
        """
        if rows_per_block < 1:
            raise ConfigError(f"rows_per_block={rows_per_block}: expected an integer ≥ 1")
        chunk, total = self.rows_per_chunk(split), self.num_rows(split)
        stop = total if stop is None else stop
        if not 0 <= first <= stop <= total:
            raise ConfigError(f"rows {first} to {stop}: expected 0 ≤ first ≤ stop ≤ {total} ({split} split)")
        at_once = math.ceil(rows_per_block / chunk) * chunk
        start, rest = first, np.empty((0, *self.output_shape), DTYPES[self.dtype])
        for begin in range(first // chunk * chunk, stop, at_once):  # whole chunks: a digest is one of a chunk
            rows = self._read(split, "features", slice(begin, begin + at_once))
            self._check_digests(split, begin, rows)
            rows = rows[max(0, first - begin) : stop - begin]
            rest = np.concatenate([rest, rows]) if len(rest) else rows
            while len(rest) >= rows_per_block or (start + len(rest) == stop and len(rest)):
                yield start, rest[:rows_per_block]
                start, rest = start + len(rest[:rows_per_block]), rest[rows_per_block:]

    def _check_digests(self, split: Split, first: int, rows: np.ndarray) -> None:
        chunk = self.rows_per_chunk(split)
        begin = first // chunk
        digests = self._read(split, "chunk_xxh3_128", slice(begin, begin + math.ceil(len(rows) / chunk)))
        for number, start in enumerate(range(0, len(rows), chunk)):
            piece = rows[start : start + chunk]
            if chunk_digest(piece) != digests[number].tobytes():
                raise CacheError(
                    f"{self.path}: {split} rows {first + start} to {first + start + len(piece) - 1} do not match their digest; "
                    f"{remedy(self.path)}"
                )

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

    def row_reader(self, split: Split) -> RowFile:
        """Reads rows ``(b, K, h, w)`` by number, fast; they are not compared with digests.

        Raises:
            CacheError: the file cannot be opened again, or is damaged.
        """
        features, offsets = self.group(split)["features"], {}
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (closed by the reader)
            features.id.chunk_iter(lambda info: offsets.__setitem__(info.chunk_offset[0], info.byte_offset))
        except OSError as error:
            raise CacheError(f"{self.path}: cannot be opened again ({error.strerror}); was it removed?") from error
        except RuntimeError as error:
            raise CacheError(f"{self.path}: its structure is damaged ({error}); {remedy(self.path)}") from error
        return RowFile(
            file,
            name=str(self.path),
            shape=self.output_shape,
            dtype=DTYPES[self.dtype],
            chunks=np.array([offsets[start] for start in sorted(offsets)]),
            rows_per_chunk=self.rows_per_chunk(split),
        )

    def _read(self, split: Split, name: str, rows: slice) -> np.ndarray:
        try:
            return self.group(split)[name][rows]
        except (OSError, RuntimeError) as error:
            raise CacheError(f"{self.path}: cannot read {split}/{name} ({error}); {remedy(self.path)}") from error
