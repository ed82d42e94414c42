"""How a report's figures are drawn: one way for the page, light and dark, and for the PNG and SVG files beside it.

A figure is drawn once, in the colours of :data:`LIGHT`. For the page its SVG's colours become the page's style variables, so that it follows the
page's theme; its text stays text, in the page's font.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scatterdp.writing import write_whole

PAPER, INK, MUTED, GRID, ACCENT = "#fefefe", "#1c2126", "#5c6670", "#dde1e6", "#0b5fa5"
SERIES = (ACCENT, "#b8470b", "#0b7a55", "#a33a7d", "#7a6200", "#5a4bc4", "#3f6f76")
MARKERS = "osD^vPX"
OTHERS = MUTED
LIGHT = {
    "paper": PAPER, "ink": INK, "muted": MUTED, "grid": GRID, **{f"s{i}": colour for i, colour in enumerate(SERIES)},
}  # fmt: skip
DARK = {
    "paper": "#1b2026", "ink": "#e8ebee", "muted": "#a3adb7", "grid": "#38414a", "s0": "#6db8f7", "s1": "#ff9d5c", "s2": "#45cf9f",
    "s3": "#f09bd0", "s4": "#dfc04a", "s5": "#b1a6ff", "s6": "#8fc5cc",
}  # fmt: skip
"""A colour of the page's style sheet for each name: what :data:`LIGHT` is drawn in, and what it becomes in the dark."""

WIDTH = 4.5  # inches: on a phone's 328 pixels a point is a pixel
_NAME = 60  # letters of a part of a file name
_LEGEND = 56  # letters that fit beside a line's sample

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scatterdp",
    "text.parse_math": False,  # names are people's own
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": PAPER,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "font.size": 9,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its words.

    Args:
        name: of its files, without a suffix.
        figure: drawn in the colours of :data:`LIGHT`.
        title: a few words.
        alt: what it shows, for someone who cannot see it.
        caption: what a reader has to know beside it; may be empty.
    """

    name: str
    figure: Figure = field(repr=False)
    title: str
    alt: str
    caption: str = ""

    @cached_property
    def _svg(self) -> str:
        text = io.StringIO()
        with style():
            self.figure.savefig(text, format="svg", metadata={"Date": None})
            self.figure.set_layout_engine("none")  # done; it takes longer than drawing
        return text.getvalue()

    def save(self, folder: Path) -> None:
        """Write ``NAME.png`` and ``NAME.svg``."""
        write_whole(folder / f"{self.name}.svg", self._svg)
        pixels = io.BytesIO()
        with style():
            self.figure.savefig(pixels, dpi=200, format="png")
        write_whole(folder / f"{self.name}.png", pixels.getvalue())

    def inline(self) -> str:
        """SVG for the page: no fixed size, its colours by name, no identifier that another figure has."""
        svg = self._svg[self._svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
        width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
        opening = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false" xmlns:xlink="http://www.w3.org/1999/xlink">'
        svg = re.sub(r"<svg.*?>", opening, svg, count=1, flags=re.DOTALL)
        svg = re.sub(r'\bid="', f'id="{self.name}-', svg)
        svg = re.sub(r'(href="|url\()#', rf"\1#{self.name}-", svg)
        for name, colour in LIGHT.items():
            svg = svg.replace(colour, f"var(--{name})")
        svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
        return re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's


@contextmanager
def style() -> Iterator[None]:
    """The figures' style; a letter that the files' font lacks is drawn as a box, and not worth a warning."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def legend_below(figure: Figure, axes: Axes) -> None:
    """All that is labelled, in one column under the figure: long names never lie on data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        wrapped = [textwrap.fill(label, _LEGEND) for label in labels]
        figure.legend(handles, wrapped, loc="outside lower left", handlelength=2.4, labelspacing=0.35, borderpad=0)


def file_name(*parts: str) -> str:
    """Letters, digits and underscores of what people have named.

    >>> file_name("<b>My data</b>", "confusion")
    'b-My-data-b_confusion'
    """
    return "_".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.")[:_NAME] or "x" for part in parts)
