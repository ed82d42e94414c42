"""One step in a process of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scatterdp.benchmarking import Question, probe
from scatterdp.benchmarking.networks import make_network

QUESTION = Question(
    network="scatternet_cnn",
    contender="opacus_hooks",
    batch_size=32,
    max_grad_norm=1.0,
    device="cpu",
    threads=1,
    max_seconds=60.0,
    max_memory=None,
)


def test_per_example_gradients_take_the_memory_that_they_take():
    answer = probe(QUESTION)
    parameters = sum(p.numel() for p in make_network("scatternet_cnn", torch.device("cpu")).parameters())
    gradients = 4 * 32 * parameters
    assert answer.reason is None
    assert answer.seconds is not None
    assert answer.extra_memory is not None
    assert gradients <= answer.extra_memory <= 3 * gradients


@pytest.mark.parametrize(
    ("changes", "reason", "out_of_memory"),
    [
        ({"max_memory": 5_000_000}, "needs more than 5 MB", True),
        ({"max_seconds": 1e-9}, "a step was not done after 5e-09 s", False),
        ({"network": "linear"}, "KeyError: 'linear'", False),
    ],
)
def test_what_goes_wrong_there_is_the_reason(changes, reason, out_of_memory):
    answer = probe(replace(QUESTION, **changes))
    assert (answer.reason, answer.out_of_memory) == (reason, out_of_memory)
    assert answer.seconds is None
    assert answer.extra_memory is None
