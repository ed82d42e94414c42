"""Tiny stand-ins for the published sets, the archives that carry them, and package clients that copy files."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scatterdp.datasets.dataset import array_digest
from scatterdp.datasets.idx import IDX_FILES
from scatterdp.datasets.published import PUBLISHED, PublishedDataset

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A made data set that the table of published sets knows, and its files."""

    published: PublishedDataset
    arrays: Arrays

    def idx_files(self) -> dict[str, bytes]:
        files = {}
        for array_name, file_name in IDX_FILES.items():
            array = self.arrays[array_name]
            header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            files[file_name] = header + array.tobytes()
        return files

    def batches(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        x_train, y_train = self.arrays["x_train"], self.arrays["y_train"]
        size = len(x_train) // 5
        batches = {
            f"data_batch_{i + 1}": (x_train[i * size : (i + 1) * size], y_train[i * size : (i + 1) * size])
            for i in range(5)
        }
        return batches | {"test_batch": (self.arrays["x_test"], self.arrays["y_test"])}

    def binary_files(self) -> dict[str, bytes]:
        return {
            f"cifar-10-batches-bin/{batch}.bin": b"".join(
                bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(x, y, strict=True)
            )
            for batch, (x, y) in self.batches().items()
        }

    def png_files(self) -> dict[str, bytes]:
        files = {}
        for batch, (x, _) in self.batches().items():
            buffer = io.BytesIO()
            Image.fromarray(x.reshape(len(x), 1024, 3)).save(buffer, "PNG")
            files[f"package/{batch}.png"] = buffer.getvalue()
        files["package/train_lables.json"] = json.dumps(self.arrays["y_train"].tolist()).encode()
        files["package/test_lables.json"] = json.dumps(self.arrays["y_test"].tolist()).encode()
        return files


def _tiny(name: str, train: int, test: int, image_shape: tuple[int, ...]) -> Tiny:
    rng = np.random.default_rng(len(name))
    arrays = {
        "x_train": rng.integers(0, 256, (train, *image_shape), dtype=np.uint8),
        "y_train": rng.integers(0, 10, train, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (test, *image_shape), dtype=np.uint8),
        "y_test": rng.integers(0, 10, test, dtype=np.uint8),
    }
    published = dataclasses.replace(
        PUBLISHED[name],
        train_count=train,
        test_count=test,
        image_shape=image_shape,
        digests={array_name: array_digest(array) for array_name, array in arrays.items()},
        addresses=(),
    )
    return Tiny(published, arrays)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Tiny]:
    """Replace a published set by a tiny one without addresses on the web."""

    def make(name: str) -> Tiny:
        made = _tiny(name, 10, 3, (32, 32, 3)) if name == "cifar10" else _tiny(name, 6, 4, (5, 7))
        monkeypatch.setitem(PUBLISHED, name, made.published)
        return made

    return make


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """Write a tar archive with members in the order given; a ``TarInfo`` value stands for itself."""

    def write(path: Path, members: Mapping[str, bytes | tarfile.TarInfo], *, compress: bool = True) -> Path:
        with tarfile.open(path, "w:gz" if compress else "w") as archive:
            for name, content in members.items():
                if isinstance(content, tarfile.TarInfo):
                    archive.addfile(content)
                else:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def write_files() -> Callable[..., None]:
    """Write files into a folder, gzipped if asked."""

    def write(folder: Path, files: Mapping[str, bytes], *, compress: bool = False) -> None:
        for name, content in files.items():
            path = folder / (f"{name}.gz" if compress else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(content) if compress else content)

    return write


@pytest.fixture
def fake_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make an executable of this name; from the first call of the fixture on, no other is found."""
    folder = tmp_path / "clients"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)

    return make
