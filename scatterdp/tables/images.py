"""A folder of images as a table: ``FOLDER/<class>/*.png|jpg``, with or without ``train/`` and ``test/`` above, or images alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scatterdp.datasets.folder import (
    ImageHeader,
    check_one_size,
    class_folders,
    file_safe_name,
    image_files,
    read_header,
    read_images,
)
from scatterdp.tables.source import Source
from scatterdp.tables.table import FeatureTable


def has_splits(folder: Path) -> bool:
    """Whether ``folder`` has ``train/`` with folders in it. (A class may be called train: then there are images in it.)"""
    train = folder / "train"
    return train.is_dir() and bool(class_folders(train))


def read_image_splits(source: Source) -> tuple[FeatureTable, FeatureTable | None]:
    """``train/<class>/…`` and, where it is there, ``test/<class>/…``: one size, and RGB if a single image is in colour.

    Raises:
        DatasetError: as :func:`read_image_table`.
    """
    folders = [source.path / split for split in ("train", "test") if (source.path / split).is_dir()]
    files = [_files(source, folder) for folder in folders]
    headers = [[read_header(path) for path in paths] for paths in files]
    check_one_size([header for split in headers for header in split])
    colour = any(header.is_colour for split in headers for header in split)
    tables = [_table(source, folder, split, colour) for folder, split in zip(folders, headers, strict=True)]
    return tables[0], tables[1] if len(tables) > 1 else None


def read_image_table(source: Source, *, like: tuple[int, ...] | None = None) -> FeatureTable:
    """The images of a folder, by class and file name; labels are the folders' names, none for images without folders.

    Args:
        source: the folder.
        like: ``(H, W)`` or ``(H, W, 3)`` that the images must have; then grey ones become RGB where RGB is asked. None: as they are,
            RGB if a single one is in colour.

    Raises:
        DatasetError: no images, images beside folders, unreadable ones, several sizes, another size or colour than ``like``.
    """
    headers = [read_header(path) for path in _files(source, source.path)]
    check_one_size(headers)
    colour = any(header.is_colour for header in headers)
    if like is not None:
        width, height = headers[0].size
        if (height, width) != like[:2]:
            raise source.error(f"its images are {width}×{height} pixels, expected {like[1]}×{like[0]}: resize them")
        if colour and len(like) == 2:
            name = next(header.path for header in headers if header.is_colour)
            raise source.error(f"{name.relative_to(source.path)} is in colour, expected grey images: convert them")
        colour = len(like) == 3
    return _table(source, source.path, headers, colour)


def _files(source: Source, folder: Path) -> list[Path]:
    classes = class_folders(folder)
    loose, _ = image_files(folder)
    if loose and classes:
        raise source.error(
            f"{folder} holds images ({loose[0].name}) and folders ({classes[0]}), expected images in class folders, or no folders"
        )
    files = loose
    for name in classes:
        found, _ = image_files(folder / name)
        if not found:
            raise source.error(f"{folder / name} holds no images, expected .png, .jpg or .jpeg")
        files = files + found
    if not files:
        raise source.error(f"{folder} holds no images, expected FOLDER/<class>/*.png, .jpg or .jpeg")
    return files


def _table(source: Source, folder: Path, headers: list[ImageHeader], colour: bool) -> FeatureTable:
    names = [header.path.relative_to(folder) for header in headers]
    has_classes = len(names[0].parts) > 1
    return FeatureTable(
        x=read_images(headers, colour),
        labels=np.array([name.parts[0] for name in names]) if has_classes else None,
        name=file_safe_name(source.path.resolve().name),
        row_names=tuple(name.as_posix() for name in names),
    )
