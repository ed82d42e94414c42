"""Rounds and reasons."""

from __future__ import annotations

import pytest
import torch

from scatterdp.benchmarking import Probe, Question, measuring
from scatterdp.benchmarking.measuring import measure, take_turns

QUESTION = Question(
    network="scatternet_cnn",
    contender="",
    batch_size=2,
    max_grad_norm=1.0,
    device="cpu",
    threads=1,
    max_seconds=10.0,
    max_memory=None,
)


def test_contenders_take_turns_after_one_round_to_warm_up():
    order = []

    def step_of(name):
        def step():
            order.append(name)
            return {}

        return step

    seconds = take_turns({name: step_of(name) for name in "abc"}, 2, torch.device("cpu"))
    assert "".join(order) == "abcabcabc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


@pytest.fixture
def probed(monkeypatch):
    answers = {
        "loop": Probe(seconds=11.0, extra_memory=5),
        "crb": Probe(seconds=1.0, extra_memory=6),
        "ghost": Probe(reason="needs more than 5 MB", out_of_memory=True),
    }
    asked = []

    def probe(question):
        asked.append(question.contender)
        return answers[question.contender]

    monkeypatch.setattr(measuring, "probe", probe)
    return asked


def test_a_slow_contender_counts_once_and_a_failed_one_not_at_all(probed):
    failed = {}
    loop, crb, ghost = measure(QUESTION, ["loop", "crb", "ghost"], repeats=3, failed=failed)
    assert (loop.seconds, loop.median_seconds, loop.note) == ((11.0,), 11.0, "one step, slower than 10 s")
    assert (len(crb.seconds), crb.extra_memory, crb.note) == (3, 6, None)
    assert (ghost.seconds, ghost.median_seconds, ghost.extra_memory) == ((), None, None)
    assert ghost.note == "needs more than 5 MB"
    assert failed == {"ghost": "not tried; batch 2: needs more than 5 MB"}


def test_what_failed_is_not_tried_on_a_larger_batch(probed):
    (ghost,) = measure(QUESTION, ["ghost"], repeats=1, failed={"ghost": "not tried; batch 1: why"})
    assert ghost.note == "not tried; batch 1: why"
    assert probed == []
