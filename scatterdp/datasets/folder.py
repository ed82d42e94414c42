"""A person's own images: ``train/<class>/*.png|jpg|jpeg`` and ``test/<class>/…``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from scatterdp.datasets.dataset import Dataset
from scatterdp.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises on damaged, truncated or absurdly large files."""


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of its image before it is decoded; ``size`` is (width, height) in pixels."""

    path: Path
    size: tuple[int, int]
    is_colour: bool


def file_safe_name(text: str) -> str:
    """A short name that can be part of a file name on any system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "dataset"


def read_image_folder(folder: Path, *, on_event: Callable[[str], None]) -> Dataset:
    """Read a folder of images.

    The class names are the sorted names of the folders in ``train/``. Rows are sorted by class, then by file name.
    Files whose names start with a dot or end in something else than ``.png``, ``.jpg`` or ``.jpeg`` are ignored.

    Pixels are taken as stored (a camera's rotation tag is not applied). Grey images (1 or 8 bit, transparency
    dropped) stay grey if all are; if a single image of either split is in colour, all become RGB. Palette,
    RGBA, CMYK and YCbCr images are converted to RGB, transparency dropped.

    Args:
        folder: holds ``train/`` and ``test/``.
        on_event: receives a short sentence for each step.

    Returns:
        Images ``(N, H, W)`` or ``(N, H, W, 3)``; the data set is called like the folder.

    Raises:
        DatasetError: ``train/`` or ``test/`` or images are missing; fewer than two classes; a test class that
            ``train/`` lacks; an image that cannot be read, has more than 8 bit a channel, or another size.
    """
    for split in ("train", "test"):
        if not os.path.isdir(folder / split):
            raise DatasetError(
                f"--dataset={folder}: it has no folder {split}/, expected train/<class>/*.png and test/<class>/*.png"
            )
    class_names = class_folders(folder / "train")
    if len(class_names) < 2:
        raise DatasetError(
            f"--dataset={folder}: {folder / 'train'} holds {len(class_names)} class folder(s), "
            "a classifier needs at least two"
        )
    strangers = sorted(set(class_folders(folder / "test")) - set(class_names))
    if strangers:
        raise DatasetError(
            f"--dataset={folder}: class {strangers[0]!r} is in test/ but not in train/, "
            "expected the same classes or some of them"
        )
    files: dict[str, list[tuple[Path, int]]] = {"train": [], "test": []}
    ignored = 0
    for split, found in files.items():
        for label, class_name in enumerate(class_names):
            paths, others = image_files(folder / split / class_name)
            ignored += others
            if split == "train" and not paths:
                raise DatasetError(
                    f"--dataset={folder}: {folder / split / class_name} holds no images, expected .png, .jpg or .jpeg"
                )
            found.extend((path, label) for path in paths)
        if not found:
            raise DatasetError(f"--dataset={folder}: {folder / split} holds no images, expected .png, .jpg or .jpeg")
    if ignored:
        on_event(f"{folder}: {ignored} files ignored that are hidden or not .png, .jpg or .jpeg")
    headers = {split: [read_header(path) for path, _ in found] for split, found in files.items()}
    check_one_size([*headers["train"], *headers["test"]])
    colour = [header.is_colour for header in (*headers["train"], *headers["test"])]
    if any(colour) and not all(colour):
        on_event(f"{folder}: {colour.count(False)} grey images converted to RGB since others are in colour")
    images = {split: read_images(found, any(colour)) for split, found in headers.items()}
    labels = {split: np.array([label for _, label in found], dtype=np.int64) for split, found in files.items()}
    on_event(f"{folder}: read {len(labels['train'])} training and {len(labels['test'])} test images")
    return Dataset(
        name=file_safe_name(folder.resolve().name),
        x_train=images["train"],
        y_train=labels["train"],
        x_test=images["test"],
        y_test=labels["test"],
        class_names=tuple(class_names),
    )


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder, hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(class_folder: Path) -> tuple[list[Path], int]:
    """Image files sorted by name, and how many other files there are."""
    if not class_folder.is_dir():
        return [], 0
    files = [path for path in class_folder.iterdir() if not path.is_dir()]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]
    return sorted(images, key=lambda path: path.name), len(files) - len(images)


def _open(path: Path) -> Image.Image:
    return Image.open(path, formats=("PNG", "JPEG"))


def read_header(path: Path) -> ImageHeader:
    """Size and colour of one image.

    Raises:
        DatasetError: no readable PNG or JPEG, or more than 8 bit a channel.
    """
    try:
        with _open(path) as image:
            size, mode = image.size, image.mode
    except _UNREADABLE as error:
        raise DatasetError(f"{path}: not a readable PNG or JPEG image, replace or remove it ({error})") from error
    if mode not in _GREY_MODES + _COLOUR_MODES:
        raise DatasetError(f"{path}: the image has mode {mode}, expected at most 8 bit a channel: convert it")
    return ImageHeader(path, size, mode in _COLOUR_MODES)


def check_one_size(headers: list[ImageHeader]) -> None:
    """Raise DatasetError, naming two files, unless all images have the size of the first."""
    first = headers[0]
    for header in headers:
        if header.size != first.size:
            raise DatasetError(
                f"{header.path}: the image is {_pixels(header.size)} pixels but {first.path} is "
                f"{_pixels(first.size)}, expected one size: resize the images"
            )


def read_images(headers: list[ImageHeader], colour: bool) -> np.ndarray:
    """Decode images of one size: ``(N, H, W)``, or ``(N, H, W, 3)`` with ``colour``, uint8.

    Raises:
        DatasetError: an image that is damaged or cut short.
    """
    width, height = headers[0].size
    images = np.empty((len(headers), height, width, 3) if colour else (len(headers), height, width), dtype=np.uint8)
    for row, header in enumerate(headers):
        try:
            with _open(header.path) as image:
                images[row] = np.asarray(image.convert("RGB" if colour else "L"))
        except _UNREADABLE as error:
            raise DatasetError(
                f"{header.path}: the image is damaged or cut short, replace or remove it ({error})"
            ) from error
    return images


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
