"""``scatterdp budget``: its figures are those of a plan, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scatterdp.commands.budget import BudgetConfig, epsilon_around, run
from scatterdp.errors import ConfigError
from scatterdp.exits import exit_code
from scatterdp.privacy.accounting import ACCOUNTANTS
from scatterdp.training.plan import TrainingPlan

FLAGS = ["--num_samples=2000", "--batch_size=500", "--epochs=10"]


def test_the_noise_is_a_plans(tmp_path, capsys):
    picture = tmp_path / "budget.png"
    assert exit_code(lambda: run([*FLAGS, "--target_epsilon=2", "--bn_noise_multiplier=20", f"--plot={picture}"])) == 0
    told = capsys.readouterr().out
    for name in ACCOUNTANTS:
        plan = TrainingPlan(num_examples=2000, batch_size=500, epochs=10, lr=1.0, input_norm="BN", bn_noise_multiplier=20,
                            accountant=name)  # fmt: skip
        sigma = plan.calibrated(target_epsilon=2.0).sigma
        assert re.search(rf"^  {name} +{sigma:.4f}$", told, re.MULTILINE)
    assert "40 steps, sample rate 0.25, two statistics at noise multiplier 20" in told
    with Image.open(picture) as image:
        assert min(image.size) > 300


def test_less_noise_and_more_epochs_cost_more():
    plan = TrainingPlan(num_examples=2000, batch_size=2000, epochs=8, lr=1.0, input_norm="none", noise_multiplier=6.0)
    by_noise, by_epochs = epsilon_around(plan)
    for values in by_noise.values():
        spent = [values[sigma] for sigma in sorted(values)]
        assert spent == sorted(spent, reverse=True)
    assert list(by_epochs) == [2, 4, 8, 16, 32]
    assert list(by_epochs.values()) == sorted(by_epochs.values())
    assert by_epochs[8] == pytest.approx(by_noise["pld"][6.0])
    assert all(
        by_noise["pld"][sigma] <= by_noise["rdp"][sigma] <= by_noise["rdp_classic"][sigma] for sigma in by_noise["pld"]
    )


def test_a_delta_that_is_too_large_is_said(capsys):
    assert exit_code(lambda: run([*FLAGS, "--target_delta=0.001"])) == 0
    assert "warning: δ = 0.001 is not below 1/N" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size=3000"], "batch_size=3000"),
        (["--target_epsilon=0"], "target_epsilon=0"),
        (["--target_delta=2"], "delta=2"),
        (["--bn_noise_multiplier=0.5", "--target_epsilon=1"], "what is spent beside training"),
        (["--bn_noise_multiplier=-1"], "bn_noise_multiplier=-1"),
    ],
)
def test_what_it_refuses(capsys, flags, message):
    assert exit_code(lambda: run([*FLAGS, *flags])) == 2
    assert message in capsys.readouterr().err


def test_pictures_that_cannot_be_written_are_refused_first(tmp_path):
    sizes: dict[str, Any] = {"num_samples": 10, "batch_size": 10, "epochs": 1}
    there = tmp_path / "there.png"
    there.touch()
    for path in (there, tmp_path / "a.pdf", tmp_path / "none" / "a.png"):
        with pytest.raises(ConfigError, match="plot="):
            BudgetConfig(**sizes, plot=Path(path))
    for name in sizes:
        with pytest.raises(ConfigError, match=f"{name}=0: expected an integer"):
            BudgetConfig(**{**sizes, name: 0})
