"""More labelled images: from a pickle, an .npz and HDF5."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scatterdp.errors import DatasetError
from scatterdp.tables.labelled_images import open_labelled_images

IMAGES = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(500) % 10


def write(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        path.write_bytes(pickle.dumps(arrays, 3))
    return path


def opened(path: Path):
    return open_labelled_images("tiny_images", str(path), image_shape=(3, 32, 32), num_classes=10)


@pytest.mark.parametrize("suffix", [".pickle", ".pkl", ".npz", ".h5"])
@pytest.mark.parametrize("name", ["extrapolated_targets", "targets"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_every_kind_of_file_gives_the_same(tmp_path, suffix, name, dtype):
    images, labels = opened(write(tmp_path / f"more{suffix}", data=IMAGES, **{name: LABELS.astype(dtype)}))
    assert images.shape == IMAGES.shape
    assert np.array_equal(images[3:77], IMAGES[3:77])
    rows = np.array([0, 4, 499])
    assert np.array_equal(images[rows], IMAGES[rows])
    assert labels.dtype == np.int64
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize("suffix", [".pickle", ".npz", ".h5"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": IMAGES[:, :, :, 0]}, r"its data is uint8 of shape (500, 32, 32), expected uint8 (n, 32, 32, 3)"),
        ({"data": IMAGES.astype(np.float32)}, "its data is float32 of shape"),
        ({"data": IMAGES.transpose(0, 3, 1, 2)}, "its data is uint8 of shape (500, 3, 32, 32)"),
        ({"extrapolated_targets": LABELS[:-1]}, "its labels are int64 of shape (499,), expected whole numbers (500,)"),
        ({"extrapolated_targets": LABELS[:, None]}, "its labels are int64 of shape (500, 1)"),
        ({"extrapolated_targets": LABELS / 2}, "its labels are float64"),
        ({"extrapolated_targets": LABELS + 1}, "labels from 1 to 10, expected 0 to 9"),
        ({"extrapolated_targets": LABELS - 1}, "labels from -1 to 8, expected 0 to 9"),
        ({"data": IMAGES[:0], "extrapolated_targets": LABELS[:0]}, "holds no images"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, suffix, changes, message):
    path = write(tmp_path / f"more{suffix}", **{"data": IMAGES, "extrapolated_targets": LABELS} | changes)
    with pytest.raises(DatasetError) as raised:
        opened(path)
    assert str(raised.value).startswith(f"tiny_images={path}: {message}")


@pytest.mark.parametrize("suffix", [".pickle", ".npz", ".h5"])
@pytest.mark.parametrize("missing", ["data", "extrapolated_targets"])
def test_arrays_that_are_missing(tmp_path, suffix, missing):
    arrays = {"data": IMAGES, "extrapolated_targets": LABELS}
    del arrays[missing]
    path = write(tmp_path / f"more{suffix}", **arrays)
    with pytest.raises(DatasetError, match=r"holds (the arrays|no) .*"):
        opened(path)


def test_no_such_file_another_kind_and_a_damaged_one(tmp_path):
    with pytest.raises(DatasetError, match=r"^tiny_images=.*: there is no such file or folder$"):
        opened(tmp_path / "none.pickle")
    (tmp_path / "images.tar").touch()
    with pytest.raises(DatasetError, match=r"expected a file \.pickle, \.pkl, \.npz, \.h5, \.hdf5 with data and"):
        opened(tmp_path / "images.tar")
    for suffix in (".pickle", ".npz", ".h5"):
        whole = write(tmp_path / f"more{suffix}", data=IMAGES, extrapolated_targets=LABELS).read_bytes()
        (tmp_path / f"short{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DatasetError, match=rf"^tiny_images=.*short\{suffix}: "):
            opened(tmp_path / f"short{suffix}")


def test_labels_that_are_python_objects_are_not_called_missing(tmp_path):
    path = tmp_path / "more.npz"
    np.savez(path, data=IMAGES, extrapolated_targets=LABELS.astype(object))
    with pytest.raises(DatasetError, match="it holds Python objects"):
        opened(path)
