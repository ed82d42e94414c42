"""Linear heads fitted by processes that were not given the same, or do not compute the same: threads stand for processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from scatterdp.errors import UserError
from scatterdp.linear.choice import Budget
from scatterdp.linear.fitting import fit_linear, unit_rows
from scatterdp.linear.gradient_descent import GradientDescent
from scatterdp.linear.method import Problem
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import part_of

N, SIZE = 1200, 2
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
Y = np.arange(N) % 3


class Together:
    """One of two threads that call these methods together."""

    size = SIZE

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self._slots, self._barrier = rank, slots, barrier

    def gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def share(self, value: Any) -> Any:
        return self.gather(value)[0]

    def wait(self) -> None:
        self._barrier.wait()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            first, second = self.gather(tensor.clone())
            tensor.copy_(first + second)


def told(work: Callable[[Together], Any]) -> list[str]:
    """What each of two is told when it does the work; '' where nothing was wrong."""
    slots, barrier, found = [None] * SIZE, threading.Barrier(SIZE, timeout=60), [""] * SIZE

    def one(rank: int) -> None:
        try:
            work(Together(rank, slots, barrier))
        except UserError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("name", ["centre", "channels"])
def test_other_settings_are_refused(name):
    """The noise of each is bound to them: with others its weights would be made of other noise than rank 0 releases."""

    def work(processes: Together) -> None:
        given: dict[str, Any] = {name: {"centre": True, "channels": 3}[name] if processes.rank else None}
        budget, key = Budget(epsilon=2.0, delta=1e-5), RandomKey.from_seed(0)
        fit_linear(X, Y, num_classes=3, budget=budget, key=key, head="class_means", processes=processes, **given)

    assert all("different rows or settings" in sentence for sentence in told(work))


@pytest.mark.parametrize("alike", [True, False])
def test_other_weights_stop_the_descent(alike):
    method = GradientDescent(
        problem=Problem(num_examples=N, num_features=6, num_classes=3), batch_size=N, epochs=3, lr=1.0
    )

    def work(processes: Together) -> None:
        rows, _ = unit_rows(X, Y, *part_of(N, processes.rank, SIZE))
        key = RandomKey.from_seed(0 if alike else processes.rank)
        method.solve(rows, noise_multiplier=2.0, key=key, processes=processes)

    sentences = told(work)
    assert sentences == ["", ""] if alike else all("came to different weights" in one for one in sentences)
