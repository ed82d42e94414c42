"""The journals beside an unfinished cache: which rows of each split are complete.

Each process that writes keeps one of its own; what is complete is what any of them says. An entry is an interval
``[first, last + 1]`` of rows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from scatterdp.cache.files import SPLITS, Split, beside, journal_path, journal_paths, remedy
from scatterdp.errors import CacheError

#: Sorted, disjoint intervals of rows.
Intervals = list[tuple[int, int]]


def journaled(path: Path) -> dict[Split, Intervals]:
    """Complete rows of each split by all journals together; none where there are none.

    Raises:
        CacheError: a journal cannot be understood.
    """
    rows: dict[Split, Intervals] = {split: [] for split in SPLITS}
    for journal in journal_paths(path):
        if journal.suffix == ".new":
            continue
        try:
            found = json.loads(journal.read_text())
            for split in SPLITS:
                rows[split] += [(int(first), int(stop)) for first, stop in found[split]]
        except FileNotFoundError:  # its cache has just been published
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{journal}: is unreadable ({error}); {remedy(path)}") from error
    return {split: merged(intervals) for split, intervals in rows.items()}


def merged(intervals: Intervals) -> Intervals:
    """The same rows as sorted, disjoint intervals that do not touch.

    >>> merged([(4, 6), (0, 2), (2, 4), (9, 12), (10, 11)])
    [(0, 6), (9, 12)]
    """
    result: Intervals = []
    for first, stop in sorted(intervals):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((first, stop))
    return result


def missing(intervals: Intervals, rows: int) -> Intervals:
    """The rows below ``rows`` that are in none of the (merged) intervals.

    >>> missing([(0, 6), (9, 12)], 14)
    [(6, 9), (12, 14)]
    """
    starts = [0, *(stop for _, stop in intervals)]
    stops = [*(first for first, _ in intervals), rows]
    return [(first, stop) for first, stop in zip(starts, stops, strict=True) if first < stop]


def count(intervals: Intervals) -> int:
    """Number of rows in disjoint intervals."""
    return sum(stop - first for first, stop in intervals)


def write_journal(path: Path, rank: int, done: dict[Split, Intervals]) -> None:
    """Replace a process's journal atomically; the rows must have reached the disk before."""
    journal = journal_path(path, rank)
    new = beside(journal, ".new")
    with open(new, "w") as file:
        json.dump(done, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, journal)
