"""Learning-rate schedules, and that training follows them."""

from __future__ import annotations

import pytest
import torch

from scatterdp.training.schedules import lr_factor


def test_constant():
    assert {lr_factor("constant", step, 7) for step in range(7)} == {1.0}


def test_cosine_falls_from_one_to_nearly_nothing():
    factors = [lr_factor("cosine", step, 100) for step in range(100)]
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx(0.5)
    assert factors[99] < 0.001
    assert factors == sorted(factors, reverse=True)


def test_one_cycle_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    steps = 1000
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False, final_div_factor=100
    )
    for step in range(steps):
        assert lr_factor("one_cycle", step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.01)
        optimizer.step()
        schedule.step()


def test_an_unknown_schedule():
    with pytest.raises(ValueError, match=r"^schedule='sawtooth': expected constant, cosine or one_cycle$"):
        lr_factor("sawtooth", 0, 10)  # pyright: ignore[reportArgumentType]


def test_a_warmup_rises_in_a_line_and_leaves_the_schedule_the_rest():
    factors = [lr_factor("cosine", step, 10, warmup=4) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == [lr_factor("cosine", step, 6) for step in range(6)]
