""".h5: plain data sets in slices, feature caches with their splits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scatterdp.cache import extract_features
from scatterdp.errors import CacheError, ConfigError, DatasetError
from scatterdp.tables import read_table, read_tables, row_blocks

X = np.arange(12, dtype=np.float16).reshape(4, 3)


def write(path: Path, **arrays) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array
    return path


def told(features: str, *more: str) -> str:
    with pytest.raises(DatasetError) as raised:
        read_table(features, *more)
    return str(raised.value)


@pytest.mark.parametrize("suffix", ["h5", "hdf5", "H5"])
def test_the_only_data_set(tmp_path, suffix):
    table = read_table(str(write(tmp_path / f"x.{suffix}", group__x=X)))
    assert isinstance(table.x, h5py.Dataset)
    assert table.name == "x"
    np.testing.assert_array_equal(table.x[1:3], X[1:3])


def test_keys(tmp_path):
    path = write(tmp_path / "x.h5", train__x=X, y=np.arange(4))
    table = read_table(f"{path}:train/x", f"{path}:y")
    np.testing.assert_array_equal(table.x[:], X)
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 2, 3]
    assert told(str(path)) == f"features={path}: holds 2 data sets (train/x, y), name one: --features={path}:train/x"
    assert told(f"{path}:z") == f"features={path}:z: holds no data set z, only train/x, y"
    assert told(f"{path}:train").endswith(":train: holds no data set train, only train/x, y")


@pytest.mark.parametrize("length", [None, 5])
def test_string_labels(tmp_path, length):
    labels = np.array(["dög".encode(), b"cat", b"cat", "dög".encode()], dtype=h5py.string_dtype(length=length))
    path = write(tmp_path / "x.h5", x=X, y=labels)
    found = read_table(f"{path}:x", f"{path}:y").labels
    assert found is not None
    assert found.tolist() == ["dög", "cat", "cat", "dög"]
    assert found.dtype.kind == "U"


def test_what_is_no_hdf5(tmp_path):
    path = tmp_path / "x.h5"
    write(path, x=np.zeros((1000, 100)))
    content = path.read_bytes()
    for damaged in (b"", b"x" * 100, content[:5000]):
        path.write_bytes(damaged)
        assert told(str(path)) == (f"features={path}: is no readable HDF5 file, or cut short: write or copy it again")


def test_what_holds_nothing(tmp_path):
    assert told(str(write(tmp_path / "x.h5"))).endswith("x.h5: holds no data set")
    path = write(tmp_path / "y.h5", x=h5py.Empty("f4"))
    assert told(str(path)).endswith("the data set is empty, expected at least one row")


def test_compound_values(tmp_path):
    path = write(tmp_path / "x.h5", x=np.zeros(3, dtype=[("a", "f4")]))
    assert "expected real numbers" in told(str(path))
    words = write(tmp_path / "y.h5", x=np.array(["a", "b"], dtype=h5py.string_dtype()))
    assert "Python objects" in told(str(words))


def test_damage_inside(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.random.default_rng(0).normal(size=(64, 64)), chunks=(64, 64), compression=1)
        dataset: Any = file["x"]
        offset = dataset.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 100] = b"\xff" * 100
    path.write_bytes(content)
    message = told(str(path))
    assert message.startswith(f"features={path}: its values cannot be read (")
    assert message.endswith("): write or copy the file again")


def test_blocks_are_whole_chunks(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=np.arange(200.0).reshape(100, 2), chunks=(7, 2))
    x = read_table(str(tmp_path / "x.h5")).x
    blocks = list(row_blocks(x, block_bytes=16 * 20))
    assert [start for start, _ in blocks] == list(range(0, 100, 14))
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), np.arange(200.0).reshape(100, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory use in /proc")
def test_a_large_file_is_read_in_blocks(tmp_path):
    """200 MB of float16 without holding 60 MB more than before."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        x = file.create_dataset("x", (200_000, 512), np.float16, chunks=(2000, 512))
        for start in range(0, 200_000, 20_000):
            x[start : start + 20_000] = np.ones((20_000, 512), np.float16)
    assert (tmp_path / "x.h5").stat().st_size > 200e6
    program = (
        "import sys; from scatterdp.tables import read_table, row_blocks\n"
        # Not ru_maxrss, which a process inherits from the one that started it.
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "before = peak(); table = read_table(sys.argv[1])\n"
        "total = sum(float(block[:, 0].sum(dtype=float)) for _, block in row_blocks(table.x))\n"
        "print(len(table), total, (peak() - before) / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.h5")], capture_output=True, text=True, timeout=60, check=True
    )
    rows, total, grown = done.stdout.split()
    assert (int(rows), float(total)) == (200_000, 200_000)
    assert float(grown) < 60


@pytest.fixture(scope="module")
def path(small_dataset, small_extractor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with extract_features(small_dataset, small_extractor, features_dir=folder) as features:
        return features.path


class TestCache:
    def test_both_splits_with_class_names(self, path, small_dataset, small_features):
        tables = read_tables(str(path))
        assert tables.test is not None
        for split, table in (("train", tables.train), ("test", tables.test)):
            expected = small_features.read(split, range(small_features.num_rows(split))).reshape(-1, 24)
            assert table.x.shape == expected.shape
            np.testing.assert_array_equal(table.x[3:9], expected[3:9])
            np.testing.assert_array_equal(np.asarray(table.x), expected)
            names = np.array(small_dataset.class_names)
            np.testing.assert_array_equal(table.labels, names[small_dataset.split(split)[1]])
            assert table.name == "small"

    def test_one_split(self, path):
        assert len(read_table(f"{path}:train")) == 60
        assert len(read_table(f"{path}:test")) == 24
        assert told(str(path)) == (
            f"features={path}: is a feature cache with two splits, name one: --features={path}:train or …:test"
        )

    def test_for_the_test(self, path, small_dataset, tmp_path):
        np.save(tmp_path / "x.npy", np.zeros((3, 24), np.float32))
        (tmp_path / "y.txt").write_text("above\nbelow\nleft\n")
        tables = read_tables(str(tmp_path / "x.npy"), str(tmp_path / "y.txt"), str(path))
        assert tables.test is not None
        assert len(tables.test) == len(small_dataset.x_test)
        with pytest.raises(ConfigError, match=r"brings a test split; leave test_features out$"):
            read_tables(str(path), None, str(path))

    def test_its_labels_are_inside(self, path, tmp_path):
        assert told(f"{path}:train", "y.npy") == (
            f"features={path}:train: a feature cache holds its labels; leave labels=y.npy out"
        )

    def test_damage(self, path, tmp_path):
        damaged = tmp_path / path.name
        damaged.write_bytes(path.read_bytes())
        with h5py.File(damaged, "r") as file:
            features: Any = file["test/features"]
            offset = features.id.get_chunk_info(0).byte_offset
        with damaged.open("r+b") as file:
            file.seek(offset + 100)
            file.write(b"\x01\x02\x03")
        assert len(read_table(f"{damaged}:train")) == 60
        with pytest.raises(CacheError, match=r"test rows 0 to 23 do not match their digest; remove it with"):
            read_tables(str(damaged))
