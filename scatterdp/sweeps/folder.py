"""A sweep's folder: made, or taken up again, and held against a second sweep."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from scatterdp.errors import ConfigError, UserError
from scatterdp.sweeps.record import NAME, SweepRecord
from scatterdp.writing import write_whole

OUTLINE = "outline.toml"
_LOCK = ".lock"
_PARTS = ("runs", "logs")


class SweepFolder:
    """The folder at ``path`` (absolute: workers may live elsewhere)."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def has_begun(self) -> bool:
        """Whether a sweep has written its record here."""
        return (self.path / NAME).exists()

    def check(self, outline: str, random_mean: float | None) -> SweepRecord | None:
        """The record to go on with, or None for a new sweep; changes nothing.

        Args:
            outline: its text.
            random_mean: the mean of the random number of runs; None for a grid.

        Raises:
            ConfigError: something else is there, or a sweep of another outline or kind, or no folder can be made there.
        """
        if not self.has_begun:
            self._check_new()
            return None
        record = SweepRecord.load(self.path)
        try:
            same = tomllib.loads((self.path / OUTLINE).read_text(encoding="utf-8")) == tomllib.loads(outline)
        except (OSError, ValueError) as error:
            raise ConfigError(f"out={self.path}: its {OUTLINE} cannot be read ({error}); give another --out") from error
        if not same:
            raise ConfigError(
                f"out={self.path}: holds a sweep of another outline ({OUTLINE} in it) and is left alone; give another --out"
            )
        if record.random_mean != random_mean:
            was = "a grid" if record.random_mean is None else f"--random={record.random_mean:g}"
            raise ConfigError(f"out={self.path}: holds a sweep of the same outline, but {was}; give another --out")
        return record

    def _check_new(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out={self.path}: is a file and is left alone; give another --out")
        known = {_LOCK, OUTLINE, OUTLINE + ".tmp", NAME + ".tmp"}
        there = list(self.path.iterdir()) if self.path.exists() else []
        strange = sorted(path.name for path in there if path.name not in known and not _is_empty_part(path))
        if strange:
            raise ConfigError(
                f"out={self.path}: holds something that is no sweep ({strange[0]}) and is left alone; give another --out"
            )
        nearest = next(parent for parent in (self.path, *self.path.parents) if parent.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise ConfigError(f"out={self.path}: {nearest} is not a folder to write in; give another --out")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it; one that was made for nothing is gone again when the block ends.

        Raises:
            UserError: another live process has it.
            ConfigError: it cannot be made.
        """
        made = [path for path in (self.path, *self.path.parents) if not path.exists()]  # the innermost first
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / _LOCK, timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"out={self.path}: another live process runs this sweep; wait for it (follow it with `python -m scatterdp report --tail "
                f"{self.path}`), or give another --out"
            ) from None
        except OSError as error:
            raise ConfigError(f"out={self.path}: cannot be written ({error.strerror}); give another --out") from error
        try:
            yield
        finally:
            lock.release()
            if not self.has_begun and made:
                with suppress(OSError):  # something else may have come to live there
                    (self.path / _LOCK).unlink()
                    for path in made:
                        path.rmdir()

    def begin(self, outline: str) -> None:
        """Make what a sweep needs in its folder."""
        write_whole(self.path / OUTLINE, outline)
        for name in _PARTS:
            (self.path / name).mkdir(exist_ok=True)


def _is_empty_part(path: Path) -> bool:
    """Whether it is what a sweep has left that was stopped, or found the disk full, before its first record."""
    return path.name in _PARTS and path.is_dir() and not any(path.iterdir())


def is_running(path: Path) -> bool:
    """Whether a live process runs the sweep in this folder."""
    if not (path / _LOCK).exists():
        return False
    try:
        with filelock.FileLock(path / _LOCK).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except PermissionError:
        return True  # a folder that we may only read: we cannot know
