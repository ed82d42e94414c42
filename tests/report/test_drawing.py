"""A figure for the page and for files."""

from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from run_folders import files_of_at_most

from scatterdp.report.drawing import DARK, LIGHT, SERIES, Drawing, file_name, legend_below, style


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    with style():
        figure = Figure(figsize=(4, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [1, 2], "o-", color=SERIES[1], label="<script>alert(1)</script> & $\\frac{$ 猫")
        axes.set_xlabel("ε")
        legend_below(figure, axes)
    return Drawing(name="a_figure", figure=figure, title="A figure", alt="A line that rises.")


def test_the_page_has_its_text_in_the_pages_colours(drawing):
    svg = drawing.inline()
    assert svg.startswith("<svg viewBox=")
    assert ">ε</text>" in svg
    assert not re.search("|".join(LIGHT.values()), svg)
    assert {"var(--ink)", "var(--paper)", "var(--s1)"} <= set(re.findall(r"var\(--\w+\)", svg))
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= LIGHT.keys()
    assert "DejaVu" not in svg


def test_what_people_have_named_is_text(drawing):
    svg = drawing.inline()
    assert "<script" not in svg
    assert "&lt;script&gt;alert(1)" in svg
    assert "frac{$" in svg


def test_identifiers_are_the_figures_own(drawing):
    svg = drawing.inline()
    identifiers = re.findall(r'\bid="([^"]*)"', svg)
    assert identifiers
    assert all(name.startswith("a_figure-") for name in identifiers)
    references = re.findall(r'href="#([^"]*)"', svg) + re.findall(r"url\(#([^)]*)\)", svg)
    assert references
    assert set(references) <= set(identifiers)


def test_nothing_is_loaded_from_elsewhere(drawing):
    links = re.findall(r'(?:href|src)="([^#"][^"]*)"', drawing.inline())
    assert links == []
    assert set(re.findall(r'https?://[^"\s<]+', drawing.inline())) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }


def test_files_stand_on_their_own(drawing, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_figure.png", "a_figure.svg"]
    pixels = np.asarray(Image.open(tmp_path / "a_figure.png").convert("RGB"))
    assert pixels.shape[:2] == (600, 800)
    assert (pixels[0] > 250).all()
    assert (np.abs(pixels.astype(int) - [int(SERIES[1][i : i + 2], 16) for i in (1, 3, 5)]).sum(2) < 10).sum() > 500
    root = ET.parse(tmp_path / "a_figure.svg").getroot()
    assert root.tag.endswith("svg")
    assert "var(--" not in (tmp_path / "a_figure.svg").read_text()


def test_the_same_figure_is_the_same_file(drawing, tmp_path):
    assert drawing.inline() == drawing.inline()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        drawing.save(tmp_path / name)
    assert (tmp_path / "a" / "a_figure.svg").read_bytes() == (tmp_path / "b" / "a_figure.svg").read_bytes()


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_have_contrast(theme):
    """WCAG 2.1: 4.5 for text, 7 for high contrast, 3 for graphics; figures' numbers stand in series' colours nowhere."""
    paper = luminance(theme["paper"])

    def contrast(name: str) -> float:
        lighter, darker = sorted((luminance(theme[name]), paper), reverse=True)
        return (lighter + 0.05) / (darker + 0.05)

    assert contrast("ink") > 12
    assert contrast("muted") > 5
    assert all(contrast(f"s{number}") > 4.5 for number in range(len(SERIES)))


def test_both_themes_name_the_same_colours():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_names_of_files():
    assert file_name("../../etc", "x") == "etc_x"
    assert file_name("", "") == "x_x"
    assert len(file_name("y" * 500, "z")) < 100


def test_of_a_figure_that_cannot_be_written_nothing_is_left(tmp_path):
    drawing = Drawing(name="a", figure=Figure(), title="", alt="")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        drawing.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
