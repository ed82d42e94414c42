"""Image data sets that need not fit in memory: files are listed at once and decoded when they are asked for.

``FOLDER/train/<class>/*.png|jpg`` with ``test/`` or ``val/``, or WebDataset shards ``FOLDER/train*.tar`` with ``test*.tar`` or ``val*.tar``.
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from scatterdp.datasets.folder import class_folders, file_safe_name, image_files
from scatterdp.datasets.shards import index_shard, shards_of
from scatterdp.errors import DatasetError

#: Decoded images of at most so many bytes are kept in memory.
HELD_BYTES = 1 << 30
_CROP = 7 / 8  # of the shorter side, as for ImageNet: 224 of 256
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_TEST_SPLITS = ("test", "val")


class StreamedImages:
    """The images of one split, as RGB of one size.

    An image of another size is cut to the middle 7/8 of its shorter side and resized (bicubic), as the ImageNet evaluations do.

    Args:
        files: that hold the images.
        which: ``(N,)`` number of each image's file.
        places: ``(N, 2)`` first byte and number of bytes in it.
        labels: ``(N,)`` int64.
        image_size: S, height and width in pixels.
    """

    def __init__(
        self, files: list[Path], which: np.ndarray, places: np.ndarray, labels: np.ndarray, image_size: int
    ) -> None:
        self.files, self.which, self.places, self.labels, self.image_size = files, which, places, labels, image_size
        self._held: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: np.ndarray) -> StreamedImages:
        """Some of the images, in the order given."""
        return StreamedImages(self.files, self.which[rows], self.places[rows], self.labels[rows], self.image_size)

    def hold(self, most_bytes: int = HELD_BYTES) -> bool:
        """Decode all images now and keep them, unless they need more than so many bytes; returns whether they are held.

        Raises:
            DatasetError: an image that cannot be decoded.
        """
        if len(self) * self.image_size**2 * 3 <= most_bytes and self._held is None:
            self._held = self.read(np.arange(len(self)))
        return self._held is not None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """``(len(rows), S, S, 3)`` uint8.

        Raises:
            DatasetError: names the file of an image that cannot be decoded.
        """
        if self._held is not None:
            return self._held[rows]
        images = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for place, image in enumerate(pool.map(self._decode, rows.tolist())):
                images[place] = image
        return images

    def update_digest(self, digest: hashlib._Hash) -> None:
        """Labels, names and sizes of the files; of held images the pixels, of others when their files last changed."""
        digest.update(repr((len(self), self.image_size, [file.name for file in self.files])).encode())
        content = np.array([file.stat().st_mtime_ns for file in self.files]) if self._held is None else self._held
        for array in (self.which, self.places, self.labels, content):
            digest.update(np.ascontiguousarray(array).data)

    def _decode(self, row: int) -> np.ndarray:
        path, (offset, length) = self.files[self.which[row]], self.places[row].tolist()
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(length)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                return np.asarray(_fitted(image.convert("RGB"), self.image_size))
        except _UNREADABLE as error:
            raise DatasetError(
                f"{path}: the image at byte {offset} is damaged or no PNG or JPEG, replace or remove it ({error})"
            ) from error


def _fitted(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    width, height = image.size
    side = max(1, int(_CROP * min(width, height)))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    # Cut first: resize(box=…) would let pixels outside the box reach the edge.
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamedDataset:
    """Training and test images with their classes.

    Args:
        name: of the folder, usable in a file name.
        class_names: the index is the label.
        train, test: the two splits.
        kind: how they are stored: ``"folder"`` or ``"shards"``.
    """

    name: str
    class_names: tuple[str, ...]
    train: StreamedImages
    test: StreamedImages
    kind: str

    def fingerprint(self) -> str:
        """SHA-256 over classes, labels, names and sizes of the files and, of held images, the pixels, of others the times of the last change. Private, like a data set's."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        self.train.update_digest(digest)
        self.test.update_digest(digest)
        return digest.hexdigest()


def open_streamed(folder: Path, *, image_size: int) -> StreamedDataset:
    """List a folder's images; none is decoded yet.

    The classes are the sorted names of ``train/``'s folders; of shards, the numbers 0 to the largest in ``train*.tar``.

    Args:
        folder: see the module.
        image_size: S.

    Raises:
        DatasetError: no such folder; no images to train or test on; a test class that is not in train; fewer than two classes; damaged shards.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"--dataset={folder}: no such folder, expected train/<class>/*.jpg and test/ or val/, or shards train*.tar and test*.tar"
        )
    sharded = bool(shards_of(folder, "train"))
    test = next((s for s in _TEST_SPLITS if (shards_of(folder, s) if sharded else (folder / s).is_dir())), None)
    if test is None or not (sharded or (folder / "train").is_dir()):
        raise DatasetError(
            f"--dataset={folder}: expected train/<class>/*.jpg and test/ or val/, or shards train*.tar and test*.tar or val*.tar in it"
        )
    if sharded:
        splits = [_from_shards(shards_of(folder, split), image_size) for split in ("train", test)]
        names = [str(label) for label in range(int(splits[0].labels.max(initial=-1)) + 1)]
        if splits[1].labels.max(initial=0) >= len(names):
            raise DatasetError(
                f"--dataset={folder}: class {splits[1].labels.max()} is in {test}*.tar but not in train*.tar"
            )
    else:
        names = class_folders(folder / "train")
        strangers = sorted(set(class_folders(folder / test)) - set(names))
        if strangers:
            raise DatasetError(f"--dataset={folder}: class {strangers[0]!r} is in {test}/ but not in train/")
        splits = [_from_folders(folder / split, names, image_size) for split in ("train", test)]
    for split, images in zip(("train", test), splits, strict=True):
        if not len(images):
            raise DatasetError(f"--dataset={folder}: no images in {split}, expected .png, .jpg or .jpeg")
    if len(names) < 2:
        raise DatasetError(f"--dataset={folder}: found {len(names)} class, a classifier needs at least two")
    return StreamedDataset(
        name=file_safe_name(folder.resolve().name),
        class_names=tuple(names),
        train=splits[0],
        test=splits[1],
        kind="shards" if sharded else "folder",
    )


def _from_folders(folder: Path, names: list[str], image_size: int) -> StreamedImages:
    found = [(path, label) for label, name in enumerate(names) for path in image_files(folder / name)[0]]
    lengths = np.array([path.stat().st_size for path, _ in found], np.int64)
    return StreamedImages(
        [path for path, _ in found],
        np.arange(len(found)),
        np.stack([np.zeros_like(lengths), lengths], axis=1),
        np.array([label for _, label in found], np.int64),
        image_size,
    )


def _from_shards(paths: list[Path], image_size: int) -> StreamedImages:
    found = [(number, image) for number, path in enumerate(paths) for image in index_shard(path)]
    return StreamedImages(
        paths,
        np.array([number for number, _ in found], np.int64),
        np.array([(image.offset, image.length) for _, image in found], np.int64).reshape(-1, 2),
        np.array([image.label for _, image in found], np.int64),
        image_size,
    )
