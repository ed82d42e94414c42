"""Files that appear whole or not at all, and folders that were empty."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from scatterdp.errors import ConfigError

#: What the system says of a disk, a quota or a file that is full.
DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def make_folder(path: Path, *, argument: str) -> None:
    """Make a folder where there is none.

    Args:
        argument: the flag that named it, for messages.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{argument}={path}: cannot be written ({error.strerror}); give another") from error


def new_folder(path: Path, *, argument: str) -> None:
    """Make a folder, or take an empty one.

    Args:
        argument: the flag that named it, for messages.

    Raises:
        ConfigError: something is there, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError(f"{argument}={path}: holds files already and is left alone; give a new or empty folder")
    except OSError as error:
        message = f"{argument}={path}: is no folder to write in ({error.strerror}); give another --{argument}"
        raise ConfigError(message) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file atomically; text is written as UTF-8."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A new file that replaces ``path`` when the block has ended; after an error nothing is left of it.

    Args:
        private: readable by the owner only, and there after a power cut, too.
    """
    temporary = path.with_name(path.name + ".tmp")
    mode = 0o600 if private else 0o666  # the system takes the umask off

    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if private:
                os.fchmod(file.fileno(), mode)  # it may have been there
            yield file
            if private:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if private:
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename last; Windows has no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(value: Any) -> str:
    """Strict JSON for people and programs: indented, numbers finite, text as it is.

    >>> json_text({"ε": 3.0})
    '{\\n  "ε": 3.0\\n}\\n'
    """
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
