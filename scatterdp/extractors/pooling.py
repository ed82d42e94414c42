"""Which cell of a pooling grid each position of a map belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scatterdp.errors import ConfigError


@dataclass(frozen=True)
class Pooling:
    """A map of positions, row after row, divided into cells without overlap.

    Args:
        cells: ``(positions,)`` the cell of each position.
        counts: ``(cells,)`` positions of each cell.
        mirrored: ``(cells,)`` the cell at the mirrored place of each.
    """

    cells: np.ndarray
    counts: np.ndarray
    mirrored: np.ndarray


def grid_pooling(rows: int, columns: int, grid: int, *, across: int | None = None) -> Pooling:
    """A grid of ``grid`` cells down and ``across``, as equal as whole positions allow.

    Args:
        rows, columns: of positions.
        grid: cells down.
        across: cells across; None: as many as down.

    Raises:
        ConfigError: more cells than positions a side.
    """
    across = grid if across is None else across
    for cells, side in ((grid, rows), (across, columns)):
        if not 1 <= cells <= side:
            raise ConfigError(
                f"grid={cells}: expected 1 to {min(rows, columns)}, the positions a side; take fewer cells or smaller patches"
            )
    row = np.searchsorted(_edges(rows, grid), np.arange(rows), side="right")
    column = np.searchsorted(_edges(columns, across), np.arange(columns), side="right")
    cells = (row[:, None] * across + column).ravel()
    place = np.arange(grid * across)
    mirrored = place + across - 1 - 2 * (place % across)
    return Pooling(cells, np.bincount(cells, minlength=grid * across), mirrored)


def _edges(length: int, grid: int) -> np.ndarray:
    """Where all cells but the first begin; mirrored onto themselves unless a middle edge falls into the middle position."""
    first = [int(length * k / grid + 0.5) for k in range(1, (grid + 1) // 2)]
    middle = [length // 2] if grid % 2 == 0 else []
    return np.array([*first, *middle, *(length - edge for edge in reversed(first))], dtype=int)
