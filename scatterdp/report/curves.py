"""Accuracy against ε, accuracy against epochs, and ε by mechanism: figures of many runs on one data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from scatterdp.privacy.certificate import TRAINING, rounded_up
from scatterdp.report.drawing import (
    INK,
    MARKERS,
    MUTED,
    OTHERS,
    PAPER,
    SERIES,
    WIDTH,
    Drawing,
    file_name,
    legend_below,
    style,
)
from scatterdp.report.published import PublishedResult
from scatterdp.report.runs import Run
from scatterdp.report.settings import Setting, names_of_series, same_but_for_budget, same_but_for_seed
from scatterdp.report.spending import TOGETHER, Spending, spending

_DECIMALS = 2  # of an ε in a figure
_MOST_BARS = 12
_MOST_TOLD = 8  # figures in an alternative text
_DASHES = ((0, (6, 2)), (0, (3, 2)), (0, (1, 1.6)), (0, (6, 2, 1, 2)), (0, (8, 3)))


def plot_accuracy(runs: Sequence[Run], published: Sequence[PublishedResult], *, dataset: str) -> Drawing | None:
    """Test accuracy against ε: every run, mean ± standard deviation over seeds, and what others have published; None without accuracies."""
    settings = [setting for setting in same_but_for_seed(runs) if setting.mean is not None]
    private = [setting for setting in settings if setting.epsilon is not None]
    if not settings:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        axes = figure.subplots()
        _epsilon_axis(axes, [_epsilon(s) for s in private] + [e for result in published for e in result.points])
        lines = _lines(private)
        places = _side_by_side(axes, [setting for line in lines for setting in line.settings])
        for line in lines:
            x = [places[id(setting)] for setting in line.settings]
            y = [100 * _mean(setting) for setting in line.settings]
            axes.plot(
                [at for at, s in zip(x, line.settings, strict=True) for _ in s.accuracies],
                [100 * accuracy for s in line.settings for accuracy in s.accuracies],
                "o", markersize=2.5, color=line.colour, alpha=0.5, linestyle="none",
            )  # fmt: skip
            axes.plot(
                x, y, color=line.colour, marker=line.marker, markersize=5.5, markeredgecolor=PAPER, markeredgewidth=0.6,
                linestyle="-" if line.is_joined else "none", label=line.label,
            )  # fmt: skip
            bars = [
                (at, value, 100 * s.deviation) for at, value, s in zip(x, y, line.settings, strict=True) if s.deviation
            ]
            if bars:
                axes.errorbar(*zip(*bars, strict=True), color=line.colour, capsize=2.5, linestyle="none", linewidth=1.2)  # type: ignore[call-overload]
        _draw_published(axes, published)
        for number, setting in enumerate(s for s in settings if s.epsilon is None):
            label = "without privacy" if number == 0 else None
            axes.axhline(100 * _mean(setting), color=INK, linewidth=1.2, linestyle=(0, (1, 1)), label=label)
        axes.set_xlabel(f"ε at δ = {', '.join(f'{delta:g}' for delta in sorted({run.delta for run in runs}))}")
        axes.set_ylabel("test accuracy (%)")
        legend_below(figure, axes)
    return Drawing(
        name=file_name(dataset, "accuracy_epsilon"),
        figure=figure,
        title="Accuracy against ε",
        alt=f"Test accuracy against ε on {dataset}. {_told(settings)} {_told_published(published)}".strip(),
        caption="A dot is a run, a large mark the mean of the seeds of one setting, its bar one sample standard deviation. Settings of one ε stand "
        "beside each other."
        + (" Published results stand at their own ε; the broken lines only carry them across." if published else ""),
    )


def plot_training(runs: Sequence[Run], *, dataset: str) -> Drawing | None:
    """Test accuracy and ε epoch by epoch, mean over seeds with the range; None where no run recorded epochs."""
    settings = same_but_for_seed([run for run in runs if _epochs(run)])
    if not settings:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for line in _lines(settings):
            for number, setting in enumerate(line.settings):
                curves = [_epochs(run) for run in setting.runs]
                length = min(len(rows) for rows in curves)
                epochs = [row["epoch"] for row in curves[0][:length]]
                values = [[100 * rows[i]["test_accuracy"] for rows in curves] for i in range(length)]
                strength = 0.4 + 0.6 * (number + 1) / len(line.settings) if line.is_joined else 0.8
                look: Any = {
                    "color": line.colour,
                    "alpha": strength,
                    "marker": line.marker if length == 1 else "",
                    "linewidth": 1.6 if len(settings) < 20 else 0.9,
                }
                label = line.label if number == len(line.settings) - 1 else None
                above.plot(epochs, [sum(v) / len(v) for v in values], label=label, **look)
                above.fill_between(
                    epochs,
                    [min(v) for v in values],
                    [max(v) for v in values],
                    color=line.colour,
                    alpha=0.15,
                    linewidth=0,
                )
                spent = [row.get("epsilon") for row in curves[0][:length]]
                if all(isinstance(value, int | float) for value in spent):
                    below.plot(epochs, spent, **look)
        above.set_ylabel("test accuracy (%)")
        below.set_ylabel("ε so far")
        below.set_ylim(bottom=0)
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(figure, above)
    firsts, lasts = zip(
        *((_epochs(s.runs[0])[0]["test_accuracy"], _epochs(s.runs[0])[-1]["test_accuracy"]) for s in settings),
        strict=True,
    )
    return Drawing(
        name=file_name(dataset, "training"),
        figure=figure,
        title="Training",
        alt=f"Test accuracy and ε after each epoch on {dataset}, {len(settings)} setting{'s' * (len(settings) > 1)}. Accuracy goes from "
        f"{_range(firsts)} after the first recorded epoch to {_range(lasts)} after the last; ε only grows.",
        caption="A line is the mean over a setting's seeds, its band their range. Lines of one colour differ in ε: the stronger, the larger.",
    )


def plot_spending(runs: Sequence[Run], *, dataset: str) -> Drawing | None:
    """ε of each mechanism alone and of all together, a group of bars a ledger; None where no run is private."""
    ledgers: dict[tuple[Spending, ...], Run] = {}
    for run in sorted((run for run in runs if run.epsilon is not None), key=lambda run: run.epsilon or 0.0):
        ledgers.setdefault(tuple(spending(run.certificate)), run)
    shown = list(ledgers.items())
    left_out = len(shown) - _MOST_BARS
    if left_out > 0:  # evenly, the smallest and the largest ε among them
        shown = [shown[round(i * (len(shown) - 1) / (_MOST_BARS - 1))] for i in range(_MOST_BARS)]
    if not shown:
        return None
    names = list(dict.fromkeys(part.mechanism for parts, _ in shown for part in parts if part.mechanism != TOGETHER))
    names.sort(key=lambda name: name == TRAINING)  # last, as in a run
    colours = {name: SERIES[(i + 1) % len(SERIES)] for i, name in enumerate(names)} | {TOGETHER: SERIES[0]}
    with style():
        rows = sum(len(parts) for parts, _ in shown)
        figure = Figure(figsize=(WIDTH, 1.2 + 0.17 * rows + 0.12 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for name in [*names, TOGETHER]:
            axes.barh(0, 0, color=colours[name], label=_alone(name))
        y, ticks = 0.0, []
        for parts, run in shown:
            begin = y
            for part in parts:
                width = part.epsilon or 0.0
                axes.barh(y, width, 0.86, color=colours[part.mechanism])
                axes.annotate(
                    rounded_up(width, _DECIMALS),
                    (width, y),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                )
                y += 1
            ticks.append(((begin + y - 1) / 2, _ledger_in_words(run)))
            y += 0.7
        axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=8)
        axes.set_ylim(y - 1, -0.8)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.1)
        axes.set_xlabel("ε")
        legend_below(figure, axes)
    told = "; ".join(
        f"{_ledger_in_words(run).replace(chr(10), ', ')}: "
        + ", ".join(f"{_alone(p.mechanism)} {rounded_up(p.epsilon or 0.0, _DECIMALS)}" for p in parts)
        for parts, run in shown[:_MOST_TOLD]
    )
    return Drawing(
        name=file_name(dataset, "epsilon_by_mechanism"),
        figure=figure,
        title="ε by mechanism",
        alt=f"ε that each mechanism spends on {dataset}. {told}.",
        caption="Of each mechanism as if nothing else had been released, and of all together, by the run's own accountant. Parts do not add up to "
        "the whole: composition costs less than the sum."
        + (f" {left_out} more ledgers are in the runs' own parts below." if left_out > 0 else ""),
    )


class _Line:
    """Settings in one colour: joined when they differ in the budget alone, else of one model on one kind of features."""

    def __init__(self, label: str, settings: list[Setting], number: int | None, *, is_joined: bool) -> None:
        self.label, self.settings, self.is_joined = label, settings, is_joined
        self.colour = OTHERS if number is None else SERIES[number]
        self.marker = "o" if number is None else MARKERS[number]


def _lines(settings: Sequence[Setting]) -> list[_Line]:
    """At most as many as there are colours: by budget, else by model and features, else the rest in grey."""
    series = same_but_for_budget(settings)
    if len(series) <= len(SERIES):
        return [
            _Line(name, s, i, is_joined=True)
            for i, (name, s) in enumerate(zip(names_of_series(series), series, strict=True))
        ]
    families: dict[str, list[Setting]] = {}
    for setting in settings:
        run = setting.runs[0]
        families.setdefault(f"{run.model} on {run.features}", []).append(setting)
    kept = list(families.items())
    most = len(SERIES) if len(kept) <= len(SERIES) else len(SERIES) - 1
    lines = [_Line(name, members, i, is_joined=False) for i, (name, members) in enumerate(kept[:most])]
    rest = [setting for _, members in kept[most:] for setting in members]
    return [*lines, *([_Line("others", rest, None, is_joined=False)] if rest else [])]


def _draw_published(axes: Axes, published: Sequence[PublishedResult]) -> None:
    by_value: dict[tuple[tuple[float, float], ...], list[PublishedResult]] = {}
    for result in published:
        by_value.setdefault(tuple(result.points.items()), []).append(result)
    for number, (points, results) in enumerate(by_value.items()):
        look: Any = {"color": MUTED, "linestyle": _DASHES[number % len(_DASHES)], "linewidth": 1.1}
        epsilons, accuracies = zip(*points, strict=True)
        values = [100 * accuracy for accuracy in accuracies]
        label = (
            f"{', '.join(r.method for r in results)}: {'/'.join(f'{v:.1f}' for v in values)} % ({results[0].source})"
        )
        marks: Any = {
            "marker": MARKERS[-1 - number],
            "markersize": 6,
            "markerfacecolor": PAPER,
            "markeredgecolor": MUTED,
        }
        if len(points) == 1:
            axes.axhline(values[0], zorder=1, alpha=0.6, **look)
        axes.plot(epsilons, values, label=label, **marks, **look)


def _side_by_side(axes: Axes, settings: Sequence[Setting]) -> dict[int, float]:
    """A place on the axis for each setting, by its ``id``: a little apart where several have one ε."""
    low, high = axes.get_xlim()
    by_epsilon: dict[float, list[Setting]] = {}
    for setting in settings:
        by_epsilon.setdefault(round(_epsilon(setting), 2), []).append(setting)
    places = {}
    for members in by_epsilon.values():
        gap = min(0.02, 0.1 / len(members))  # of the axis' width
        for number, setting in enumerate(members):
            apart = gap * (number - (len(members) - 1) / 2)
            epsilon = _epsilon(setting)
            is_log = axes.get_xscale() == "log"
            places[id(setting)] = epsilon * (high / low) ** apart if is_log else epsilon + apart * (high - low)
    return places


def _epsilon_axis(axes: Axes, epsilons: Sequence[float]) -> None:
    values = sorted({round(value, 2) for value in epsilons if value > 0})
    if not values:
        axes.set_xticks([])
        return
    if values[-1] / values[0] >= 3:
        axes.set_xscale("log")
        axes.set_xlim(values[0] / 1.25, values[-1] * 1.25)
        ticks = [
            v for e in range(-4, 4) for m in (1, 2, 3, 5) if values[0] / 1.25 <= (v := m * 10.0**e) <= values[-1] * 1.25
        ]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = max(0.2 * values[-1], 0.6 * (values[-1] - values[0]))
        axes.set_xlim(max(0.0, values[0] - room), values[-1] + room)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ledger_in_words(run: Run) -> str:
    plan = run.plan
    if not plan:
        return f"{run.model}\nε = {rounded_up(run.epsilon or 0.0, _DECIMALS)}"
    rate = run.summary.get("sample_rate")
    sampled = f", q = {rate:.3g}" if isinstance(rate, int | float) and rate < 1 else ""
    return (
        f"{run.model}, σ = {plan.get('noise_multiplier', math.nan):.3g}\n{run.summary.get('steps', '?')} steps{sampled}"
    )


def _alone(mechanism: str) -> str:
    return "all together" if mechanism == TOGETHER else f"{mechanism} alone"


def _epochs(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.metrics if _is_number(row.get("epoch")) and _is_number(row.get("test_accuracy"))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _epsilon(setting: Setting) -> float:
    assert setting.epsilon is not None
    return setting.epsilon


def _mean(setting: Setting) -> float:
    assert setting.mean is not None
    return setting.mean


def _told(settings: Sequence[Setting]) -> str:
    """The best setting at each ε."""
    best: dict[str, Setting] = {}
    for setting in settings:
        at = "without privacy" if setting.epsilon is None else f"at ε = {rounded_up(_epsilon(setting), _DECIMALS)}"
        if at not in best or _mean(setting) > _mean(best[at]):
            best[at] = setting
    order = sorted(best.items(), key=lambda item: math.inf if item[1].epsilon is None else item[1].epsilon)[:_MOST_TOLD]
    return "Best settings: " + ", ".join(f"{100 * _mean(setting):.1f} % {at}" for at, setting in order) + "."


def _told_published(published: Sequence[PublishedResult]) -> str:
    told = [
        f"{result.method} {', '.join(f'{100 * a:.1f} % at ε = {e:g}' for e, a in result.points.items())}"
        for result in published
    ]
    return f"Published: {'; '.join(told)}." if told else ""


def _range(values: Sequence[float]) -> str:
    low, high = 100 * min(values), 100 * max(values)
    return f"{low:.1f} %" if high - low < 0.05 else f"{low:.1f} to {high:.1f} %"
