""".npy and .npz: what is mapped, what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from scatterdp.errors import DatasetError
from scatterdp.tables import read_table
from scatterdp.tables.arrays import open_npy, open_npz
from scatterdp.tables.source import Source

X = np.arange(12, dtype=np.float32).reshape(4, 3)


def source(path: Path, key: str | None = None) -> Source:
    return Source(argument="features", text=str(path), path=path, key=key)


def npy_bytes(array: np.ndarray, **how) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64", "int8", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_mapped(tmp_path, dtype, order):
    np.save(tmp_path / "x.npy", np.asarray(X, dtype, order=order))
    x = open_npy(source(tmp_path / "x.npy"))
    assert isinstance(x, np.memmap)
    assert x.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(x[1:3], X.astype(dtype)[1:3])
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 0


@pytest.mark.parametrize("order", ["C", "F"])
def test_stored_npz_is_mapped(tmp_path, order):
    np.savez(tmp_path / "x.npz", first=np.zeros(5), x=np.asarray(X, order=order))
    x = open_npz(source(tmp_path / "x.npz", "x"))
    assert isinstance(x, np.memmap)
    np.testing.assert_array_equal(x, X)


def test_compressed_npz_is_read(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", x=X)
    np.testing.assert_array_equal(open_npz(source(tmp_path / "x.npz")), X)


def test_the_only_array_needs_no_key(tmp_path):
    np.savez(tmp_path / "x.npz", X)
    np.testing.assert_array_equal(open_npz(source(tmp_path / "x.npz")), X)


def test_several_arrays_and_no_key(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=X, y=np.arange(4))
    with pytest.raises(DatasetError) as raised:
        read_table(str(path))
    assert str(raised.value) == f"features={path}: holds 2 arrays (x, y), name one: --features={path}:x"
    with pytest.raises(DatasetError, match=r":z: holds no z, only x, y$"):
        read_table(f"{path}:z")


def test_objects_are_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    objects = np.array([Trap(), Trap()], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", objects)
    np.savez_compressed(tmp_path / "y.npz", objects)
    for name in ("x.npy", "x.npz", "y.npz"):
        with pytest.raises(DatasetError) as raised:
            read_table(str(tmp_path / name))
        assert str(raised.value) == (
            f"features={tmp_path / name}: it holds Python objects (pickled), which are not read: "
            "save an array of numbers, or of strings for labels"
        )
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("compress", [True, False])
def test_sparse_matrices(tmp_path, compress):
    sparse.save_npz(tmp_path / "x.npz", sparse.csr_matrix(X), compressed=compress)
    with pytest.raises(DatasetError) as raised:
        read_table(str(tmp_path / "x.npz"))
    assert str(raised.value) == (
        f"features={tmp_path / 'x.npz'}: is a sparse matrix (scipy.sparse): make it dense with .toarray(), "
        "or, when that is too large, reduce its dimension first"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no readable .npy array: save it with numpy.save"),
        (b"\x80\x04N.", "holds no readable .npy array: save it with numpy.save"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "holds no readable .npy array: save it with numpy.save"),
        (npy_bytes(X)[:-1], "is cut short, it has fewer bytes than its header says: save or copy it again"),
    ],
)
def test_damaged_npy(tmp_path, content, message):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as raised:
        read_table(str(path))
    assert str(raised.value) == f"features={path}: {message}"


def test_damaged_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(50, 20)))
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"is no \.npz \(no zip archive, or cut short\)"):
            read_table(str(path))
    path.write_bytes(whole[:200] + b"\xff" * 50 + whole[250:])
    with pytest.raises(DatasetError, match=r"is a damaged \.npz \("):
        read_table(str(path))


def test_members_that_are_no_arrays(tmp_path):
    path = tmp_path / "x.npz"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("notes.txt", "mine" * 30)
        with pytest.raises(DatasetError, match=r"no readable \.npy array|is no numpy array"):
            read_table(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy_bytes(X) + b"more")
    with pytest.raises(DatasetError, match=r"x\.npy has another size"):
        read_table(str(path))
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(DatasetError, match=r"holds no array$"):
        read_table(str(path))
