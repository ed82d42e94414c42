"""Bounded reads of compressed files and archives that others made.

Nothing is extracted to disk: members are read into memory, by the names that are expected, up to the size that
is expected. A hostile archive can therefore neither choose a path nor fill the memory or the disk.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from scatterdp.errors import DatasetError

DAMAGED = (tarfile.TarError, zlib.error, EOFError, OSError)
"""What the standard library raises on a damaged or truncated gzip file or tar archive."""


def read_at_most(stream: IO[bytes], limit: int, source: str) -> bytes:
    """Read a stream to its end.

    Raises:
        DatasetError: it holds more than ``limit`` bytes (at most ``limit + 1`` are read).
    """
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise DatasetError(f"{source} holds more than the expected {limit} bytes")
    return data


def read_file(path: Path, limit: int) -> bytes:
    """Read a file, decompressed if its name ends in ``.gz``.

    Args:
        path: the file.
        limit: largest size after decompression, in bytes.

    Raises:
        DatasetError: unreadable, damaged, or larger than ``limit``.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            return read_at_most(stream, limit, str(path))  # type: ignore[arg-type]
    except DAMAGED as error:
        raise DatasetError(f"{path} cannot be read: {_reason(error)}") from error


def gunzip(data: bytes, limit: int, source: str) -> bytes:
    """Decompress gzip data of at most ``limit`` decompressed bytes.

    Raises:
        DatasetError: damaged, truncated, or larger than ``limit``.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            return read_at_most(stream, limit, source)  # type: ignore[arg-type]
    except DAMAGED as error:
        raise DatasetError(f"{source} cannot be read: {_reason(error)}") from error


class _BoundedReader:
    """A readable stream that refuses to give more than ``limit`` bytes in all, skipped members included."""

    def __init__(self, stream: IO[bytes], limit: int, source: str) -> None:
        self._stream, self._left, self._limit, self._source = stream, limit, limit, source

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise DatasetError(f"{self._source} unpacks to more than {self._limit} bytes")
        return data


def read_members(
    stream: IO[bytes], limits: Mapping[str, int], *, total_limit: int, source: str
) -> Iterator[tuple[str, bytes]]:
    """Read chosen members of an uncompressed tar stream, in the archive's order.

    Args:
        stream: the tar archive, read forwards once and no further than the last chosen member.
        limits: largest size in bytes of each member, by its full name in the archive (no leading ``./``).
        total_limit: largest number of bytes read from ``stream``.
        source: the archive's name for messages.

    Yields:
        Name (a key of ``limits``) and content.

    Raises:
        DatasetError: a damaged archive; a member that is missing, there twice, too large or no regular file; any
            member whose path is absolute or leads upwards.
    """
    missing = set(limits)
    bounded = _BoundedReader(stream, total_limit, source)
    try:
        with tarfile.open(fileobj=bounded, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise DatasetError(f"{source} is refused: its member {member.name!r} leads outside the archive")
                name = str(path)
                if name not in limits:
                    continue
                if name not in missing:
                    raise DatasetError(f"{source} is refused: it holds {name} twice")
                # Links and devices could stand for another file; sparse members for more than was stored.
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise DatasetError(f"{source} is refused: its member {name} is not a regular file")
                content = archive.extractfile(member)
                if content is None:
                    raise DatasetError(f"{source} is refused: its member {name} has no content")
                missing.discard(name)
                yield name, read_at_most(content, limits[name], f"member {name} of {source}")
                if not missing:
                    return
    except DatasetError:
        raise
    # The last two: what tarfile lets through for headers that were made to hurt.
    except (*DAMAGED, ValueError, RecursionError) as error:
        raise DatasetError(f"{source} is damaged or cut short: {_reason(error)}") from error
    raise DatasetError(f"{source} lacks {', '.join(sorted(missing))}")


def read_gzipped_members(path: Path, limits: Mapping[str, int], *, total_limit: int) -> Iterator[tuple[str, bytes]]:
    """:func:`read_members` of a ``.tar.gz`` or ``.tgz`` file."""
    try:
        stream = gzip.open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {_reason(error)}") from error
    with stream:
        yield from read_members(stream, limits, total_limit=total_limit, source=str(path))  # type: ignore[arg-type]


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
