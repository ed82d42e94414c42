"""A made-up image set: coloured shapes on noise, as class folders or as shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PUBLIC = ("circle", "square", "cross", "stripes")
PRIVATE = ("ring", "bar", "triangle")


def draw(kind: str, rng: np.random.Generator, size: int = 32) -> Image.Image:
    """One shape of random place, size and colour."""
    image = Image.fromarray(rng.integers(0, 60, (size, size, 3), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    colour = tuple(int(v) for v in rng.integers(120, 256, 3))
    r = int(rng.integers(size // 4, size // 3 + 1))
    x, y = (int(v) for v in rng.integers(r, size - r, 2))
    box = (x - r, y - r, x + r, y + r)
    if kind == "circle":
        pen.ellipse(box, fill=colour)
    elif kind == "ring":
        pen.ellipse(box, outline=colour, width=3)
    elif kind == "square":
        pen.rectangle(box, fill=colour)
    elif kind == "bar":
        pen.rectangle((x - r, y - 2, x + r, y + 2), fill=colour)
    elif kind == "triangle":
        pen.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill=colour)
    elif kind == "cross":
        pen.line((x - r, y, x + r, y), fill=colour, width=4)
        pen.line((x, y - r, x, y + r), fill=colour, width=4)
    else:
        for offset in range(-r, r + 1, 5):
            pen.line((x + offset, y - r, x + offset, y + r), fill=colour, width=2)
    return image


def write_folder(folder: Path, kinds: tuple[str, ...], *, train: int, test: int, seed: int = 0, size: int = 32) -> Path:
    """``train`` and ``test`` images of each kind as ``split/kind/NN.png``."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for kind in kinds:
            place = folder / split / kind
            place.mkdir(parents=True)
            for number in range(count):
                draw(kind, rng, size).save(place / f"{number:04}.png")
    return folder


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member of a tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def shards_like(folder: Path, target: Path, *, shards: int = 2) -> Path:
    """The images of a class folder as WebDataset shards, rows in the order of the folder."""
    target.mkdir()
    classes = sorted(path.name for path in (folder / "train").iterdir())
    for split, name in (("train", "train"), ("test", "val")):
        files = [path for kind in classes for path in sorted((folder / split / kind).iterdir())]
        for number, part in enumerate(np.array_split(np.arange(len(files)), shards)):
            with tarfile.open(target / f"{name}-{number:04}.tar", "w") as archive:
                for row in part:
                    add(archive, f"{row:06}.png", files[row].read_bytes())
                    add(archive, f"{row:06}.cls", str(classes.index(files[row].parent.name)).encode())
                    add(archive, f"{row:06}.json", b"{}")
    return target
