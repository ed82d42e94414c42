"""Pictures: that there is something in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scatterdp.report.plots import plot_accuracy_and_epsilon

BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def make_rows(count: int = 6, **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "step": 2 * (i + 1),
            "epsilon": 0.5 * (i + 1),
            "test_accuracy": 0.5 + 0.4 * i / count,
            "test_accuracy_ema": 0.4 + 0.4 * i / count,
        }
        | changes
        for i in range(count)
    ]


def draw(path: Path, rows: list[dict[str, Any]], title: str = "a title") -> np.ndarray:
    plot_accuracy_and_epsilon(rows, path, title=title, delta=1e-5)
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB")).astype(int)


def places(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """``(n, 2)`` rows and columns of the pixels of exactly this colour."""
    return np.argwhere((pixels == colour).all(2))


def test_three_curves_in_two_panels(tmp_path):
    pixels = draw(tmp_path / "plot.png", make_rows())
    height, width, _ = pixels.shape
    assert (width, height) == (1050, 900)
    curves = {name: places(pixels, colour) for name, colour in (("last", BLUE), ("average", ORANGE), ("ε", GREEN))}
    assert {name: len(curve) > 300 for name, curve in curves.items()} == {"last": True, "average": True, "ε": True}
    assert max(curves["last"][:, 0].max(), curves["average"][:, 0].max()) < curves["ε"][:, 0].min()
    for curve in curves.values():
        assert np.ptp(curve[:, 1]) > 0.6 * width
    assert 0.3 < (pixels == 255).all(2).mean() < 0.99
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_curves_rise_with_the_numbers(tmp_path):
    curve = places(draw(tmp_path / "plot.png", make_rows()), GREEN)
    left, right = curve[curve[:, 1] < np.median(curve[:, 1])], curve[curve[:, 1] > np.median(curve[:, 1])]
    assert left[:, 0].mean() > right[:, 0].mean() + 20  # row 0 is on top


def test_one_row_is_a_point(tmp_path):
    pixels = draw(tmp_path / "plot.png", make_rows(1))
    assert all(len(places(pixels, colour)) > 5 for colour in (BLUE, ORANGE, GREEN))


def test_many_rows(tmp_path):
    pixels = draw(tmp_path / "plot.png", make_rows(300))
    assert all(len(places(pixels, colour)) > 300 for colour in (BLUE, ORANGE, GREEN))


@pytest.mark.parametrize("without", [slice(None), slice(2, 3)])
def test_without_noise_there_is_no_curve_of_epsilon_but_a_sentence(tmp_path, without):
    rows = make_rows()
    for row in rows[without]:
        row["epsilon"] = None
    pixels = draw(tmp_path / "plot.png", rows)
    assert len(places(pixels, GREEN)) == 0
    assert len(places(pixels, BLUE)) > 300
    private = draw(tmp_path / "private.png", make_rows())
    below = slice(640, 800), slice(300, 800)  # the middle of the lower panel
    assert (pixels[below].sum(2) < 200).sum() > (private[below].sum(2) < 200).sum() + 100


def test_the_title_is_drawn(tmp_path):
    short, long = (draw(tmp_path / "plot.png", make_rows(), title)[:40] for title in ("t", "a much longer title"))
    assert (long.sum(2) < 200).sum() > (short.sum(2) < 200).sum() + 100


def test_logistic_regression_has_its_own_picture(tmp_path):
    rows = [
        {"C": c, "test_accuracy": 0.8 - 0.1 * i, "train_accuracy_not_private": 0.8 + 0.02 * i}
        for i, c in enumerate((0.01, 0.1, 1.0, 10.0, 100.0))
    ]
    pixels = draw(tmp_path / "plot.png", rows)
    assert pixels.shape == (600, 1050, 3)
    assert len(places(pixels, (0x1F, 0x77, 0xB4))) > 300
    assert len(places(pixels, (0xFF, 0x7F, 0x0E))) > 300
    assert len(places(pixels, GREEN)) == 0


def test_an_old_picture_is_replaced(tmp_path):
    path = tmp_path / "plot.png"
    path.write_text("something else")
    draw(path, make_rows())
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]
