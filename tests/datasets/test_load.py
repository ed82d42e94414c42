from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scatterdp.datasets import DATASET_NAMES, load_dataset
from scatterdp.errors import DatasetError


def test_names() -> None:
    assert DATASET_NAMES == ("mnist", "fmnist", "cifar10", "digits")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mnsit", "--dataset=mnsit: unknown, did you mean mnist?: expected mnist, fmnist, cifar10, digits, a folder"),
        ("CIFAR10", "--dataset=CIFAR10: unknown, did you mean cifar10?"),
        ("fashion-mnist", "--dataset=fashion-mnist: unknown, did you mean fmnist?"),
        ("zzz", "--dataset=zzz: unknown: expected mnist"),
        ("", "--dataset=: unknown: expected mnist"),
        ("no/where", "--dataset=no/where: no such file or folder: expected mnist"),
        ("none.npz", "--dataset=none.npz: no such file or folder"),
    ],
)
def test_unknown_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError) as caught:
        load_dataset(value)
    assert str(caught.value).startswith(message)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("1,2")
    with pytest.raises(DatasetError, match=r"data\.csv: a file that is not an \.npz: expected mnist"):
        load_dataset(str(path))


def test_a_path_to_arrays(tmp_path: Path) -> None:
    path = tmp_path / "my scans.NPZ"
    x = np.zeros((2, 4, 4), np.uint8)
    with path.open("wb") as file:
        np.savez(file, x_train=x, y_train=[0, 1], x_test=x, y_test=[1, 0])
    dataset = load_dataset(str(path))
    assert dataset.name == "my-scans"
    assert not dataset.public
