"""What clipping costs: the benchmark's table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from scatterdp.benchmarking import CONTENDERS, Cell, Largest

_COLOURS = (
    "#000000",
    "#56b4e9",
    "#cc79a7",
    "#e69f00",
    "#b5a200",
    "#009e73",
    "#0072b2",
    "#7b3294",
    "#d55e00",
    "#999999",
)
_MARKERS = "osv^DPXhd*"
_BASELINE = "non_private"


def clipping_table(cells: Sequence[Cell], largest: dict[tuple[str, str], Largest], bound: str | None) -> str:
    """Markdown: per network and batch size, milliseconds and megabytes (10⁶ bytes) of a step, and how many times ``non_private``'s.

    Args:
        cells: what was measured.
        largest: by network and contender; may be empty.
        bound: the memory bound of ``largest``, as it was given.
    """
    lines: list[str] = []
    plain = {(cell.network, cell.batch_size): cell for cell in cells if cell.contender == _BASELINE}
    for network in dict.fromkeys(cell.network for cell in cells):
        lines += [
            f"## {network}\n",
            f"| batch | contender | ms per step | ÷ {_BASELINE} | extra memory (MB) | ÷ {_BASELINE} | note |",
            "|---|---|---|---|---|---|---|",
        ]
        for cell in (cell for cell in cells if cell.network == network):
            base = plain.get((network, cell.batch_size), Cell(network=network, batch_size=0, contender=_BASELINE))
            values = (
                _number(cell.median_seconds, 1e3),
                _ratio(cell.median_seconds, base.median_seconds),
                _number(cell.extra_memory, 1e-6),
                _ratio(cell.extra_memory, base.extra_memory),
                (cell.note or "").replace("|", "/"),
            )
            lines.append(f"| {cell.batch_size} | {cell.contender} | {' | '.join(values)} |")
        rows = [(contender, found) for (name, contender), found in largest.items() if name == network]
        if rows:
            lines += [
                f"\nLargest physical batch whose step takes at most {bound} beside weights and batch:\n",
                "| contender | largest batch | how it was found |",
                "|---|---|---|",
                *(f"| {name} | {'–' if f.batch_size is None else f.batch_size} | {f.how} |" for name, f in rows),
            ]
        lines.append("")
    return "\n".join(lines)


def plot_clipping_cost(cells: Sequence[Cell], paths: Sequence[Path], *, title: str) -> None:
    """A column a network: above, time per example against batch size; below, memory against speed, a point a batch size.

    Args:
        cells: what was measured; those without a figure are left out.
        paths: the files to write, in the formats that their suffixes name.
        title: one line.
    """
    networks = list(dict.fromkeys(cell.network for cell in cells))
    figure = Figure(figsize=(max(7.0, 3.6 * len(networks)), 7), layout="constrained")
    axes = figure.subplots(2, len(networks), squeeze=False)
    for column, network in enumerate(networks):
        above, below = axes[:, column]
        for contender in CONTENDERS:
            _draw(above, below, [cell for cell in cells if (cell.network, cell.contender) == (network, contender)])
        _axes(above, title=network, x="physical batch size", y="milliseconds per example")
        sizes = sorted({cell.batch_size for cell in cells if cell.network == network})
        above.set_xticks(sizes, [str(size) for size in sizes])
        above.xaxis.set_minor_locator(NullLocator())
        _axes(below, title="", x="extra memory of a step (MB)", y="examples per second")
        below.tick_params(axis="x", labelsize=7)
    handles = {handle.get_label(): handle for axis in axes[0] for handle in axis.get_legend_handles_labels()[0]}
    order = [name for name in CONTENDERS if name in handles]
    figure.legend(
        [handles[name] for name in order], order, loc="outside lower center", ncols=min(5, max(1, len(order)))
    )
    figure.suptitle(title)
    for path in paths:
        figure.savefig(path, dpi=150)


def _draw(above: Axes, below: Axes, cells: Sequence[Cell]) -> None:
    """One contender's lines on one network."""
    timed = [(cell, cell.median_seconds) for cell in cells if cell.median_seconds]
    if not timed:
        return
    name = timed[0][0].contender
    number = list(CONTENDERS).index(name)
    style: dict[str, Any] = {
        "color": _COLOURS[number],
        "marker": _MARKERS[number],
        "markersize": 4,
        "linewidth": 1.2,
        "linestyle": "--" if name == _BASELINE else ":" if name.startswith("opacus") else "-",
        "label": name,
    }
    above.loglog([cell.batch_size for cell, _ in timed], [1e3 * s / cell.batch_size for cell, s in timed], **style)
    known = [(cell.extra_memory / 1e6, cell.batch_size / s) for cell, s in timed if cell.extra_memory]
    below.loglog([memory for memory, _ in known], [speed for _, speed in known], **style)


def _axes(axes: Axes, *, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _number(value: float | None, unit: float) -> str:
    """Three significant digits, or a dash.

    >>> _number(0.01234, 1e3), _number(4.5678, 1e3), _number(None, 1)
    ('12.3', '4568', '–')
    """
    if value is None:
        return "–"
    value *= unit
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float | None, base: float | None) -> str:
    return _number(value / base, 1) if value is not None and base else "–"
