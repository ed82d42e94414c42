"""One point of the scaling study: private training on features of some number and size, by one process of those that share it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from scatterdp.benchmarking.forgetting import forget_file
from scatterdp.cache import FeatureCache
from scatterdp.extractors import make_extractor
from scatterdp.privacy.randomness import RandomKey
from scatterdp.sizes import report_field
from scatterdp.training.distributed import part_of, processes_of_environment
from scatterdp.training.fit import fit
from scatterdp.training.plan import TrainingPlan

BATCH_SIZE = 8192

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is measured.

    Args:
        rows, dimensions: of the made-up features, N × D in float16.
        streamed: rows stay on the disk, and the system forgets the file before every epoch; otherwise they are in memory.
        processes: that share the rows and the machine.
        batch_size: expected batch.
        steps: in an epoch, or fewer where the rows are fewer.
        epochs: the first only warms up.
    """

    rows: int
    dimensions: int
    streamed: bool = True
    processes: int = 1
    batch_size: int = BATCH_SIZE
    steps: int = 5
    epochs: int = 4


def measure_point(point: Point, cache: Path, *, threads: int) -> dict[str, Any] | None:
    """Train, and say what a step takes; one of ``point.processes`` processes calls this.

    Args:
        point: what to measure.
        cache: its features.
        threads: of torch, in each process.

    Returns:
        ``seconds_prepare`` (the pass over all rows before the first step: digests, norms), ``seconds_step`` (median),
        ``seconds_draw`` (of it: which rows are in the batch), ``peak_memory`` (bytes, of the largest process), ``epsilon``. None but on rank 0.
    """
    torch.set_num_threads(threads)
    processes = processes_of_environment()
    plan = TrainingPlan(
        num_examples=point.rows,
        batch_size=point.batch_size,
        epochs=point.epochs,
        epoch_examples=min(point.rows, point.batch_size * point.steps),
        lr=1.0,
        noise_multiplier=1.0,
        input_norm="none",
    )
    with FeatureCache(cache) as features:
        ends: list[float] = []

        def forget() -> None:
            if point.streamed:
                forget_file(cache)

        def after_epoch(row: dict[str, Any]) -> None:
            ends.append(time.perf_counter())
            forget()

        forget()
        begin = time.perf_counter()
        result = fit(
            features,
            plan,
            extractor=make_extractor("pixels", features.image_shape),
            key=RandomKey.from_seed(0),
            memory_budget=0 if point.streamed else None,
            on_metrics=after_epoch,
            processes=processes,
        )
    peaks = processes.gather(report_field(_STATUS, "VmHWM") or 0)
    if processes.rank:
        return None
    step = median((after - before) / plan.steps_per_epoch for before, after in pairwise(ends))
    return {
        "seconds_prepare": max(0.0, ends[0] - begin - plan.steps_per_epoch * step),
        "seconds_step": step,
        "seconds_draw": _seconds_draw(plan, processes.size),
        "peak_memory": max(peaks),
        "epsilon": result.certificate["epsilon"],
    }


def _seconds_draw(plan: TrainingPlan, processes: int) -> float:
    """Of drawing one process's part of a batch."""
    selection, key, seconds = plan.selection(), RandomKey.from_seed(1), []
    for step in range(3):
        begin = time.perf_counter()
        selection.indices(step, key, stop=part_of(plan.num_examples, 0, processes)[1])
        seconds.append(time.perf_counter() - begin)
    return median(seconds)
