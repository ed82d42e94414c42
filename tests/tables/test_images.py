"""Folders of images: their three layouts, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scatterdp.errors import ConfigError, DatasetError
from scatterdp.tables import read_table, read_tables


def image(path: Path, value: int = 0, *, mode: str = "L", size: tuple[int, int] = (5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def told(features, **arguments) -> str:
    with pytest.raises(DatasetError) as raised:
        read_table(str(features), **arguments)
    return str(raised.value)


def test_class_folders(tmp_path):
    folder = tmp_path / "my pets"
    for number, name in enumerate(("dog/b.png", "dog/a.png", "cat/10.png", "cat/9.png")):
        image(folder / name, number)
    (folder / "cat" / "notes.txt").write_text("mine")
    (folder / ".hidden").mkdir()
    table = read_table(str(folder))
    assert table.x.dtype == np.uint8
    assert table.x.shape == (4, 4, 5)
    assert table.x[:, 0, 0].tolist() == [2, 3, 1, 0]  # pyright: ignore[reportArgumentType]
    assert table.row_names == ("cat/10.png", "cat/9.png", "dog/a.png", "dog/b.png")
    assert table.labels is not None
    assert table.labels.tolist() == ["cat", "cat", "dog", "dog"]
    assert table.name == "my-pets"
    assert table.is_images
    assert read_tables(str(folder)).test is None


def test_images_alone(tmp_path):
    image(tmp_path / "b.jpg", 7, mode="RGB")
    image(tmp_path / "a.png", 9)
    table = read_table(str(tmp_path))
    assert table.x.shape == (2, 4, 5, 3)
    assert table.row_names == ("a.png", "b.jpg")
    assert table.labels is None
    with pytest.raises(DatasetError, match=r"the images are in no class folders, expected FOLDER/<class>/\*\.png$"):
        read_tables(str(tmp_path))


def test_train_and_test(tmp_path):
    for name in ("train/cat/a.png", "train/dog/a.png", "test/cat/a.png"):
        image(tmp_path / name, mode="RGB" if name.startswith("test") else "L")
    tables = read_tables(str(tmp_path))
    assert tables.test is not None
    assert tables.train.x.shape == (2, 4, 5, 3)  # one image of the test is in colour
    assert tables.test.x.shape == (1, 4, 5, 3)
    assert tables.test.row_names == ("cat/a.png",)
    assert told(tmp_path, argument="input") == (
        f"input={tmp_path}: it holds train/, name the split: --input={tmp_path / 'test'}"
    )
    with pytest.raises(ConfigError, match="brings a test split; leave test_features out"):
        read_tables(str(tmp_path), None, str(tmp_path / "test"))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train/a.png", "bus/a.png"):
        image(tmp_path / name)
    labels = read_tables(str(tmp_path)).train.labels
    assert labels is not None
    assert labels.tolist() == ["bus", "train"]


def test_a_class_that_train_lacks(tmp_path):
    for name in ("train/cat/a.png", "train/dog/a.png", "test/fox/a.png"):
        image(tmp_path / name)
    with pytest.raises(DatasetError) as raised:
        read_tables(str(tmp_path))
    assert str(raised.value) == (
        f"features={tmp_path}: the test labels name the class fox, which no training row has: "
        "add examples of it, or leave it out of the test"
    )


def test_what_is_expected_of_later_images(tmp_path):
    image(tmp_path / "a.png")
    assert read_table(str(tmp_path), like=(4, 5, 3)).x.shape == (1, 4, 5, 3)
    assert read_table(str(tmp_path), like=(4, 5)).x.shape == (1, 4, 5)
    assert told(tmp_path, like=(8, 5)).endswith("its images are 5×4 pixels, expected 5×8: resize them")
    assert told(tmp_path, like=(20,)).endswith("is a folder of images, expected a table of rows of 20 numbers")
    image(tmp_path / "b.png", mode="RGB")
    assert told(tmp_path, like=(4, 5)).endswith("b.png is in colour, expected grey images: convert them")
    np.save(tmp_path / "x.npy", np.zeros((2, 20)))
    assert told(tmp_path / "x.npy", like=(4, 5)).endswith("is a table, expected a folder of images of 5×4 pixels")


def test_folders_that_do_not_fit(tmp_path):
    assert told(tmp_path).endswith("holds no images, expected FOLDER/<class>/*.png, .jpg or .jpeg")
    (tmp_path / "cat").mkdir()
    assert told(tmp_path) == (f"features={tmp_path}: {tmp_path / 'cat'} holds no images, expected .png, .jpg or .jpeg")
    image(tmp_path / "cat" / "a.png")
    image(tmp_path / "dog" / "a.png", size=(6, 4))
    assert told(tmp_path).endswith("is 5×4, expected one size: resize the images")
    image(tmp_path / "loose.png")
    assert told(tmp_path) == (
        f"features={tmp_path}: {tmp_path} holds images (loose.png) and folders (cat), "
        "expected images in class folders, or no folders"
    )


def test_a_damaged_image(tmp_path):
    image(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "b.png").write_bytes(b"x")
    assert "b.png: not a readable PNG or JPEG image, replace or remove it" in told(tmp_path)


def test_labels_are_the_folders(tmp_path):
    image(tmp_path / "cat" / "a.png")
    assert told(tmp_path, labels="y.npy").endswith("the folders' names are the labels; leave labels=y.npy out")
