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
        counts: ``(grid²,)`` positions of each cell.
        mirrored: ``(grid²,)`` the cell at the mirrored place of each.
    """

    cells: np.ndarray
    counts: np.ndarray
    mirrored: np.ndarray


def grid_pooling(rows: int, columns: int, grid: int) -> Pooling:
    """A grid of ``grid × grid`` cells, as equal as whole positions allow.

    Raises:
        ConfigError: more cells than positions a side.
    """
    if not 1 <= grid <= min(rows, columns):
        raise ConfigError(f"grid={grid}: expected 1 to {min(rows, columns)}, the positions a side")
    row, column = (np.searchsorted(_edges(length, grid), np.arange(length), side="right") for length in (rows, columns))
    cells = (row[:, None] * grid + column).ravel()
    place = np.arange(grid * grid)
    return Pooling(cells, np.bincount(cells, minlength=grid * grid), place + grid - 1 - 2 * (place % grid))


def _edges(length: int, grid: int) -> np.ndarray:
    """Where all cells but the first begin; mirrored onto themselves unless a middle edge falls into the middle position."""
    first = [int(length * k / grid + 0.5) for k in range(1, (grid + 1) // 2)]
    middle = [length // 2] if grid % 2 == 0 else []
    return np.array([*first, *middle, *(length - edge for edge in reversed(first))], dtype=int)
