from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scatterdp.datasets import store
from scatterdp.datasets.store import read_stored, write_stored
from scatterdp.errors import DatasetError


def test_round_trip_leaves_one_file(tmp_path: Path, tiny) -> None:
    made = tiny("mnist")
    path = write_stored(made.published, tmp_path / "new" / "mnist", made.arrays)
    assert [p.name for p in path.parent.iterdir()] == ["mnist.npz"]
    made.published.verify(read_stored(made.published, path))


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path, tiny) -> None:
    made = tiny("mnist")
    (tmp_path / "mnist.npz").write_bytes(b"mine")
    assert write_stored(made.published, tmp_path, made.arrays).name == "mnist-verified.npz"
    assert (tmp_path / "mnist.npz").read_bytes() == b"mine"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny("mnist")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_stored(made.published, tmp_path, made.arrays)
    assert list(tmp_path.iterdir()) == []


def test_arrays_too_large_are_refused_before_they_are_read(tmp_path: Path, tiny) -> None:
    made = tiny("mnist")
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **(made.arrays | {"y_test": np.zeros(50_000_000, np.uint8)}))  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="y_test is larger than that of mnist"):
        read_stored(made.published, path)


def test_truncation_is_noticed(tmp_path: Path, tiny) -> None:
    made = tiny("mnist")
    path = write_stored(made.published, tmp_path, made.arrays)
    data = path.read_bytes()
    for size in range(0, len(data), 97):
        path.write_bytes(data[:size])
        with pytest.raises(DatasetError, match=r"mnist\.npz is not a readable \.npz of mnist"):
            read_stored(made.published, path)
