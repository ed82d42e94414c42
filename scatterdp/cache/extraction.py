"""Writing a cache: decode, extract and store, each in a thread of its own, so that none waits for another.

    decode    bytes to [0, 1]                                          one batch ahead
    extract   the caller's thread; the extractor has threads of its own
    store     cast, check, ‖x‖², digest, write                         in order, up to two batches behind
    sync      everything written so far to the disk, then the journal  twice a second

Several processes (:mod:`scatterdp.ranks`) share what is missing; the first makes the file and publishes it.

Rows are written at their fixed places; what the journal counts has reached the disk. The operating system is told to forget
written pages: a cache larger than memory would push out everything else, and pages that are used again are far cheaper than
fresh ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from tqdm import tqdm

from scatterdp.cache.digests import chunk_digest, squared_norms_of
from scatterdp.cache.files import SPLITS, Split, cache_path, check_dtype, journal_paths, partial_path
from scatterdp.cache.journal import Intervals, count, journaled, merged, missing, write_journal
from scatterdp.cache.layout import Layout, Place, create, places_of
from scatterdp.cache.lock import writer_lock
from scatterdp.cache.reading import FeatureCache
from scatterdp.cache.schema import open_hdf5, read_attributes
from scatterdp.datasets.images import to_channels_first_float
from scatterdp.errors import CacheError, ConfigError
from scatterdp.ranks import Alone, Ranks
from scatterdp.writing import DISK_FULL, make_folder, sync_folder

if TYPE_CHECKING:
    import torch

    from scatterdp.datasets.dataset import Dataset
    from scatterdp.extractors.base import Extractor

logger = logging.getLogger(__name__)

_BATCH_BYTES = 32 << 20  # features of one batch: enough work for every thread, little memory
_DEVICE_BATCH_BYTES = 128 << 20  # the same on a CUDA device, which needs more work at once
_MAPS_AT_A_TIME = 32  # bytes of the device per byte of features: a guess from above; too high a batch is halved
_BEHIND = 2  # batches that may wait to be stored
_JOURNAL_SECONDS = 0.5  # what a kill may cost; syncing the disk after every chunk would slow fast extractors


def extract_features(
    dataset: Dataset,
    extractor: Extractor,
    *,
    features_dir: Path,
    dtype: str = "float32",
    batch_size: int | None = None,
    progress: bool = False,
    lock_timeout: float = 0.0,
    ranks: Ranks | None = None,
) -> FeatureCache:
    """The cache of a data set's features: opened if it has been published, otherwise computed first.

    An extraction that was interrupted at any moment is taken up where it stopped, and ends in the same content (with
    another batch size, up to the rounding of the extractor).

    Args:
        dataset: images and labels.
        extractor: what to compute, on the device where it is.
        features_dir: folder of the caches; made when missing.
        dtype: ``"float32"``, or ``"float16"`` for half the size and 11 bits of precision.
        batch_size: images a call of the extractor (speed and memory only); about 32 MiB of features by default. Halved as
            often as a CUDA device runs out of memory.
        progress: show a progress bar on standard error.
        lock_timeout: seconds to wait for another process that writes the same cache.
        ranks: the processes that call this together, each with the same arguments; only this one by default.

    Returns:
        The published cache, open for reading; the caller closes it (``with``).

    Raises:
        ConfigError: dtype or batch size out of range, or the extractor takes images of another shape or is but a name.
        CacheLockedError: another live process is writing this cache.
        CacheError: the published file is damaged or of other fingerprints; features are not finite or do not fit
            the dtype; the disk is full (what is complete is kept and taken up by the next run).
    """
    check_dtype(dtype)
    if isinstance(extractor, str):
        raise ConfigError(
            f"extractor={extractor!r}: expected what make_extractor({extractor!r}, dataset.image_shape) makes, not its name"
        )
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

    ranks = ranks or Alone()
    if ranks.share(path.exists()):
        return published()
    writer = _Writer(path, dataset, extractor, dtype, batch_size, ranks)
    make_folder(path.parent, argument="features_dir")
    try:
        with writer_lock(path, timeout=lock_timeout) if ranks.rank == 0 else contextlib.nullcontext():
            if not ranks.share(path.exists()):  # another process may have published it while we waited
                writer.run(progress)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _disk_full(path, writer.layout.file_bytes) from error
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError) or error.errno == errno.EROFS:
            raise CacheError(
                f"features_dir={features_dir}: cannot be written ({error.strerror}); give another"
            ) from error
        raise
    return published()


def _disk_full(path: Path, needed: int) -> CacheError:
    partial = partial_path(path)
    kept = f"; what is complete is kept in {partial.name} and taken up by the next run" if partial.exists() else ""
    return CacheError(
        f"features_dir={path.parent}: the disk or quota is full: the cache needs about "
        f"{needed} bytes, {shutil.disk_usage(path.parent).free} are free{kept}; "
        "free some space or choose another folder"
    )


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Rows ``start`` to ``stop`` of a split."""

    split: Split
    start: int
    stop: int


class _Writer:
    """Writes one cache from whatever its last writer left to the published file. Runs under the lock."""

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        extractor: Extractor,
        dtype: str,
        batch_size: int | None,
        ranks: Ranks,
    ) -> None:
        self.path, self.partial, self.ranks = path, partial_path(path), ranks
        self.dataset, self.extractor = dataset, extractor
        attributes: dict[str, Any] = {
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
        attributes = json.loads(json.dumps(attributes))  # as they will be read: tuples are lists then
        self.layout = Layout(attributes=attributes, labels={split: dataset.split(split)[1] for split in SPLITS})
        self._disk_failed = False
        self.batch_size = batch_size or max(1, _batch_bytes() // self.layout.row_bytes)

    def run(self, progress: bool) -> None:
        if self.ranks.rank == 0 and not self._can_go_on():
            create(self.path, self.layout)
        self.ranks.wait()
        places = places_of(self.partial, self.layout)
        complete = self._read_journals(places)
        if self.ranks.rank == 0:  # takes over what earlier processes have left, before others replace their journals
            write_journal(self.path, 0, complete)
        complete = self.ranks.share(complete)
        batches = self._batches(places, complete)
        first, stop = (len(batches) * rank // self.ranks.size for rank in (self.ranks.rank, self.ranks.rank + 1))
        batches = batches[first:stop]
        nothing: dict[Split, Intervals] = {split: [] for split in SPLITS}
        done = complete if self.ranks.rank == 0 else nothing
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(self.partial, "r+b", buffering=0))
            bar = None
            if progress:  # a hidden bar is not free of risk: it takes a lock that forked processes share
                already = sum(map(count, done.values()))
                total = already + sum(batch.stop - batch.start for batch in batches)
                bar = stack.enter_context(
                    tqdm(total=total, initial=already, desc=f"{self.dataset.name}, {self.extractor.name}", unit="img")
                )
            try:
                with contextlib.closing(self._pipeline(file, places, batches, done)) as pipeline:
                    for rows in pipeline:
                        if bar is not None:
                            bar.update(rows)
            finally:  # also after Ctrl-C or an error: keep what is complete
                if not self._disk_failed:
                    self._write_journal(file, done)
        self.ranks.wait()
        if self.ranks.rank == 0:
            complete = journaled(self.path)
            for split, place in places.items():
                if rows := missing(complete[split], place.rows):
                    raise CacheError(
                        f"{self.partial}: {split} rows {rows[0][0]} to {rows[0][1] - 1} are missing; did all processes have the same "
                        "data and flags? run the same command again"
                    )
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)
            for journal in journal_paths(self.path):
                journal.unlink(missing_ok=True)
        self.ranks.wait()

    def _can_go_on(self) -> bool:
        """Whether there is a partial file to go on with."""
        if not self.partial.exists():
            return False
        try:
            with open_hdf5(self.partial) as file:
                if read_attributes(file, self.partial) != self.layout.attributes:
                    raise CacheError("it was begun by other versions of the libraries")
            places_of(self.partial, self.layout)
            return True
        except (CacheError, KeyError, ValueError, RuntimeError, OSError) as error:
            reason = str(error).removeprefix(f"{self.partial}: ").partition(";")[0]  # its remedy is what we do
            logger.warning("%s cannot be resumed, starting over (%s)", self.partial, reason)
            return False

    # ------------------------------------------------ the pipeline

    def _pipeline(
        self, file: BinaryIO, places: dict[Split, Place], batches: list[_Batch], done: dict[Split, Intervals]
    ) -> Generator[int, None, None]:
        """Compute and store batches, noting in ``done`` what is stored; yields the number of rows after each batch."""
        journaled = time.monotonic()
        syncing: Future[None] | None = None
        failed = False

        def store(batch: _Batch, values: np.ndarray) -> int:
            nonlocal journaled, syncing, failed
            if failed:
                return 0
            failed = True
            self._store(file, places[batch.split], batch, values)
            failed = False
            done[batch.split] = merged([*done[batch.split], (batch.start, batch.stop)])
            if (syncing is None or syncing.done()) and time.monotonic() - journaled >= _JOURNAL_SECONDS:
                if syncing is not None:
                    syncing.result()  # its error is ours
                syncing = sync.submit(self._write_journal, file, dict(done))
                journaled = time.monotonic()
            return batch.stop - batch.start

        stored: deque[Future[int]] = deque()
        # Leaving the block waits for what has been handed over, also after an error.
        with (
            ThreadPoolExecutor(1, "sync") as sync,
            ThreadPoolExecutor(1, "decode") as decoder,
            ThreadPoolExecutor(1, "store") as disk,
        ):
            following = [decoder.submit(self._decode, batch) for batch in batches[:1]]
            for number, batch in enumerate(batches):
                images = following.pop().result()
                following += [decoder.submit(self._decode, later) for later in batches[number + 1 : number + 2]]
                stored.append(disk.submit(store, batch, self._extract(images)))
                while len(stored) > _BEHIND:
                    yield stored.popleft().result()
            while stored:
                yield stored.popleft().result()
            if syncing is not None:
                syncing.result()

    def _batches(self, places: dict[Split, Place], complete: dict[Split, Intervals]) -> list[_Batch]:
        """What is missing, in pieces of whole chunks."""
        batches: list[_Batch] = []
        for split, place in places.items():
            step = max(1, self.batch_size // place.rows_per_chunk) * place.rows_per_chunk
            for first, stop in missing(complete[split], place.rows):
                batches += [_Batch(split, start, min(start + step, stop)) for start in range(first, stop, step)]
        return batches

    def _decode(self, batch: _Batch) -> torch.Tensor:
        """Images ``(B, C, H, W)`` float32 in [0, 1], in page-locked memory where that makes the copy to a device faster."""
        import torch  # seconds to import, and reading a cache does not need it

        images = torch.from_numpy(to_channels_first_float(self.dataset.split(batch.split)[0][batch.start : batch.stop]))
        return images.pin_memory() if torch.cuda.is_available() else images

    def _extract(self, images: torch.Tensor) -> np.ndarray:
        """Features ``(B, K, h, w)`` float32 in calls of at most ``batch_size`` images."""
        import torch

        pieces: list[np.ndarray] = []
        start = 0
        while start < len(images):
            piece = images[start : start + self.batch_size]
            try:
                output = self.extractor(piece)
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise CacheError(
                        f"extractor {self.extractor.name}: the device has no memory for one image; take --device=cpu"
                    ) from None
                self.batch_size //= 2
                torch.cuda.empty_cache()
                logger.warning("the device ran out of memory: going on with batches of %d images", self.batch_size)
                continue
            if tuple(output.shape) != (len(piece), *self.layout.row_shape) or output.dtype != torch.float32:
                raise CacheError(
                    f"extractor {self.extractor.name}: returned {output.dtype} of shape {tuple(output.shape)}, "
                    f"expected torch.float32 {(len(piece), *self.layout.row_shape)}"
                )
            pieces.append(output.cpu().numpy())
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _store(self, file: BinaryIO, place: Place, batch: _Batch, values: np.ndarray) -> None:
        rows = _cast(values, self.layout.attributes["dtype"])
        squared_norms = squared_norms_of(rows)
        finite = np.isfinite(squared_norms)
        if not finite.all():
            self._refuse(values[int(np.argmin(finite))], f"{batch.split} row {batch.start + int(np.argmin(finite))}")
        for first in range(0, len(rows), place.rows_per_chunk):
            chunk, content = (batch.start + first) // place.rows_per_chunk, rows[first : first + place.rows_per_chunk]
            write_at(file, place.chunks[chunk], content.data.cast("B"))
            write_at(file, place.digests + 16 * chunk, chunk_digest(content))
        write_at(file, place.squared_norms + 8 * batch.start, squared_norms.astype("<f8").tobytes())

    def _refuse(self, values: np.ndarray, where: str) -> None:
        if np.isfinite(values).all():
            raise CacheError(
                f"dtype=float16: the features of {where} reach "
                f"{np.abs(values).max():g}, more than {np.finfo(np.float16).max:g}; take dtype=float32"
            )
        raise CacheError(
            f"extractor {self.extractor.name}: the features of {where} are NaN or infinite; look at that image"
        )

    # ------------------------------------------------ the journal

    def _read_journals(self, places: dict[Split, Place]) -> dict[Split, Intervals]:
        """Complete rows of each split; none where a journal says what cannot be."""
        try:
            complete = journaled(self.path)
            for split, place in places.items():
                for first, stop in complete[split]:
                    whole = first % place.rows_per_chunk == 0 and (
                        stop == place.rows or stop % place.rows_per_chunk == 0
                    )
                    if not (whole and 0 <= first < stop <= place.rows):
                        raise CacheError(f"{self.path.name}: journaled {split} rows {first} to {stop} cannot be")
        except CacheError as error:
            logger.warning("starting over: %s", str(error).partition(";")[0])  # its remedy is what we do
            return {split: [] for split in SPLITS}
        if any(complete.values()):
            logger.info("%s: going on after %s rows", self.partial.name, {s: count(i) for s, i in complete.items()})
        return complete

    def _write_journal(self, file: BinaryIO, done: dict[Split, Intervals]) -> None:
        """Say how far the rows are, after they have reached the disk."""
        try:
            os.fsync(file.fileno())
        except OSError:
            # The system reports a failed write once: a second try would succeed and promise rows that are lost.
            self._disk_failed = True
            raise
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        write_journal(self.path, self.ranks.rank, done)


def _batch_bytes() -> int:
    """Features of one batch: no more than a part of what a CUDA device has free, for it keeps many maps of each at a time."""
    import torch

    if not torch.cuda.is_available():
        return _BATCH_BYTES
    free, _ = torch.cuda.mem_get_info()
    return min(_DEVICE_BATCH_BYTES, free // _MAPS_AT_A_TIME)


def _cast(values: np.ndarray, dtype: str) -> np.ndarray:
    import torch  # NumPy's conversion to half precision is ten times slower

    return torch.from_numpy(values).to(getattr(torch, dtype)).contiguous().numpy()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def write_at(file: BinaryIO, offset: int, content: bytes | memoryview) -> None:
    """Write all of ``content`` at ``offset``."""
    file.seek(offset)
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
