"""Values: in blocks, finite, of one shape."""

from __future__ import annotations

import numpy as np
import pytest

from scatterdp.errors import DatasetError
from scatterdp.tables import read_table, row_blocks
from scatterdp.tables import table as table_module


@pytest.fixture
def saved(tmp_path):
    def save_and_read(x: np.ndarray):
        np.save(tmp_path / "x.npy", x)
        return read_table(str(tmp_path / "x.npy"))

    return save_and_read


@pytest.mark.parametrize(("block_bytes", "rows"), [(1, 1), (24, 1), (25, 1), (48, 2), (10**6, 7)])
def test_blocks(block_bytes, rows):
    x = np.arange(21.0).reshape(7, 3)
    blocks = list(row_blocks(x, block_bytes=block_bytes))
    assert [start for start, _ in blocks] == list(range(0, 7, rows))
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), x)


@pytest.mark.parametrize(
    ("value", "dtype", "what"),
    [
        (np.nan, "float16", "NaN"),
        (np.inf, "float32", "an infinite value"),
        (-np.inf, "float64", "an infinite value"),
        (np.nan, "float64", "NaN"),
        (-1e39, "float64", "-1e+39, beyond single precision,"),
    ],
)
def test_values_that_are_not_finite(saved, tmp_path, monkeypatch, value, dtype, what):
    monkeypatch.setattr(table_module.row_blocks, "__kwdefaults__", {"block_bytes": 64})
    x = np.zeros((30, 4), dtype)
    x[17, 2] = x[17, 3] = x[25, 0] = value
    with pytest.raises(DatasetError) as raised:
        saved(x)
    assert str(raised.value) == (
        f"features={tmp_path / 'x.npy'}: row 17 holds {what} in column 2 (both counted from 0): "
        "replace such values or leave the row out"
    )


def test_the_largest_values_pass(saved):
    x = np.array([[np.finfo(np.float32).max, -np.finfo(np.float32).max]], np.float64)
    np.testing.assert_array_equal(saved(x).x, x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), "it has shape (3,), expected (N, D): one row of D features an example, so reshape it to that (images: give a folder)"),
        (np.zeros((2, 3, 4)), "it has shape (2, 3, 4), expected (N, D): one row of D features an example, so reshape it to that (images: give a folder)"),
        (np.zeros(()), "it has shape (), expected (N, D): one row of D features an example, so reshape it to that (images: give a folder)"),
        (np.zeros((0, 4)), "the table is empty (shape (0, 4)), expected at least one row"),
        (np.zeros((4, 0)), "its rows are empty (shape (4, 0)), expected at least one feature"),
        (np.array([["a"]]), "its values are <U1, expected real numbers"),
        (np.array([[1j]]), "its values are complex128, expected real numbers"),
    ],
)  # fmt: skip
def test_what_is_no_table(saved, tmp_path, x, message):
    with pytest.raises(DatasetError) as raised:
        saved(x)
    assert str(raised.value) == f"features={tmp_path / 'x.npy'}: {message}"
