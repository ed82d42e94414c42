"""``.csv`` and lines of text: numbers in columns, and labels one a line.

The separator is a tab, a semicolon or a comma, the first of these that the first line has. A first line without a single number
is a header, and so is ``0,1,2,…`` of eight columns or more (what pandas writes above unnamed columns; of fewer it may be data).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np

from scatterdp.errors import DatasetError
from scatterdp.tables.source import Source, listed

_ROWS_AT_ONCE = 1024
_LEAST_NUMBERED = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """What a ``.csv`` holds.

    Args:
        x: ``(N, D)`` float32, every column but that of the labels.
        labels: the labels' cells, or None.
    """

    x: np.ndarray
    labels: list[str] | None


def column_names(source: Source) -> list[str]:
    """The first line's cells."""
    with _lines(source) as lines:
        return next(lines, (1, []))[1]


def read_columns(source: Source, *, labels: str | None = None) -> Columns:
    """Read a ``.csv`` of numbers.

    Args:
        source: the file.
        labels: the name of a column in the header that holds labels, numbers or not; it is no feature.

    Raises:
        DatasetError: a cell that is no number (its line and column are named), lines of unequal length, a column without a name, no rows.
    """
    blocks: list[np.ndarray] = []
    cells: list[list[str]] = []
    found: list[str] = []
    with _lines(source) as lines:
        _, first = next(lines, (1, []))
        if not first:
            raise source.error("the table is empty, expected at least one row")
        width, at = len(first), None
        if labels is not None:
            at = _position(source, first, labels)
        header = first if at is not None or _is_header(first) else None
        if header is not None and "" in header:
            raise source.error(
                f"column {header.index('') + 1} has no name, it may number the rows: "
                "write the file without it (pandas: index=False)"
            )
        begin = 1 if header is None else 2
        numbers = [1] if header is None else []
        if header is None:
            cells.append(first)

        def flush() -> None:
            if cells:
                if at is not None:
                    found.extend(row.pop(at) for row in cells)
                blocks.append(_numbers(source, cells, numbers, header, at))
                cells.clear()
                numbers.clear()

        for number, row in lines:
            if len(row) != width:
                raise source.error(f"line {number} has {len(row)} cells, line 1 has {width}: expected as many in each")
            cells.append(row)
            numbers.append(number)
            if len(cells) == _ROWS_AT_ONCE:
                flush()
        flush()
    if not blocks:
        raise source.error(
            f"the table is empty: no line after the header (line {begin - 1}), expected at least one row"
        )
    return Columns(x=np.concatenate(blocks), labels=found if at is not None else None)


def read_label_lines(source: Source) -> list[str]:
    """The labels in a ``.txt`` or ``.csv``: one a line, or, for a ``.csv`` with a key, that column.

    A first line that is no number above lines that all are is a header. Empty lines at the end do not count.

    Raises:
        DatasetError: several columns and no key, no such column, no lines.
    """
    if source.suffix == ".txt":
        with _opened(source) as file:
            lines = [line.strip() for line in file]
    else:
        with _lines(source) as rows:
            table = list(rows)
        width = max((len(row) for _, row in table), default=0)
        at = 0
        if source.key is not None:
            at = _position(source, table[0][1] if table else [], source.key)
            table = table[1:]
        elif width > 1:
            raise source.error(
                f"has {width} columns ({listed(table[0][1])}), expected one label a line: name a column, "
                f"--{source.argument}={source.path}:COLUMN"
            )
        short = next((number for number, row in table if len(row) <= at), None)
        if short is not None:
            raise source.error(f"line {short} has no cell in column {at + 1}: expected a label in each line")
        lines = [row[at].strip() for _, row in table]
    while lines and not lines[-1]:
        lines.pop()
    if source.key is None and len(lines) > 1 and not _is_number(lines[0]) and all(map(_is_number, lines[1:])):
        lines = lines[1:]
    return lines


def _position(source: Source, header: list[str], name: str) -> int:
    places = [place for place, cell in enumerate(header) if cell == name]
    if len(places) != 1:
        how = "twice" if places else "not"
        raise source.error(f"column {name} is {how} in its first line ({listed(header)}), expected once")
    return places[0]


def _numbers(
    source: Source, rows: list[list[str]], lines: list[int], header: list[str] | None, left_out: int | None
) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite and is told as such
            return np.array(rows, dtype=np.float64).reshape(len(rows), -1).astype(np.float32)
    except ValueError:
        for number, row in zip(lines, rows, strict=True):
            for place, cell in enumerate(row):
                if not _is_number(cell):
                    column = place + (left_out is not None and place >= left_out)
                    name = f" ({listed([header[column]])})" if header is not None else ""
                    raise source.error(
                        f"line {number}, column {column + 1}{name}: {listed([cell])!r} is no number; "
                        "a column of labels is named by --labels=COLUMN"
                        if cell.strip()
                        else f"line {number}, column {column + 1}{name} is empty: expected a number"
                    ) from None
        raise


def _is_header(cells: list[str]) -> bool:
    numbered = len(cells) >= _LEAST_NUMBERED and cells == [str(place) for place in range(len(cells))]
    return numbered or not any(map(_is_number, cells))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@contextmanager
def _lines(source: Source) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Numbered lines as stripped cells; empty ones are left out."""
    with _opened(source) as file:
        first = file.readline()
        file.seek(0)
        separator = next((sign for sign in "\t;" if sign in first), ",")
        reader = csv.reader(file, delimiter=separator)

        def rows() -> Iterator[tuple[int, list[str]]]:
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, [cell.strip() for cell in row]
            except csv.Error as error:
                raise source.error(f"line {reader.line_num} is no line of a .csv ({error})") from error

        yield rows()


@contextmanager
def _opened(source: Source) -> Iterator[IO[str]]:
    try:
        with source.path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except DatasetError:
        raise
    except UnicodeDecodeError as error:
        raise source.error("is no UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise source.error(f"cannot be read ({error.strerror}); check the file and who may read it") from error
