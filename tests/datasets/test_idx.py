from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scatterdp.datasets.idx import decode_idx, idx_size, read_idx_folder
from scatterdp.errors import DatasetError


def encode(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3)))
def test_round_trip(array: np.ndarray) -> None:
    decoded = decode_idx(encode(array), array.shape, "made")
    np.testing.assert_array_equal(decoded, array)
    assert decoded.flags.writeable
    assert len(encode(array)) == idx_size(array.shape)


@given(st.binary(max_size=64))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(DatasetError, match="made "):
        decode_idx(data, (100, 5), "made")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\x00\x00\x0d\x02" + data[4:], "starts with 00000d02, expected the IDX magic number 00000802"),
        (lambda data: data[:9], "is cut short in its header"),
        (lambda data: encode(np.zeros((3, 2), np.uint8)), r"says shape \(3, 2\), expected \(2, 3\)"),
        (lambda data: data[:-1], "has 17 bytes, expected 18"),
        (lambda data: data + b"x", "has 19 bytes, expected 18"),
    ],
)
def test_bad_files(change, message: str) -> None:
    data = encode(np.zeros((2, 3), np.uint8))
    with pytest.raises(DatasetError, match=f"made {message}"):
        decode_idx(change(data), (2, 3), "made")


@pytest.mark.parametrize("compress", [False, True])
def test_folder(tmp_path: Path, tiny, write_files, compress: bool) -> None:
    made = tiny("mnist")
    write_files(tmp_path, made.idx_files(), compress=compress)
    for name, array in read_idx_folder(made.published, tmp_path).items():
        np.testing.assert_array_equal(array, made.arrays[name])


def test_incomplete_folder(tmp_path: Path, tiny, write_files) -> None:
    made = tiny("mnist")
    write_files(tmp_path, made.idx_files())
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DatasetError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        read_idx_folder(made.published, tmp_path)
