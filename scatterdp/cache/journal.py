"""The journal beside an unfinished cache: how many rows of each split are complete."""

from __future__ import annotations

import json
import os
from pathlib import Path

from scatterdp.cache.files import SPLITS, Split, beside, remedy
from scatterdp.errors import CacheError


def journal_path(path: Path) -> Path:
    """Where the journal of the cache at ``path`` is."""
    return beside(path, ".progress")


def journaled_rows(path: Path) -> dict[Split, int]:
    """Complete rows of each split by the journal; zero where there is none.

    Raises:
        CacheError: the journal cannot be understood.
    """
    journal = journal_path(path)
    try:
        found = json.loads(journal.read_text())
        return {split: int(found[split]) for split in SPLITS}
    except FileNotFoundError:
        return dict.fromkeys(SPLITS, 0)
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{journal}: is unreadable ({error}); {remedy(path)}") from error


def write_journal(path: Path, done: dict[Split, int]) -> None:
    """Replace the journal atomically; the rows must have reached the disk before."""
    new = beside(path, ".progress.new")
    with open(new, "w") as journal:
        json.dump(done, journal)
        journal.flush()
        os.fsync(journal.fileno())
    os.replace(new, journal_path(path))
