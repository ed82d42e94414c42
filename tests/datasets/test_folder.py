from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scatterdp.datasets import Dataset, load_dataset
from scatterdp.datasets.folder import file_safe_name
from scatterdp.errors import DatasetError


def save(path: Path, mode: str = "L", size: tuple[int, int] = (6, 4), value: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("1", "L", "P", "I;16", "I") else (value,) * len(mode)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "scans"
    save(root / "train" / "dog" / "b.png", value=3)
    save(root / "train" / "dog" / "a.png", value=2)
    save(root / "train" / "cat" / "z.PNG", value=1)
    save(root / "test" / "dog" / "a.png", value=4)
    return root


def load(folder: Path) -> Dataset:
    return load_dataset(str(folder))


def test_rows_are_sorted_by_class_then_file(folder: Path) -> None:
    dataset = load(folder)
    assert dataset.name == "scans"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (1, 4, 6)
    assert dataset.x_train[:, 0, 0].tolist() == [1, 2, 3]
    assert dataset.y_train.tolist() == [0, 1, 1]
    assert dataset.y_test.tolist() == [1]
    assert not dataset.public


def test_one_colour_image_makes_all_rgb(folder: Path) -> None:
    save(folder / "test" / "cat" / "c.png", mode="RGB", value=9)
    events: list[str] = []
    dataset = load_dataset(str(folder), on_event=events.append)
    assert dataset.image_shape == (3, 4, 6)
    assert dataset.x_train[:, 0, 0].tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    assert f"{folder}: 4 grey images converted to RGB since others are in colour" in events


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_other_modes_of_8_bit(tmp_path: Path, mode: str, channels: int) -> None:
    for place in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        save(tmp_path / place, mode=mode, value=1)
    assert load(tmp_path).image_shape[0] == channels


def test_jpeg_and_symlinks(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.jpg", value=200)
    (folder / "train" / "fox").symlink_to(tmp_path / "elsewhere")
    dataset = load(folder)
    assert dataset.class_names == ("cat", "dog", "fox")
    assert abs(int(dataset.x_train[3, 0, 0]) - 200) <= 2


def test_other_files_are_ignored_and_counted(folder: Path) -> None:
    (folder / "train" / "dog" / ".hidden.png").write_bytes(b"x")
    (folder / "train" / "dog" / "notes.txt").write_bytes(b"x")
    (folder / "train" / ".git").mkdir()
    (folder / "train" / "dog" / "sub.png").mkdir()
    events: list[str] = []
    dataset = load_dataset(str(folder), on_event=events.append)
    assert len(dataset.x_train) == 3
    assert events[0] == f"{folder}: 2 files ignored that are hidden or not .png, .jpg or .jpeg"


def truncate(folder: Path) -> None:
    path = folder / "train" / "dog" / "b.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-30])


def remove_test(folder: Path) -> None:
    (folder / "test" / "dog" / "a.png").unlink()


def one_class(folder: Path) -> None:
    (folder / "train" / "cat").rename(folder / "cat")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "test").rename(f / "tests"), "it has no folder test/, expected train/<class>"),
        (lambda f: (f / "train").rename(f / "x"), "it has no folder train/"),
        (one_class, r"train holds 1 class folder\(s\), a classifier needs at least two"),
        (lambda f: (f / "train" / "fox").mkdir(), "train/fox holds no images, expected .png"),
        (remove_test, "test holds no images"),
        (lambda f: save(f / "test" / "fox" / "a.png"), "class 'fox' is in test/ but not in train/"),
        (
            lambda f: save(f / "test" / "dog" / "c.png", size=(6, 5)),
            r"dog/c\.png: the image is 6×5 .* is 6×4, expected",
        ),
        (
            lambda f: save(f / "train" / "dog" / "c.png", mode="I;16"),
            r"c\.png: the image has mode I;16, expected at most",
        ),
        (lambda f: (f / "train" / "dog" / "c.png").write_bytes(b""), r"dog/c\.png: not a readable PNG or JPEG"),
        (lambda f: (f / "train" / "dog" / "c.jpg").write_bytes(b"GIF89a"), r"dog/c\.jpg: not a readable PNG or JPEG"),
        (lambda f: (f / "train" / "dog" / "c.png").symlink_to("gone.png"), r"dog/c\.png: not a readable"),
        (truncate, r"dog/b\.png: the image is damaged or cut short"),
    ],
)
def test_bad_folders(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(DatasetError, match=message):
        load(folder)


def test_file_safe_name() -> None:
    assert file_safe_name("Röntgen scans/2024") == "R-ntgen-scans-2024"
    assert file_safe_name("..") == "dataset"
