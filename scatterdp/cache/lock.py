"""One writer a cache: a lock that dies with its process, and a note of who holds it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from scatterdp.cache.files import beside
from scatterdp.errors import CacheLockedError

_LOCK_GRACE_SECONDS = 0.25  # `cache ls` takes a lock for an instant to see whether it is held


@contextlib.contextmanager
def writer_lock(path: Path, *, timeout: float = 0.0) -> Iterator[None]:
    """Hold the writer's lock of the cache at ``path``. A dead process holds no lock.

    Raises:
        CacheLockedError: a live process holds it for longer than ``timeout`` seconds.
    """
    owner = beside(path, ".pid")
    lock = filelock.FileLock(beside(path, ".lock"))
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
    if not beside(path, ".lock").exists():
        return None
    lock = filelock.FileLock(beside(path, ".lock"))
    try:
        with lock.acquire(timeout=0):
            return None
    except filelock.Timeout:
        return _owner_text(beside(path, ".pid"))
    except PermissionError:
        return None  # a shared folder that we may only read: we cannot know


def _owner_text(owner: Path) -> str:
    try:
        pid, host = owner.read_text().split()
    except (FileNotFoundError, ValueError):  # it has just come, or is just leaving
        return "another process"
    return f"process {pid}" if host == socket.gethostname() else f"process {pid} on {host}"
