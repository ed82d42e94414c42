"""Pooling cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterdp.errors import ConfigError
from scatterdp.extractors.pooling import grid_pooling


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), data=st.data())
def test_cells_share_the_positions(rows, columns, data):
    grid = data.draw(st.integers(1, min(rows, columns)))
    pooling = grid_pooling(rows, columns, grid)
    assert pooling.counts.sum() == rows * columns
    assert pooling.counts.min() >= 1
    assert np.array_equal(np.bincount(pooling.cells, minlength=grid * grid), pooling.counts)
    by_row = pooling.cells.reshape(rows, columns)
    assert (np.diff(by_row % grid, axis=1) >= 0).all()
    assert (np.diff(by_row // grid, axis=0) >= 0).all()
    assert np.array_equal(pooling.mirrored[pooling.mirrored], np.arange(grid * grid))
    if columns % 2 == 0 or grid % 2 == 1:
        assert np.array_equal(pooling.mirrored[by_row], by_row[:, ::-1])


@pytest.mark.parametrize("grid", [0, 4])
def test_finer_than_the_positions(grid):
    with pytest.raises(ConfigError, match=f"grid={grid}: expected 1 to 3"):
        grid_pooling(3, 5, grid)
