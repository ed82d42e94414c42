"""Pictures of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure


def plot_accuracy_and_epsilon(
    metrics: list[dict[str, Any]], path: Path | BinaryIO, *, title: str, delta: float
) -> None:
    """Write a PNG: test accuracy (last and averaged weights) above, ε below, against optimizer steps.

    Args:
        metrics: rows with ``step``, ``epsilon`` (None: no guarantee), ``test_accuracy``, ``test_accuracy_ema``.
        path: the PNG to write, or a file that is open.
        title: one line.
        delta: δ, for the axis label.
    """
    if "C" in metrics[0]:
        _plot_accuracy_and_penalty(metrics, path, title=title)
        return
    steps = [row["step"] for row in metrics]
    marker = "o" if len(steps) < 40 else ""
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    accuracy = [100 * row["test_accuracy"] for row in metrics]
    average = [100 * row["test_accuracy_ema"] for row in metrics]
    above.plot(steps, accuracy, marker=marker, markersize=3, color="#0072b2", label="last weights")
    above.plot(steps, average, marker=marker, markersize=3, color="#d55e00", label="averaged weights")
    above.set_ylabel("test accuracy (%)")
    above.set_title(title)
    above.grid(alpha=0.3)
    above.legend(loc="lower right")
    if all(row["epsilon"] is not None for row in metrics):
        below.plot(steps, [row["epsilon"] for row in metrics], marker=marker, markersize=3, color="#009e73")
        below.set_ylim(bottom=0)
    else:
        below.text(0.5, 0.5, "no noise: no guarantee", ha="center", va="center", transform=below.transAxes)
    below.set_ylabel(f"ε at δ = {delta:g}")
    below.set_xlabel("steps")
    below.grid(alpha=0.3)
    figure.savefig(path, dpi=150, format="png")


def _plot_accuracy_and_penalty(metrics: list[dict[str, Any]], path: Path | BinaryIO, *, title: str) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    penalties = [row["C"] for row in metrics]
    axes.semilogx(penalties, [100 * row["test_accuracy"] for row in metrics], marker="o", label="test")
    axes.semilogx(penalties, [100 * row["train_accuracy_not_private"] for row in metrics], marker="o", label="train")
    axes.set_xlabel("C (inverse penalty)")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(f"{title}: logistic regression, NOT PRIVATE")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
