"""A budget's picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

_COLOURS = {"pld": "#0072b2", "rdp": "#009e73", "rdp_classic": "#d55e00"}


def plot_budget(
    by_noise: Mapping[str, Mapping[float, float]],
    by_epochs: Mapping[int, float],
    path: Path,
    *,
    title: str,
    delta: float,
) -> None:
    """Write a PNG: ε against the noise multiplier by accountant, and against epochs.

    Args:
        by_noise: accountant → noise multiplier → ε.
        by_epochs: number of epochs → ε by privacy loss distributions.
        path: the PNG to write.
        title: one line.
        delta: δ, for the axis label.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in by_noise.items():
        left.plot(list(values), list(values.values()), marker="o", markersize=3, color=_COLOURS[name], label=name)
    left.set_xlabel("noise multiplier")
    left.legend()
    right.plot(list(by_epochs), list(by_epochs.values()), marker="o", markersize=3, color=_COLOURS["pld"])
    right.set_xlabel("epochs, at the noise that the budget needs")
    for axes in (left, right):
        axes.set_ylabel(f"ε at δ = {delta:g}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=150, format="png")
