from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scatterdp.datasets import Dataset, load_dataset
from scatterdp.errors import DatasetError

X = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


@pytest.fixture
def load(tmp_path: Path):
    def save_and_load(compress: bool = False, **changes: Any) -> Dataset:
        arrays = {"x_train": X, "y_train": [0, 1, 1], "x_test": X[:2], "y_test": [1, 0]} | changes
        path = tmp_path / "mine.npz"
        save = np.savez_compressed if compress else np.savez
        save(path, **{key: value for key, value in arrays.items() if value is not None})
        return load_dataset(str(path))

    return save_and_load


def test_uint8(load) -> None:
    dataset = load(compress=True)
    assert dataset.name == "mine"
    np.testing.assert_array_equal(dataset.x_train, X)
    assert dataset.class_names == ("0", "1")
    assert dataset.image_shape == (1, 4, 5)


def test_one_channel_is_grey_and_three_are_rgb(load) -> None:
    assert load(x_train=X[..., None]).image_shape == (1, 4, 5)
    rgb = np.stack([X] * 3, axis=-1)
    assert load(x_train=rgb, x_test=rgb[:2]).image_shape == (3, 4, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_rounded_to_255_steps(load, dtype: type) -> None:
    np.testing.assert_array_equal(load(x_train=(X / 255).astype(dtype)).x_train, X)
    assert load(x_train=np.full((3, 4, 5), 0.999, dtype)).x_train.max() == 255


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64, np.int64])
def test_integer_labels_of_any_width(load, dtype: type) -> None:
    assert load(y_train=np.array([0, 2, 1], dtype)).class_names == ("0", "1", "2")


def test_string_labels_are_numbered_in_order(load) -> None:
    dataset = load(y_train=["dog", "cat", "dog"], y_test=np.array([b"cat", b"dog"]))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.y_train.tolist() == [1, 0, 1]
    assert dataset.y_test.tolist() == [0, 1]


def test_class_names(load) -> None:
    names = ["dog", "cat", "fox"]
    assert load(class_names=names).class_names == ("dog", "cat", "fox")
    assert load(class_names=names, y_test=[2, 0]).y_test.tolist() == [2, 0]
    assert load(class_names=names, y_train=["fox", "dog", "dog"], y_test=["cat", "cat"]).y_train.tolist() == [2, 0, 0]


NAN = np.where(np.arange(60).reshape(3, 4, 5) < 2, np.nan, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None, "y_test": None}, r"the \.npz lacks x_test, y_test, it holds x_train, y_train"),
        ({"x_train": NAN}, r"x_train has 2 values that are not in \[0, 1\]"),
        ({"x_train": np.full((3, 4, 5), np.inf)}, "x_train has 60 values"),
        ({"x_train": np.full((3, 4, 5), -0.001)}, "x_train has 60 values"),
        ({"x_test": X[:2] / 1.0}, "x_test has 38 values"),
        ({"x_train": X.astype(np.int32)}, "x_train is int32, expected uint8, or floats"),
        ({"x_train": X[0]}, r"x_train has shape \(4, 5\), expected \(N, H, W\)"),
        ({"x_train": np.zeros((3, 4, 5, 4), np.uint8)}, r"x_train has shape \(3, 4, 5, 4\)"),
        ({"x_train": np.zeros((3, 0, 5), np.uint8)}, r"x_train has shape \(3, 0, 5\)"),
        ({"x_test": np.zeros((2, 5, 5), np.uint8)}, r"train images are \(4, 5\) but test images are \(5, 5\)"),
        ({"y_train": [0, 1]}, r"y_train has shape \(2,\), expected \(3,\), one label an image"),
        ({"y_train": [[0], [1], [1]]}, r"y_train has shape \(3, 1\)"),
        ({"x_test": X[:0], "y_test": np.zeros(0, int)}, "x_test is empty"),
        ({"y_train": [0, -1, 1]}, "labels out of range: y_train has labels from -1 to 1, expected 0 to 1"),
        ({"y_test": [0, 2]}, "labels out of range: y_test has labels from 0 to 2, expected 0 to 1"),
        ({"y_train": [0, 1, 2], "class_names": ["a", "b"]}, "labels out of range: y_train"),
        ({"y_train": [0, 1, 10**12]}, "y_train has the label 1000000000000 but only 3 images"),
        ({"y_train": [1, 1, 1]}, "y_train holds one class only"),
        ({"y_train": ["a", "a", "a"], "y_test": ["a", "a"]}, "y_train holds one class only"),
        ({"y_train": [0.0, 1.0, 1.0]}, "y_train is float64 and y_test is int64, expected both integers"),
        ({"y_train": ["a", "b", "b"]}, "expected both integers or both strings"),
        ({"y_train": ["a", "b", "b"], "y_test": ["a", "c"]}, "y_test has the label 'c', which y_train lacks"),
        (
            {"y_train": ["a", "b", "b"], "y_test": ["a", "a"], "class_names": ["a", "c"]},
            "y_train has the label 'b', which class_names lacks",
        ),
        ({"class_names": ["a", "a"]}, "class_names holds a name twice"),
        ({"class_names": [1, 2]}, "class_names is int64"),
        ({"y_train": np.array([b"\xff", b"a", b"a"]), "y_test": ["a", "a"]}, "y_train holds bytes that are not UTF-8"),
        ({"x_train": np.array([1, "a", None], dtype=object)}, "it holds pickled objects, which are not read"),
    ],
)
def test_bad_arrays(load, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load(**changes)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    for content in (b"", b"x" * 100, b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"mine\.npz: not a readable \.npz"):
            load_dataset(str(path))
    with path.open("wb") as file:
        np.save(file, X)
    with pytest.raises(DatasetError, match=r"mine\.npz: not a readable \.npz"):
        load_dataset(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", b"text")
    with pytest.raises(DatasetError, match="x_train is not a numpy array"):
        load_dataset(str(path))


@given(position=st.integers(0, 1500), noise=st.binary(max_size=40), cut=st.booleans(), compress=st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_gives_a_dataset_error_or_no_change_of_kind(load, tmp_path, position, noise, cut, compress) -> None:
    load(compress=compress)
    path = tmp_path / "mine.npz"
    data = path.read_bytes()
    path.write_bytes(data[:position] if cut else data[:position] + noise + data[position + len(noise) :])
    try:
        dataset = load_dataset(str(path))
    except DatasetError:
        return
    assert dataset.x_train.dtype == np.uint8
