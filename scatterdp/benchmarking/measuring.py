"""Every network × batch size × contender: first a probe of its own process, then rounds in which the contenders take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from scatterdp.benchmarking.contenders import CONTENDERS, Step
from scatterdp.benchmarking.networks import make_batch, make_network
from scatterdp.benchmarking.probe import Question, probe, wait


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of the benchmark.

    Args:
        network, contender: names.
        batch_size: physical batch.
        seconds: of each counted step; one where the contender is too slow for more, none where it cannot.
        extra_memory: peak of a step in bytes, or None.
        note: why a figure is missing or rests on one step, or None.
    """

    network: str
    batch_size: int
    contender: str
    seconds: tuple[float, ...] = ()
    extra_memory: int | None = None
    note: str | None = None

    @property
    def median_seconds(self) -> float | None:
        """Of a step; None where there was none."""
        return statistics.median(self.seconds) if self.seconds else None


def measure(question: Question, contenders: Sequence[str], *, repeats: int, failed: dict[str, str]) -> list[Cell]:
    """The cells of one network and batch size.

    Args:
        question: all but the contender.
        contenders: names.
        repeats: rounds that count, after one that does not.
        failed: reasons by contender of smaller batches, which are not tried again; this batch's are added.
    """
    cells: dict[str, Cell] = {}
    timed: list[str] = []
    for name in contenders:
        cell = Cell(network=question.network, batch_size=question.batch_size, contender=name, note=failed.get(name))
        if cell.note is None:
            answer = probe(replace(question, contender=name))
            cell = replace(cell, extra_memory=answer.extra_memory, note=answer.reason)
            if answer.reason is not None:
                failed[name] = f"not tried; batch {question.batch_size}: {answer.reason}"
            elif answer.seconds is not None and answer.seconds > question.max_seconds:
                cell = replace(
                    cell, seconds=(answer.seconds,), note=f"one step, slower than {question.max_seconds:g} s"
                )
            else:
                timed.append(name)
        cells[name] = cell
    for name, seconds in take_turns(steps_of(question, timed), repeats, torch.device(question.device)).items():
        cells[name] = replace(cells[name], seconds=tuple(seconds))
    return list(cells.values())


def steps_of(question: Question, contenders: Sequence[str]) -> dict[str, Step]:
    """A step of each contender, all on one batch and the same weights."""
    device = torch.device(question.device)
    model = make_network(question.network, device)
    x, y = make_batch(question.network, question.batch_size, device)
    return {name: CONTENDERS[name].prepare(model, x, y, question.max_grad_norm) for name in contenders}


def take_turns(steps: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of ``repeats`` steps each after one that warms up; one of each in every round, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 1):
        for name, step in steps.items():
            wait(device)
            begin = time.perf_counter()
            step()
            wait(device)
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds
