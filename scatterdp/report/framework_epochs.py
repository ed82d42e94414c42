"""Seconds of an epoch by framework: the tables."""

from __future__ import annotations

from collections.abc import Sequence

from scatterdp.benchmarking.frameworks import FRAMEWORKS, Row, Trial, fastest


def epoch_table(rows: Sequence[Row]) -> str:
    """Markdown: a row a network, batch size and framework."""
    lines = [
        "| network | batch | framework | seconds per epoch | fastest–slowest turn | DP ÷ non-DP, same framework | ÷ scatterdp | compiling (s) | steps timed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    medians = {(row.network, row.batch_size, row.framework): row.median_seconds for row in rows}
    for row in rows:
        plain = FRAMEWORKS[row.framework]
        base = None if plain is None else medians.get((row.network, row.batch_size, plain))
        ours = medians.get((row.network, row.batch_size, "scatterdp"))
        values = (
            row.framework,
            _number(row.median_seconds),
            f"{_number(min(row.seconds))}–{_number(max(row.seconds))}",
            "–" if base is None else f"{row.median_seconds / base:.2f}",
            "–" if ours is None else f"{row.median_seconds / ours:.2f}",
            "–" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
            f"{row.steps} of {row.steps_per_epoch}",
        )
        lines.append(f"| {row.network} | {row.batch_size} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def trial_table(trials: dict[str, list[Trial]]) -> str:
    """Markdown: every way that was tried, and how far a step in it is from autograd's."""
    lines = [
        "| network | framework | way | ms per example | relative difference |",
        "|---|---|---|---|---|",
    ]
    for network, found in trials.items():
        chosen = fastest(found).values()
        for trial in found:
            way = f"**{trial.way}**" if trial in chosen else trial.way
            difference = "–" if trial.difference is None else f"{trial.difference:.1e}"
            lines.append(f"| {network} | {trial.framework} | {way} | {_number(1e3 * trial.seconds)} | {difference} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
