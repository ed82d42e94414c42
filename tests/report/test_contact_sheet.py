"""Contact sheets: every image is on it, unchanged but for its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scatterdp.errors import ConfigError
from scatterdp.report.contact_sheet import contact_sheet


def draw(path: Path, images: np.ndarray, title: str = "title", **options) -> np.ndarray:
    """The sheet's ``(H, W, 3)`` pixels."""
    contact_sheet(images, path, title=title, **options)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        return np.asarray(sheet.convert("RGB"))


def colours(count: int, size: int = 40) -> np.ndarray:
    """``(n, 3, size, size)`` images, each of one colour that no other has."""
    steps = np.arange(count, dtype=np.float32)[:, None, None, None] / 255
    flat = np.concatenate([0.2 + steps, 0.4 - steps, np.full_like(steps, 0.8)], axis=1)
    return np.broadcast_to(flat, (count, 3, size, size))


def boxes(pixels: np.ndarray, images: np.ndarray) -> list[tuple[int, int, int, int]]:
    """For each one-coloured image the first and last row and column where it is on the sheet."""
    found = []
    for image in images:
        rows, columns = np.nonzero((pixels == np.rint(255 * image[:, 0, 0]).astype(np.uint8)).all(2))
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        found.append((rows.min(), rows.max(), columns.min(), columns.max()))
    return found


def test_images_are_laid_out_in_reading_order_and_enlarged_alike(tmp_path):
    images = colours(7)
    found = boxes(draw(tmp_path / "sheet.png", images), images)  # 3 columns
    tops, bottoms, lefts, rights = (np.array(values) for values in zip(*found, strict=True))
    assert len({*(bottoms - tops), *(rights - lefts)}) == 1
    assert (tops[0] + 1 - tops[0] + bottoms[0] - tops[0]) % 40 == 0
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[5] < tops[6]
    assert lefts[0] == lefts[3] == lefts[6] < lefts[1] < lefts[2]


def test_pixels_are_not_smoothed(tmp_path):
    image = np.random.default_rng(0).random((1, 3, 20, 30)).astype(np.float32)
    pixels = draw(tmp_path / "sheet.png", image)
    zoom = 1200 // 32
    inner = pixels[pixels.shape[0] - 10 - zoom * 22 :][: zoom * 20, 10 : 10 + zoom * 30]
    expected = np.rint(255 * image[0]).astype(np.uint8).transpose(1, 2, 0).repeat(zoom, 0).repeat(zoom, 1)
    np.testing.assert_array_equal(inner, expected)


def test_grey_images_are_grey(tmp_path):
    pixels = draw(tmp_path / "sheet.png", np.full((4, 1, 8, 8), 0.4, np.float32))
    assert (pixels == 102).all(2).mean() > 0.5


def test_labels_stand_beside_their_rows(tmp_path):
    images = colours(4)
    pixels = draw(tmp_path / "sheet.png", images, columns=2, labels=["one", "two"])
    found = boxes(pixels, images)
    left = found[0][2]
    for top, bottom, *_ in (found[0], found[2]):
        dark = np.nonzero((pixels[top:bottom, :left].sum(2) < 200).any(1))[0]
        assert len(dark) > 4
        assert abs(dark.mean() - (bottom - top) / 2) < 8
    assert (pixels[: found[0][0]].sum(2) < 200).sum() > 20  # the title


def test_large_sheets_are_not_enlarged(tmp_path):
    pixels = draw(tmp_path / "sheet.png", colours(1, size=1300))
    assert boxes(pixels, colours(1, size=1300))[0][1] - boxes(pixels, colours(1, size=1300))[0][0] == 1299


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 2, 8, 8)), {}, r"images of shape \(2, 2, 8, 8\): expected \(n, 1, H, W\) or \(n, 3, H, W\)"),
        (np.zeros((0, 1, 8, 8)), {}, r"images of shape \(0, 1, 8, 8\): expected"),
        (np.zeros((8, 8)), {}, r"images of shape \(8, 8\): expected"),
        (np.full((1, 1, 8, 8), 255.0), {}, r"images: values from 255 to 255, expected \[0, 1\]"),
        (np.full((1, 1, 8, 8), np.nan), {}, r"images: values from nan to nan, expected \[0, 1\]"),
        (np.zeros((4, 1, 8, 8)), {"columns": 2, "labels": ["a"]}, r"labels=\['a'\]: expected one for each of 2 rows"),
        (np.zeros((4, 1, 8, 8)), {"columns": 0}, "columns=0: expected a whole number ≥ 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, images, options, message):
    with pytest.raises(ConfigError, match=message):
        contact_sheet(images, tmp_path / "sheet.png", title="", **options)
    assert not list(tmp_path.iterdir())
