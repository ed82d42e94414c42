"""What an experiment prints of ε is never less than it is."""

from __future__ import annotations

import math

import pytest

from scatterdp import experiment
from scatterdp.config import BaselinesConfig
from scatterdp.training.plan import plan_from_config


@pytest.mark.parametrize(("epsilon", "told"), [(2.12341, "2.1235"), (3.0, "3.0000"), (math.inf, "∞")])
def test_the_budget_is_told_rounded_up(monkeypatch, capsys, epsilon, told):
    config = BaselinesConfig(noise_multiplier=3.0)
    plan = plan_from_config(config, dataset_name="", num_examples=20_000)
    monkeypatch.setattr(experiment, "epsilon_of", lambda *arguments, **named: epsilon)
    experiment.announce(config, plan)
    assert f"ε = {told} (pld), {told} (rdp), {told} (rdp_classic)" in capsys.readouterr().out


@pytest.mark.parametrize(("epsilon", "told"), [(2.12341, "2.1235"), (3.0, "3.0000"), (None, "∞")])
def test_an_epoch_is_told_rounded_up(epsilon, told):
    row = {"epoch": 1, "test_accuracy": 0.5, "test_accuracy_ema": 0.5, "epsilon": epsilon, "seconds": 1.0}
    assert f"ε {told}, 1 s" in experiment._metrics_line(row)
