"""Arrays out of pickles: what NumPy writes is read, everything else is refused before it is called."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scatterdp.datasets.pickled import read_pickled_arrays
from scatterdp.errors import DatasetError

LARGE = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)  # 1.8 MB: mapped


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_what_was_pickled_and_long_ones_stay_in_the_file(tmp_path, protocol, order):
    value = {
        "data": np.asarray(LARGE, order=order),
        "extrapolated_targets": np.arange(600),
        "prediction_model": {"name": "a model", "layers": [1, 2.5, None, True]},
        "big_endian": np.arange(5, dtype=">i4"),
        "middle": np.arange(20_000.0),  # beyond a frame, below what is mapped
        7: np.ones(3),
    }
    arrays = read_pickled_arrays(write(tmp_path / "x.pickle", value, protocol))
    assert arrays.keys() == value.keys() - {"prediction_model"}
    for name, array in arrays.items():
        assert np.array_equal(array, value[name])
        assert array.dtype == value[name].dtype
    assert isinstance(arrays["data"], np.memmap)
    assert not arrays["data"].flags.writeable


def test_short_arrays_by_protocol_5(tmp_path):
    arrays = read_pickled_arrays(write(tmp_path / "x.pickle", {"a": np.arange(6).reshape(2, 3)}, 5))
    assert arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_python_2_wrote(tmp_path):
    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    content = bytes(range(6))
    dtype = (
        b"cnumpy\ndtype\n("
        + short(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + short(b"b") + b"tR"
    state = b"(K\x01(K\x02K\x03t" + dtype + b"\x89T" + struct.pack("<i", 6) + content + b"tb"
    path = tmp_path / "x.pickle"
    path.write_bytes(b"\x80\x02}" + short(b"data") + array + state + b"s.")
    assert read_pickled_arrays(path)["data"].tolist() == [[0, 1, 2], [3, 4, 5]]


class Runs:
    """Unpickles to a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


@pytest.mark.parametrize(
    "function",
    [
        os.system,
        eval,
        exec,
        __import__,
        getattr,
        open,
        np.load,
        np.fromfile,
        np.save,
        pickle.loads,
        np.lib.format.open_memmap,
    ],
)
@pytest.mark.parametrize("protocol", range(6))
def test_hostile_pickles_are_not_run(tmp_path, function, protocol):
    path, mark = tmp_path / "x.pickle", tmp_path / "mark"
    argument = (
        f"touch {mark}"
        if function is os.system
        else f"open({str(mark)!r}, 'w')"
        if function in (eval, exec)
        else str(mark)
    )
    write(path, {"data": Runs(function, argument)}, protocol)
    with pytest.raises(
        DatasetError, match=r"^.*x\.pickle: the pickle names .* which could run code; only arrays and plain"
    ):
        read_pickled_arrays(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pickle"]


def names(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (names("numpy", "ndarray.__reduce__") + b".", "could run code"),
        (names("numpy.core.multiarray", "scalar") + b".", "could run code"),
        (names("os", "dtype") + b".", "could run code"),
        (names("scatterdp.datasets.pickled", "_Array") + b".", "could run code"),
        (b"\x82\x01.", "not a pickle of arrays"),  # an extension's number
        (b"Pname\n.", "not a pickle of arrays"),  # a persistent name
        (names("numpy", "dtype") + b"}X\x05\x00\x00\x00_makeNsb.", "it changes what it may only call"),
        (names("numpy", "dtype") + b"(N}X\x05\x00\x00\x00_makeNstb.", "it changes what it may only call"),
        (b"}.", None),
        (b"]" + names("numpy", "ndarray") + b"a.", "the pickle is a list, expected a dictionary"),
        (b"K\x07.", "the pickle is a int"),
        (b"", "not a pickle of arrays"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "it is cut short"),  # more bytes than there are
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\x00.", "not a pickle of arrays"),
        (b"0" * 100, "not a pickle of arrays"),
    ],
)
def test_programs_that_are_no_arrays(tmp_path, program, message):
    path = tmp_path / "x.pickle"
    path.write_bytes(b"\x80\x04" + program)
    if message is None:
        assert read_pickled_arrays(path) == {}
    else:
        with pytest.raises(DatasetError, match=message):
            read_pickled_arrays(path)


def test_arrays_of_objects_and_of_other_sizes_than_their_bytes(tmp_path):
    path = write(tmp_path / "x.pickle", {"data": np.array([1, "a"], object)})
    with pytest.raises(DatasetError, match="it holds an array of object, expected numbers"):
        read_pickled_arrays(path)
    whole = pickle.dumps({"data": LARGE}, 4)
    assert any(op.name == "BININT2" and arg == 600 for op, arg, _ in pickletools.genops(whole))
    path.write_bytes(whole.replace(b"M" + struct.pack("<H", 600), b"M" + struct.pack("<H", 601), 1))
    with pytest.raises(DatasetError, match="an array's bytes do not fit its shape"):
        read_pickled_arrays(path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9999])
def test_cut_short(tmp_path, kept):
    whole = pickle.dumps({"data": LARGE}, 3)
    path = tmp_path / "x.pickle"
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DatasetError, match=r"^.*x\.pickle: not a pickle of arrays that can be read"):
        read_pickled_arrays(path)
    with pytest.raises(DatasetError, match="Is a directory"):
        read_pickled_arrays(tmp_path)
