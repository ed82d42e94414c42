""".csv: headers, separators, columns of labels, and what is told of a bad cell."""

from __future__ import annotations

import numpy as np
import pytest

from scatterdp.errors import DatasetError
from scatterdp.tables import FeatureTable, read_table


@pytest.fixture
def read(tmp_path):
    def write_and_read(text: str | bytes, labels: str | None = None) -> FeatureTable:
        path = tmp_path / "x.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_table(str(path), labels)

    return write_and_read


@pytest.mark.parametrize(
    "text",
    [
        "1,2.5\n-3,4e1\n",
        "1,2.5\n-3,4e1",
        "1;2.5\r\n-3;4e1\r\n",
        "1\t2.5\n-3\t4e1\n",
        "height,width\n1,2.5\n-3,4e1\n",
        '"a, b","c"\n"1"," 2.5 "\n-3,4e1\n\n',
        "\ufeff1,2.5\n-3,4e1\n",
    ],
)
def test_numbers(read, text):
    table = read(text)
    assert table.x.dtype == np.float32
    assert table.x[:].tolist() == [[1, 2.5], [-3, 40]]
    assert table.labels is None


def test_numbered_columns(read):
    header, row = ",".join(map(str, range(8))), ",".join(["0"] * 8)
    assert read(f"{header}\n{row}\n").x.shape == (1, 8)
    assert read("0,1\n0,0\n").x.shape == (2, 2)


def test_many_rows_in_one_column(read):
    table = read("".join(f"{number}.5\n" for number in range(3000)))
    assert table.x.shape == (3000, 1)
    assert table.x[2999, 0] == 2999.5  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("cells", "expected"), [(("cat", "dog"), ["cat", "dog"]), (("3", "5"), [3, 5]), (("3.0", "5"), [3, 5])]
)
def test_labels_in_a_column(read, cells, expected):
    table = read(f"a,kind,b\n1,{cells[0]},2\n3,{cells[1]},4\n", "kind")
    assert table.x[:].tolist() == [[1, 2], [3, 4]]
    assert table.labels is not None
    assert table.labels.tolist() == expected


def test_labels_in_a_file(read, tmp_path):
    (tmp_path / "y.txt").write_text("cat\ndog\n")
    table = read("a,b\n1,2\n3,4\n", str(tmp_path / "y.txt"))
    assert table.x.shape == (2, 2)
    assert table.labels is not None
    assert table.labels.tolist() == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("", None, "the table is empty, expected at least one row"),
        ("a,b\n", None, "the table is empty: no line after the header (line 1), expected at least one row"),
        ("1,2\n3,x\n", None, "line 2, column 2: 'x' is no number; a column of labels is named by --labels=COLUMN"),
        ("1,x\n3,4\n", None, "line 1, column 2: 'x' is no number; a column of labels is named by --labels=COLUMN"),
        (
            "a,b\n1,2\n\n3,x\n",
            None,
            "line 4, column 2 (b): 'x' is no number; a column of labels is named by --labels=COLUMN",
        ),
        (
            "a,y,b\n1,cat,2\n3,dog,x\n",
            "y",
            "line 3, column 3 (b): 'x' is no number; a column of labels is named by --labels=COLUMN",
        ),
        ("a,b\n1,\n", None, "line 2, column 2 (b) is empty: expected a number"),
        ("1,2\n3\n", None, "line 2 has 1 cells, line 1 has 2: expected as many in each"),
        (
            ",a\n0,1\n1,2\n",
            None,
            "column 1 has no name, it may number the rows: write the file without it (pandas: index=False)",
        ),
        ("y,y,b\n1,2,3\n", "y", "column y is twice in its first line (y, y, b), expected once"),
        ("a,y\n1,cat\n2,\n", "y", "the label of row 1 (counted from 0) is empty: expected a label in each row"),
        ("a,y\n1,0.5\n2,1\n", "y", "the label of row 0 (counted from 0), 0.5, is not whole: expected whole numbers or strings"),
        ("a,y\n1,2\n2,nan\n", "y", "the label of row 1 (counted from 0), nan, is not finite: expected whole numbers or strings"),
        ("1,2\n3,nan\n", None, "row 1 holds NaN in column 1 (both counted from 0): replace such values or leave the row out"),
        ("1,2\n3,1e40\n", None, "row 1 holds an infinite value in column 1 (both counted from 0): replace such values or leave the row out"),
        (b"a,b\n\xff,2\n", None, "is no UTF-8 text: save it as UTF-8"),
    ],
)  # fmt: skip
def test_bad_files(read, tmp_path, text, labels, message):
    with pytest.raises(DatasetError) as raised:
        read(text, labels)
    assert str(raised.value) == f"features={tmp_path / 'x.csv'}: {message}"


def test_a_bad_cell_far_down_is_found(read):
    lines = [f"{number},1" for number in range(2500)]
    lines[2048] = "1,oops"
    with pytest.raises(DatasetError, match=r"line 2049, column 2: 'oops' is no number"):
        read("\n".join(lines))


def test_a_column_that_is_not_there(read, tmp_path):
    with pytest.raises(DatasetError) as raised:
        read("a,b,kind\n1,2,3\n", "kin")
    assert str(raised.value) == (f"labels=kin: is neither a file nor a column of {tmp_path / 'x.csv'} (a, b, kind)")
