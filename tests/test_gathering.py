"""Rows by number from a cache's file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scatterdp.cache import SPLITS, FeatureCache, RowFile, extract_features
from scatterdp.cache import gathering as gathering_module
from scatterdp.errors import CacheError


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_those_of_the_cache(small_dataset, small_extractor, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("scatterdp.cache.layout._CHUNK_BYTES", 700)  # 7 or 14 rows a chunk
    with extract_features(small_dataset, small_extractor, features_dir=tmp_path, dtype=dtype) as features:
        assert features.rows_per_chunk("train") in (7, 14)
        rng = np.random.default_rng(0)
        for split in SPLITS:
            count = features.num_rows(split)
            reader = features.row_reader(split)
            for rows in (
                np.arange(count),
                np.arange(count)[::-1].copy(),
                np.array([], np.int64),
                np.array([count - 1]),
                rng.integers(0, count, 200),
                np.flatnonzero(rng.random(count) < 0.3),
            ):
                reader.expect(rows)
                found = reader.read(rows)
                assert found.dtype == np.dtype(dtype)
                assert np.array_equal(found, features.read(split, rows))
                found[...] = 0  # the caller's to change


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows"
    chunks = [5000, 100, 90_000]  # anywhere, in any order, gaps between them
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    content = bytearray(200_000)
    for number, offset in enumerate(chunks):
        part = rows[4 * number : 4 * number + 4].tobytes()
        content[offset : offset + len(part)] = part
    path.write_bytes(content)
    reader = RowFile(
        open(path, "rb", buffering=0),  # noqa: SIM115
        name="rows",
        shape=(3,),
        dtype=np.dtype(np.float32),
        chunks=np.array(chunks),
        rows_per_chunk=4,
    )
    return path, reader, rows


@given(wanted=st.lists(st.integers(0, 9), max_size=30), at_once=st.sampled_from([1, 5, 1 << 30]))
def test_any_rows_from_chunks_anywhere(numbers, wanted, at_once):
    _, reader, rows = numbers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering_module, "_AT_ONCE_BYTES", at_once)  # systems may give less than was asked for
        assert np.array_equal(reader.read(np.array(wanted, np.int64)), rows[wanted])


def test_near_rows_are_expected_in_one_request_and_far_ones_not(numbers, monkeypatch):
    _, reader, _ = numbers
    asked = []
    monkeypatch.setattr("os.posix_fadvise", lambda descriptor, *request: asked.append(request[:2]))
    reader.expect(np.array([8, 0, 3, 5]))
    assert asked == [(112, 5000 + 48 - 112), (90_000, 12)]


def test_a_file_that_was_cut_short_or_removed(small_dataset, small_extractor, tmp_path):
    with extract_features(small_dataset, small_extractor, features_dir=tmp_path) as features:
        reader, path = features.row_reader("test"), features.path
        with path.open("r+b") as file:
            file.truncate(5000)
        with pytest.raises(CacheError, match=r"is shorter than it was when it was opened; extract again$"):
            reader.read(np.arange(24))
        path.unlink()
        with pytest.raises(CacheError, match=r"cannot be opened again .* was it removed\?$"):
            features.row_reader("train")


def test_the_protocol_names_it(small_features: FeatureCache):
    assert isinstance(small_features.row_reader("train"), RowFile)
