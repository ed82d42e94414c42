from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scatterdp.datasets.cifar import (
    decode_labels,
    decode_png_batch,
    read_binary_archive,
    read_binary_folder,
    read_png_archive,
)
from scatterdp.errors import DatasetError


def png(mode: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def assert_same(arrays, made) -> None:
    assert arrays.keys() == made.arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, made.arrays[name])
        assert array.flags.writeable
    made.published.verify(arrays)


def test_binary_archive(tmp_path: Path, tiny, write_tar) -> None:
    made = tiny("cifar10")
    files = {"cifar-10-batches-bin/readme.html": b"hello"} | dict(reversed(made.binary_files().items()))
    assert_same(read_binary_archive(made.published, write_tar(tmp_path / "c.tar.gz", files)), made)


def test_binary_folder(tmp_path: Path, tiny, write_files) -> None:
    made = tiny("cifar10")
    write_files(tmp_path, made.binary_files())
    assert_same(read_binary_folder(made.published, tmp_path / "cifar-10-batches-bin"), made)


def test_binary_folder_cut_short(tmp_path: Path, tiny, write_files) -> None:
    made = tiny("cifar10")
    write_files(tmp_path, made.binary_files())
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"data_batch_3\.bin has 6145 bytes, expected 6146 \(2 images\)"):
        read_binary_folder(made.published, path.parent)
    path.unlink()
    with pytest.raises(DatasetError, match=r"data_batch_3\.bin cannot be read: No such file"):
        read_binary_folder(made.published, path.parent)


def test_binary_member_of_another_size(tmp_path: Path, tiny, write_tar) -> None:
    made = tiny("cifar10")
    files = made.binary_files()
    files["cifar-10-batches-bin/test_batch.bin"] += b"x"
    with pytest.raises(DatasetError, match=r"test_batch\.bin of .* holds more than the expected 9219 bytes"):
        read_binary_archive(made.published, write_tar(tmp_path / "c.tar.gz", files))


def test_png_archive(tmp_path: Path, tiny, write_tar) -> None:
    made = tiny("cifar10")
    assert_same(read_png_archive(made.published, write_tar(tmp_path / "c.tgz", made.png_files())), made)


def test_the_pickled_version_is_not_read(tmp_path: Path, tiny, write_tar) -> None:
    made = tiny("cifar10")
    path = write_tar(tmp_path / "c.tgz", {"cifar-10-batches-py/data_batch_1": b"\x80\x02."})
    with pytest.raises(DatasetError, match=r"lacks cifar-10-batches-bin/data_batch_1\.bin"):
        read_binary_archive(made.published, path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png("RGB", (1024, 3)), "made is RGB of 1024×3 pixels, expected RGB of 1024×2"),
        (png("L", (1024, 2)), "made is L of 1024×2 pixels"),
        (png("RGB", (1024, 2))[:60], "made is not a readable PNG"),
        (b"GIF89a", "made is not a readable PNG"),
    ],
)
def test_bad_png(data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        decode_png_batch(data, 2, "made")


@pytest.mark.parametrize("data", [b"[1,10]", b"[1]", b"[1,-1]", b"[1,true]", b"[1,2.0]", b'{"a":1}', b"5"])
def test_bad_labels(data: bytes) -> None:
    with pytest.raises(DatasetError, match="made is not a list of 2 labels from 0 to 9"):
        decode_labels(data, 2, "made")


@pytest.mark.parametrize("data", [b"[1,2", b"\xff", b"[" * 100_000])
def test_labels_that_are_no_json(data: bytes) -> None:
    with pytest.raises(DatasetError, match="made is not readable JSON"):
        decode_labels(data, 2, "made")
