"""Images that are listed at once and decoded when asked for, from folders and shards."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scatterdp.datasets.shards import index_shard
from scatterdp.datasets.streamed import open_streamed
from scatterdp.errors import DatasetError


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(content, "PNG")
    return content.getvalue()


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportArgumentType,reportCallIssue]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, count in (("train", 3), ("val", 1)):
        for label, name in enumerate(("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / split / name / f"{number}.png").write_bytes(png(100 * label + number))
    return tmp_path


def test_rows_come_in_the_order_asked_for(folder):
    dataset = open_streamed(folder, image_size=8)
    assert dataset.class_names == ("a", "b")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    images = dataset.train.read(np.array([5, 0, 5]))
    assert images.shape == (3, 8, 8, 3)
    assert images[:, 0, 0, 0].tolist() == [102, 0, 102]
    assert dataset.test.read(np.arange(2))[:, 0, 0, 0].tolist() == [0, 100]
    assert dataset.train.subset(np.array([4, 1])).read(np.array([0]))[0, 0, 0, 0] == 101


def test_a_large_image_is_cut_and_resized(folder):
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 36:92] = 200  # the middle 7/8 of the shorter side
    pixels[:4], pixels[60:] = 90, 90  # and what is cut off above and below
    Image.fromarray(pixels).save(folder / "train" / "a" / "0.png")
    image = open_streamed(folder, image_size=14).train.read(np.array([0]))[0]
    assert image.shape == (14, 14, 3)
    assert (image == 200).all()


def test_held_images_are_the_same_and_count_in_the_fingerprint(folder):
    streamed, held = (open_streamed(folder, image_size=8) for _ in range(2))
    assert held.train.hold()
    assert not streamed.train.hold(most_bytes=6 * 8 * 8 * 3 - 1)
    np.testing.assert_array_equal(streamed.train.read(np.arange(6)), held.train.read(np.arange(6)))
    before = held.fingerprint()
    name = folder / "train" / "a" / "0.png"
    assert len(png(7)) == name.stat().st_size
    name.write_bytes(png(7))
    changed = open_streamed(folder, image_size=8)
    changed.train.hold()
    assert changed.fingerprint() != before


def test_of_images_that_are_not_held_the_last_change_of_their_files_counts(folder):
    before = open_streamed(folder, image_size=8).fingerprint()
    assert open_streamed(folder, image_size=8).fingerprint() == before
    name = folder / "train" / "a" / "0.png"
    assert len(png(7)) == name.stat().st_size
    time.sleep(0.01)  # longer than file systems take for the same moment
    name.write_bytes(png(7))
    assert open_streamed(folder, image_size=8).fingerprint() != before


def test_shards_are_read_where_images_lie(tmp_path):
    shard(
        tmp_path / "train-0.tar",
        {"x/0.png": png(10), "x/0.cls": b"1\n", "x/0.json": b"{}", "1.cls": b"0", "1.PNG": png(20)},
    )
    shard(tmp_path / "train-1.tar", {"0.png": png(30), "0.cls": b"0"})
    shard(tmp_path / "test-0.tar", {"0.png": png(40), "0.cls": b"1"})
    dataset = open_streamed(tmp_path, image_size=8)
    assert (dataset.kind, dataset.class_names) == ("shards", ("0", "1"))
    assert dataset.train.labels.tolist() == [1, 0, 0]
    assert dataset.train.read(np.array([2, 0, 1]))[:, 0, 0, 0].tolist() == [30, 10, 20]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": b"x"}, "key '0' has no .cls"),
        ({"0.cls": b"1"}, "key '0' has no image"),
        ({"0.png": b"x", "0.cls": b"dog"}, "the label 0.cls is 'dog', expected the number of a class"),
        ({"0.png": b"x", "0.cls": b"-1"}, "the label 0.cls is '-1'"),
        ({"0.png": b"x", "0.jpg": b"x", "0.cls": b"1"}, "has two images of key '0'"),
    ],
)
def test_shards_that_do_not_do(tmp_path, members, message):
    with pytest.raises(DatasetError, match=message):
        index_shard(shard(tmp_path / "train.tar", members))


def test_compressed_and_cut_shards(tmp_path):
    members = {"0.png": bytes(5000), "0.cls": b"1"}
    with pytest.raises(DatasetError, match="not a readable, uncompressed tar"):
        index_shard(shard(tmp_path / "gz.tar", members, "w:gz"))
    whole = shard(tmp_path / "cut.tar", {"0.cls": b"1", "0.png": bytes(5000)})
    whole.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(DatasetError, match="cut"):
        index_shard(whole)


def test_damaged_images_are_named(folder):
    (folder / "train" / "b" / "1.png").write_bytes(png(1)[:40])
    with pytest.raises(DatasetError, match=r"b/1.png: the image at byte 0 is damaged"):
        open_streamed(folder, image_size=8).train.read(np.arange(6))


def test_folders_that_do_not_do(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DatasetError, match="expected train/<class>"):
        open_streamed(empty, image_size=8)
    (folder / "val" / "c").mkdir()
    with pytest.raises(DatasetError, match=r"class 'c' is in val/ but not in train/"):
        open_streamed(folder, image_size=8)
