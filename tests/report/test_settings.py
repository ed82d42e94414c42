"""Runs that differ in their seed alone, in their budget alone, and in more."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from scatterdp.report.runs import Run, find_runs
from scatterdp.report.settings import (
    data_key,
    differing,
    names_of_series,
    same_but_for_budget,
    same_but_for_seed,
    settings_of,
    shown,
)


@pytest.fixture(scope="module")
def run(finished_runs) -> Run:
    return find_runs([finished_runs / "seed0"]).runs[0]


def like(run: Run, accuracy: float = 0.5, *, seed: int | None = 0, epsilon: float | None = None, **plan) -> Run:
    """Another run: ``plan`` changes its settings."""
    checked = run.checked
    if epsilon is not None:
        checked = dataclasses.replace(checked, epsilons=checked.epsilons | {"pld": epsilon})
    return dataclasses.replace(
        run,
        name=f"{run.name} {accuracy} {seed} {epsilon} {plan}",
        config=run.config | {"seed": seed},
        summary=run.summary | {"test_accuracy": accuracy, "plan": run.plan | plan},
        checked=checked,
    )


def test_seeds_of_one_setting_are_together(run):
    runs = [like(run, 0.5, seed=0), like(run, 0.7, seed=1), like(run, 0.9, seed=0, lr=99.0)]
    first, second = same_but_for_seed(runs)
    assert (first.runs, second.runs) == (runs[:2], runs[2:])
    assert first.mean == pytest.approx(0.6)
    assert first.deviation == pytest.approx(statistics.stdev([0.5, 0.7]))
    assert (second.mean, second.deviation) == (0.9, None)


def test_real_runs_that_differ_in_their_seed(finished_runs):
    settings = same_but_for_seed(find_runs([finished_runs]).runs)
    assert [len(setting.runs) for setting in settings] == [1, 2]


def test_a_seed_that_was_run_twice_counts_once_and_runs_without_one_each(run):
    (setting,) = same_but_for_seed([like(run, 0.5, seed=3), like(run, 0.5, seed=3), like(run, 0.6, seed=4)])
    assert sorted(setting.accuracies) == [0.5, 0.6]
    (setting,) = same_but_for_seed([like(run, 0.5, seed=None), like(run, 0.52, seed=None)])
    assert len(setting.accuracies) == 2


def test_another_engine_is_the_same_setting(run):
    assert len(same_but_for_seed([run, like(run, engine="vmap")])) == 1


def test_budgets_in_order(run):
    settings = same_but_for_seed(
        [
            like(run, epsilon=8.0, noise_multiplier=1.0),
            like(run, epsilon=1.0, noise_multiplier=9.0),
            like(run, epsilon=1.0, noise_multiplier=9.5, lr=99.0),
        ]
    )
    first, second = same_but_for_budget(settings)
    assert [setting.epsilon for setting in first] == [1.0, 8.0]
    assert [setting.epsilon for setting in second] == [1.0]


def test_names_hold_as_few_settings_as_tell_series_apart(run):
    runs = [run, like(run, lr=99.0, momentum=0.1), like(run, lr=99.0, momentum=0.2), like(run, head="cnn", lr=3.0)]
    names = names_of_series([[setting] for setting in same_but_for_seed(runs)])
    assert len(set(names)) == 4
    assert names[3] == "cnn on scatternet"
    assert all("learning rate" in name or "momentum" in name for name in names[:3])
    assert not any("nesterov" in name for name in names)


def test_one_series_is_named_by_model_and_features(run):
    assert names_of_series([same_but_for_seed([run])]) == ["linear on scatternet"]


def test_what_differs(run):
    assert differing([run, like(run, 0.1, seed=5)]) == []
    assert differing([run, like(run, lr=99.0, max_grad_norm=7.0)]) == ["learning rate", "clip"]


def test_settings_without_effect_are_not_told(run):
    told = settings_of(run)
    assert "σ of statistics" in told
    assert "num groups" not in told
    assert "precondition power" not in told
    assert "σ of statistics" not in settings_of(like(run, input_norm="GroupNorm"))


def test_the_noise_of_a_run_is_a_setting(run):
    assert settings_of(run)["σ"] == 3.0


def test_data_of_one_name_are_told_apart_by_their_public_facts(finished_runs, run):
    own = find_runs([finished_runs / "own"]).runs[0]
    assert data_key(run) != data_key(own)
    assert data_key(run) == data_key(like(run, lr=1.0))


def test_values_for_people():
    assert [shown(value) for value in (1e-05, 3, "x", [1, 2])] == ["1e-05", "3", "x", "[1, 2]"]
