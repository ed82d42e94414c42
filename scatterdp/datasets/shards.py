"""Images in WebDataset shards: ``.tar`` files with ``KEY.jpg`` (or ``.jpeg``, ``.png``) beside ``KEY.cls``, the class number in text.

A shard is usually streamed from first to last. Poisson sampling draws rows from anywhere, so a shard is indexed once, headers only, and its images
are read where they lie.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from scatterdp.datasets.folder import IMAGE_SUFFIXES
from scatterdp.errors import DatasetError

_LONGEST_LABEL = 20  # bytes


@dataclass(frozen=True)
class ShardedImage:
    """Where one image's file lies in a shard, in bytes, and its class number."""

    key: str
    offset: int
    length: int
    label: int


def shards_of(folder: Path, split: str) -> list[Path]:
    """``split*.tar`` in a folder, sorted by name."""
    return sorted(path for path in folder.glob(f"{split}*.tar") if path.is_file())


def index_shard(path: Path) -> list[ShardedImage]:
    """The images of one shard, in the order of the file; members other than images and labels are ignored.

    Raises:
        DatasetError: not a tar file, a compressed one, or one cut short; an image without a label, a label without an image or that is no
            whole number ≥ 0; two of one key.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}"
                is_image, is_label = f".{extension.lower()}" in IMAGE_SUFFIXES, extension == "cls"
                if not member.isreg() or not (is_image or is_label):
                    continue
                if key in (images if is_image else labels):
                    raise DatasetError(
                        f"{path}: has two {'images' if is_image else 'labels'} of key {key.lstrip('/')!r}"
                    )
                if is_image:
                    images[key] = (member.offset_data, member.size)
                    continue
                file = archive.extractfile(member)
                assert file is not None
                text = file.read(_LONGEST_LABEL).decode("ascii", "replace").strip()
                if not text.isdecimal():
                    raise DatasetError(
                        f"{path}: the label {member.name} is {text!r}, expected the number of a class, from 0"
                    )
                labels[key] = int(text)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{path}: not a readable, uncompressed tar file, or one cut short ({error})") from error
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        missing = ".cls" if alone[0] in images else "image"
        raise DatasetError(f"{path}: key {alone[0].lstrip('/')!r} has no {missing}; expected KEY.jpg beside KEY.cls")
    end = path.stat().st_size
    for key, (offset, length) in images.items():
        if offset + length > end:
            raise DatasetError(f"{path}: is cut short in {key.lstrip('/')!r}")
    return [ShardedImage(key.lstrip("/"), *where, labels[key]) for key, where in images.items()]
