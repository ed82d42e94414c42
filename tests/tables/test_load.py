"""Which file is what, and the two tables of a fit."""

from __future__ import annotations

import numpy as np
import pytest

from scatterdp.errors import ConfigError, DatasetError, UserError
from scatterdp.tables import read_table, read_tables


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with features and labels of two tables."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.arange(12.0).reshape(6, 2))
    np.save("y.npy", [3, 5, 3, 5, 3, 5])
    np.save("x_test.npy", np.ones((2, 2), np.float16))
    np.save("y_test.npy", [5, 3])
    return tmp_path


def told(*arguments, kind: type[UserError] = DatasetError) -> str:
    with pytest.raises(kind) as raised:
        read_tables(*arguments)
    return str(raised.value)


def test_both_tables(here):
    tables = read_tables("x.npy", "y.npy", "x_test.npy", "y_test.npy")
    assert tables.test is not None
    assert (len(tables.train), len(tables.test)) == (6, 2)
    assert isinstance(tables.train.x, np.memmap)
    assert not tables.train.is_images
    assert tables.train.labels is not None
    assert tables.train.labels.tolist() == [3, 5, 3, 5, 3, 5]
    assert tables.test.labels is not None
    assert tables.test.labels.tolist() == [5, 3]
    assert tables.train.name == "x"


def test_a_colon_in_a_name(here):
    (here / "x.npy").rename("a.npz:b.npy")
    assert len(read_table("a.npz:b.npy")) == 6


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("nowhere.npy", "features=nowhere.npy: there is no such file or folder"),
        ("", "features=: there is no such file or folder"),
        ("nowhere.npz:x", "features=nowhere.npz:x: there is no file nowhere.npz"),
        ("x.npy:x", "features=x.npy:x: there is no such file or folder"),
        ("x.parquet", "features=x.parquet: has the suffix .parquet, expected .npy, .npz, .h5, .hdf5, .csv or a folder of images"),
        ("x", "features=x: has the suffix (none), expected .npy, .npz, .h5, .hdf5, .csv or a folder of images"),
    ],
)  # fmt: skip
def test_what_is_no_table(here, features, message):
    for name in ("x.parquet", "x"):
        (here / name).write_text("x")
    assert told(features) == message


def test_missing_labels(here):
    assert told("x.npy") == "features=x.npy: labels are missing, give --labels=FILE"
    assert told("x.npy", "y.npy", "x_test.npy") == (
        "test_features=x_test.npy: labels are missing, give --test_labels=FILE"
    )
    assert told("x.npy", "y.npy", None, "y_test.npy", kind=ConfigError) == (
        "test_labels=y_test.npy: there are no test features, give --test_features too"
    )


def test_lengths_that_differ(here):
    assert told("x.npy", "y_test.npy") == (
        "features=x.npy has 6 rows but labels=y_test.npy has 2 labels: expected one label a row"
    )
    assert told("x.npy", "y.npy", "x_test.npy", "y.npy") == (
        "test_features=x_test.npy has 2 rows but test_labels=y.npy has 6 labels: expected one label a row"
    )


def test_other_features_in_the_test(here):
    np.save("x_test.npy", np.ones((2, 3)))
    assert told("x.npy", "y.npy", "x_test.npy", "y_test.npy") == (
        "test_features=x_test.npy: its rows have 3 features, expected 2"
    )


def test_classes(here):
    np.save("one.npy", [7] * 6)
    assert told("x.npy", "one.npy") == ("features=x.npy: all labels are 7, a classifier needs at least two classes")
    np.save("y_test.npy", [5, 4])
    assert told("x.npy", "y.npy", "x_test.npy", "y_test.npy") == (
        "features=x.npy: the test labels name the class 4, which no training row has: "
        "add examples of it, or leave it out of the test"
    )
    np.save("y_test.npy", ["5", "3"])
    assert told("x.npy", "y.npy", "x_test.npy", "y_test.npy") == (
        "features=x.npy: the training labels are numbers but the test labels text, expected the same kind"
    )


def test_a_column_of_labels_in_both(here):
    (here / "x.csv").write_text("a,b,kind\n1,2,cat\n3,4,dog\n")
    (here / "t.csv").write_text("a,b,kind\n1,2,dog\n")
    tables = read_tables("x.csv", "kind", "t.csv", "kind")
    assert tables.test is not None
    assert tables.test.labels is not None
    assert tables.test.labels.tolist() == ["dog"]
    assert tables.test.x.shape == (1, 2)
    assert (
        told("x.csv", "kind", "t.csv", "kin") == "test_labels=kin: is neither a file nor a column of t.csv (a, b, kind)"
    )
