"""Labels: the user's own values, from every kind of file."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from scatterdp.errors import DatasetError
from scatterdp.tables import read_table


@pytest.fixture
def labels_of(tmp_path):
    """Labels that are read for a table of as many rows."""

    def read(name: str, content, *, rows: int | None = None, key: str = "") -> np.ndarray:
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".npy"):
            np.save(path, content, allow_pickle=True)
        elif name.endswith(".npz"):
            np.savez(path, **content)
        else:
            with h5py.File(path, "w") as file:
                for where, array in content.items():
                    file[where] = array
        np.save(tmp_path / "x.npy", np.zeros((rows or 3, 2), np.float32))
        labels = read_table(str(tmp_path / "x.npy"), f"{path}{key}").labels
        assert labels is not None
        return labels

    return read


@pytest.mark.parametrize("dtype", ["int8", "uint64", ">i4", "float16", "float64"])
def test_whole_numbers(labels_of, dtype):
    labels = labels_of("y.npy", np.array([3, 1, 3], dtype))
    assert labels.dtype == np.int64
    assert labels.tolist() == [3, 1, 3]


def test_true_is_1(labels_of):
    assert labels_of("y.npy", np.array([True, False, True])).tolist() == [1, 0, 1]


@pytest.mark.parametrize("values", [["b", "a", "ç"], np.char.encode(["b", "a", "ç"])], ids=["text", "bytes"])
def test_strings_are_kept(labels_of, values):
    assert labels_of("y.npy", np.array(values)).tolist() == ["b", "a", "ç"]


def test_keys(labels_of):
    content = {"x": np.zeros((3, 2)), "y": np.array([5, 6, 5])}
    assert labels_of("y.npz", content, key=":y").tolist() == [5, 6, 5]
    assert labels_of("y.h5", content, key=":y").tolist() == [5, 6, 5]
    assert labels_of("only.npz", {"y": content["y"]}).tolist() == [5, 6, 5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n2\n1\n", [1, 2, 1]),
        ("1.0\n2\n1\n\n\n", [1, 2, 1]),
        (" cat\ndog\r\ncat", ["cat", "dog", "cat"]),
        ("label\n1\n2\n1\n", [1, 2, 1]),
        ("007\n8\n9\n", ["007", "8", "9"]),
        ("1\n2\nthree\n", ["1", "2", "three"]),
        ("99999999999999999999999\na\na\n", ["99999999999999999999999", "a", "a"]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_one_a_line(labels_of, text, expected, suffix):
    assert labels_of(f"y.{suffix}", text).tolist() == expected


def test_a_column_of_another_csv(labels_of):
    assert labels_of("y.csv", "id,label\n1,cat\n2,dog\n3,cat\n", key=":label").tolist() == ["cat", "dog", "cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("y.npy", np.array([0.0, 1.5, 1]), "the label of row 1 (counted from 0), 1.5, is not whole: expected whole numbers or strings"),
        ("y.npy", np.array([0.0, 1, np.nan]), "the label of row 2 (counted from 0), nan, is not finite: expected whole numbers or strings"),
        ("y.npy", np.array([-np.inf, 1, 0]), "the label of row 0 (counted from 0), -inf, is not finite: expected whole numbers or strings"),
        ("y.npy", np.array([1e30, 1, 0]), "the label of row 0 (counted from 0), 1e+30, is too large to be exact: expected whole numbers or strings"),
        ("y.npy", np.array([1, 2**64 - 1, 3], np.uint64), "the label 18446744073709551615 is beyond 64 bit with a sign: number the classes from 0"),
        ("y.npy", np.array([1j, 2, 3]), "the labels are complex128, expected whole numbers or strings"),
        ("y.npy", np.eye(3), "the labels have shape (3, 3), expected (N,): one label an example"),
        ("y.npy", np.zeros((3, 1), int), "the labels have shape (3, 1), expected (N,): one label an example"),
        ("y.npy", np.zeros(0, int), "there are no labels in it, expected one an example"),
        ("y.npy", np.array(["a", "", "b"]), "the label of row 1 (counted from 0) is empty: expected a label in each row"),
        ("y.npy", np.array([b"\xff", b"a", b"b"]), "the labels are bytes that are not UTF-8 text: save strings"),
        ("y.npy", np.array(["a", "b", "b"], object), "it holds Python objects (pickled), which are not read: save an array of numbers, or of strings for labels"),
        ("y.npz", {"a": np.arange(3), "b": np.arange(3)}, "holds 2 arrays (a, b), name one: --labels={path}:a"),
        ("y.h5", {"a": np.arange(3), "b": np.arange(3)}, "holds 2 data sets (a, b), name one: --labels={path}:a"),
        ("y.txt", "", "there are no labels in it, expected one an example"),
        ("y.txt", "a\n\nb\n", "the label of row 1 (counted from 0) is empty: expected a label in each row"),
        ("y.csv", "id,label\n1,cat\n", "has 2 columns (id, label), expected one label a line: name a column, --labels={path}:COLUMN"),
        ("y.json", "[1]", "has the suffix .json, expected .npy, .npz, .h5, .hdf5, .csv, .txt, FILE.npz:KEY or FILE.h5:KEY"),
        ("y", "1", "has the suffix (none), expected .npy, .npz, .h5, .hdf5, .csv, .txt, FILE.npz:KEY or FILE.h5:KEY"),
    ],
)  # fmt: skip
def test_bad_labels(labels_of, tmp_path, name, content, message):
    with pytest.raises(DatasetError) as raised:
        labels_of(name, content)
    assert str(raised.value) == f"labels={tmp_path / name}: " + message.format(path=tmp_path / name)


def test_another_number_of_labels(labels_of, tmp_path):
    x, y = tmp_path / "x.npy", tmp_path / "y.csv"
    with pytest.raises(DatasetError) as raised:
        labels_of("y.csv", "cat\ndog\n", rows=5)
    assert str(raised.value) == (f"features={x} has 5 rows but labels={y} has 2 labels: expected one label a row")
    with pytest.raises(DatasetError) as raised:
        labels_of("y.csv", "kind\ncat\ndog\n", rows=2)
    assert str(raised.value).endswith(
        "has 2 rows but labels=" + str(y) + " has 3 labels: expected one label a row; "
        "is its first line a header? (name the column: FILE.csv:COLUMN)"
    )


def test_a_missing_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    with pytest.raises(DatasetError, match=r"^labels=nowhere\.npy: there is no such file or folder$"):
        read_table(str(tmp_path / "x.npy"), "nowhere.npy")
