"""Figures of many runs: what is drawn is what the runs hold."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle

from scatterdp.privacy.certificate import rounded_up
from scatterdp.report.curves import plot_accuracy, plot_spending, plot_training
from scatterdp.report.drawing import ACCENT, MUTED, SERIES
from scatterdp.report.published import published_on
from scatterdp.report.runs import Run, find_runs
from scatterdp.report.spending import spending


@pytest.fixture(scope="module")
def runs(finished_runs) -> list[Run]:
    """Two seeds."""
    return find_runs([finished_runs / "seed0", finished_runs / "seed1"]).runs


def at(run: Run, epsilon: float | None, accuracy: float, **plan) -> Run:
    """A run with another ε, accuracy and settings."""
    return dataclasses.replace(
        run,
        name=f"{run.name}-{epsilon}-{accuracy}-{plan}",
        summary=run.summary | {"test_accuracy": accuracy, "plan": run.plan | {"noise_multiplier": epsilon} | plan},
        checked=dataclasses.replace(run.checked, epsilons=dict.fromkeys(run.checked.epsilons, epsilon)),
    )


def lines(drawing, axes: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    """What is drawn, by its name in the legend."""
    return {
        str(line.get_label()): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in drawing.figure.axes[axes].lines
        if not str(line.get_label()).startswith("_")
    }


class TestAccuracy:
    def test_means_runs_and_deviations(self, runs):
        drawing = plot_accuracy([at(runs[0], 3.0, 0.7), at(runs[1], 3.0, 0.75)], [], dataset="digits")
        assert drawing is not None
        accuracies = [70.0, 75.0]
        ((x, y),) = lines(drawing).values()
        assert x == pytest.approx([3.0])
        assert y == pytest.approx([statistics.fmean(accuracies)])
        dots = drawing.figure.axes[0].lines[0]
        assert np.asarray(dots.get_ydata()).tolist() == pytest.approx(accuracies)
        (bars,) = drawing.figure.axes[0].containers
        assert isinstance(bars, ErrorbarContainer)
        low, high = bars.lines[2][0].get_segments()[0][:, 1]
        assert high - low == pytest.approx(2 * statistics.stdev(accuracies))
        assert f"{statistics.fmean(accuracies):.1f} % at ε = {rounded_up(3.0, 2)}" in drawing.alt

    def test_seeds_of_equal_accuracy_have_no_bar(self, runs):
        drawing = plot_accuracy([at(run, 3.0, 0.7) for run in runs], [], dataset="digits")
        assert drawing is not None
        assert [y for _, y in lines(drawing).values()] == [pytest.approx([70.0])]
        assert not drawing.figure.axes[0].containers

    def test_no_figure_says_less_than_was_spent(self, runs):
        drawing = plot_accuracy([at(runs[0], 2.981, 0.5)], [], dataset="digits")
        assert drawing is not None
        assert "50.0 % at ε = 2.99" in drawing.alt

    def test_settings_that_differ_in_budget_are_joined_in_order(self, runs):
        made = [at(runs[0], epsilon, accuracy) for epsilon, accuracy in ((8.0, 0.9), (1.0, 0.5), (3.0, 0.7))]
        drawing = plot_accuracy(made, [], dataset="digits")
        ((x, y),) = lines(drawing).values()
        assert (x, y) == (pytest.approx([1, 3, 8]), pytest.approx([50, 70, 90]))
        assert drawing is not None
        assert drawing.figure.axes[0].get_xscale() == "log"

    def test_settings_of_one_budget_stand_beside_each_other(self, runs):
        drawing = plot_accuracy([at(runs[0], 3.0, 0.9), at(runs[0], 3.0, 0.5, lr=9.0)], [], dataset="digits")
        first, second = (x[0] for x, _ in lines(drawing).values())
        assert first < 3 < second
        assert second - first < 0.15

    @pytest.mark.parametrize("dataset", ["mnist", "fmnist", "cifar10"])
    def test_published_results_stand_at_their_own_epsilon(self, runs, dataset):
        drawing = plot_accuracy([at(runs[0], 3.0, 0.99)], published_on(dataset), dataset=dataset)
        drawn = [values for name, values in lines(drawing).items() if "(" in name]
        for result in published_on(dataset):
            x, y = list(result.points), [100 * accuracy for accuracy in result.points.values()]
            assert any(values == (pytest.approx(x), pytest.approx(y)) for values in drawn), result
        assert drawing is not None
        assert "Published: ScatterNet + CNN" in drawing.alt

    def test_runs_without_privacy_are_a_level(self, runs):
        drawing = plot_accuracy([at(runs[0], 3.0, 0.8), at(runs[0], None, 0.95)], [], dataset="digits")
        assert lines(drawing)["without privacy"][1] == pytest.approx([95, 95])

    def test_only_runs_without_privacy(self, runs):
        drawing = plot_accuracy([at(runs[0], None, 0.95)], [], dataset="digits")
        assert list(lines(drawing)) == ["without privacy"]

    def test_many_settings_are_coloured_by_model_and_features(self, runs):
        made = [
            at(runs[0], float(e), 0.5, lr=float(lr), head=head) for e in (1, 3) for lr in range(1, 20) for head in "ab"
        ]
        drawing = plot_accuracy(made, [], dataset="digits")
        assert list(lines(drawing)) == ["a on scatternet", "b on scatternet"]
        assert sum(len(y) for _, y in lines(drawing).values()) == len(made)

    def test_more_models_than_colours_are_others_in_grey(self, runs):
        made = [at(runs[0], 3.0, 0.5, head=f"model{number}") for number in range(len(SERIES) + 3)]
        drawing = plot_accuracy(made, [], dataset="digits")
        assert drawing is not None
        assert list(lines(drawing))[-1] == "others"
        assert len(lines(drawing)["others"][1]) == 4
        grey = [line for line in drawing.figure.axes[0].lines if line.get_label() == "others"]
        assert grey[0].get_color() == MUTED

    def test_nothing_without_an_accuracy(self, runs):
        bare = dataclasses.replace(runs[0], summary={})
        assert plot_accuracy([bare], [], dataset="digits") is None


class TestTraining:
    def test_means_over_seeds_and_epsilon(self, runs):
        drawing = plot_training(runs, dataset="digits")
        ((x, y),) = lines(drawing).values()
        assert x == [1, 2]
        rows = [[row["test_accuracy"] for row in run.metrics] for run in runs]
        assert y == pytest.approx(100 * np.mean(rows, axis=0))
        assert drawing is not None
        (below,) = drawing.figure.axes[1].lines
        assert np.asarray(below.get_ydata()).tolist() == [row["epsilon"] for row in runs[0].metrics]

    def test_runs_of_different_length_are_drawn_as_far_as_all_go(self, runs):
        shorter = dataclasses.replace(runs[1], metrics=runs[1].metrics[:1])
        ((x, _),) = lines(plot_training([runs[0], shorter], dataset="digits")).values()
        assert x == [1]

    @pytest.mark.parametrize("metrics", [[], [{"C": 1.0, "test_accuracy": 0.5}], [{"epoch": 1, "test_accuracy": None}]])
    def test_nothing_without_epochs(self, runs, metrics):
        assert plot_training([dataclasses.replace(runs[0], metrics=metrics)], dataset="digits") is None


class TestSpending:
    def test_a_bar_a_mechanism(self, runs):
        drawing = plot_spending(runs, dataset="digits")
        assert drawing is not None
        bars = [bar for bar in drawing.figure.axes[0].patches if isinstance(bar, Rectangle) and bar.get_width()]
        widths = [bar.get_width() for bar in bars]
        assert widths == pytest.approx([part.epsilon for part in spending(runs[0].certificate)])
        assert bars[-1].get_facecolor() == pytest.approx([int(ACCENT[i : i + 2], 16) / 255 for i in (1, 3, 5)] + [1])
        for part in spending(runs[0].certificate):
            assert rounded_up(part.epsilon or 0.0, 2) in drawing.alt

    def test_runs_without_a_plan_have_a_ledger_too(self, own_fit):
        drawing = plot_spending(find_runs([own_fit]).runs, dataset="x")
        assert drawing is not None
        assert "class means" in drawing.alt

    def test_many_ledgers_are_thinned_and_that_is_said(self, runs):
        made = []
        for number in range(30):
            entry = runs[0].certificate["ledger"][0]
            event = entry["event"] | {"event": entry["event"]["event"] | {"noise_multiplier": 5.0 + number}}
            certificate = runs[0].certificate | {"ledger": [entry | {"event": event}]}
            made.append(dataclasses.replace(runs[0], certificate=certificate))
        drawing = plot_spending(made, dataset="digits")
        assert drawing is not None
        assert len(drawing.figure.axes[0].get_yticks()) == 12
        assert "18 more ledgers" in drawing.caption

    def test_nothing_without_a_private_run(self, runs):
        assert plot_spending([at(runs[0], None, 0.9)], dataset="digits") is None


def test_a_name_with_signs_of_formulas_can_be_drawn(finished_runs, tmp_path: Path):
    runs = find_runs([finished_runs / "own"]).runs
    for drawing in (plot_accuracy(runs, [], dataset="$\\frac{$"), plot_training(runs, dataset="$^$")):
        assert drawing is not None
        drawing.save(tmp_path)
        assert "<svg" in drawing.inline()
