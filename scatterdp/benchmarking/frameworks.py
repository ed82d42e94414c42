"""The same networks trained by several frameworks, some of them in another environment: checked first, then timed in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scatterdp.benchmarking.epochs import TRAININGS, Reference, Settings, TorchTraining, separated
from scatterdp.benchmarking.measuring import take_turns
from scatterdp.benchmarking.peer import Peer
from scatterdp.datasets import load_dataset
from scatterdp.errors import UserError

#: Name → shape of its images, number of training images. The networks are the published end-to-end ones (head ``cnn``).
TRAINED_NETWORKS: dict[str, tuple[tuple[int, int, int], int]] = {
    "mnist": ((1, 28, 28), 60_000),
    "cifar10": ((3, 32, 32), 50_000),
}
#: Name → the framework that trains the same network without privacy, or None where it is that itself.
FRAMEWORKS: dict[str, str | None] = {
    "torch": None,
    "scatterdp": "torch",
    "opacus_hooks": "torch",
    "opacus_ghost": "torch",
    "jax": None,
    "jax_privacy": "jax",
}
TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Args:
        network, batch_size, framework: what was trained.
        way: how it computed, chosen by trial.
        seconds: of an epoch, one a turn, scaled from ``steps`` of ``steps_per_epoch``.
        compile_seconds: before the first step; None where nothing is compiled.
    """

    network: str
    batch_size: int
    framework: str
    way: str
    steps: int
    steps_per_epoch: int
    seconds: tuple[float, ...]
    compile_seconds: float | None

    @property
    def median_seconds(self) -> float:
        """Of an epoch."""
        return statistics.median(self.seconds)


class JaxSide:
    """The frameworks that run in the other environment, for one network."""

    def __init__(self, peer: Peer, network: str, model: nn.Module, folder: Path) -> None:
        self.peer, self.network, self.folder = peer, network, folder
        self.parameters = sum(p.numel() for p in model.parameters())
        self.initial = folder / "initial.npz"
        np.savez(self.initial, *[p.detach().numpy() for p in model.parameters()])

    def give(self, x: Tensor, y: Tensor) -> None:
        """Let these be the training data; what was prepared is forgotten."""
        files = [self.folder / "x.npy", self.folder / "y.npy"]
        for file, rows in zip(files, (x, y), strict=True):
            np.save(file, rows.numpy())
        self.peer.ask("data", network=self.network, x=str(files[0]), y=str(files[1]))

    def tries(self, name: str, microbatches: Sequence[int], max_grad_norm: float) -> list[dict[str, Any]]:
        """Seconds an example of each way to compute."""
        asked = {"microbatches": microbatches, "max_grad_norm": max_grad_norm, "weights": str(self.initial)}
        return self.peer.ask("try", private=FRAMEWORKS[name] is not None, **asked)["trials"]

    def prepare(self, name: str, settings: Settings, way: dict[str, Any]) -> None:
        """Make a contender ready to train."""
        asked = asdict(settings) | way | {"private": FRAMEWORKS[name] is not None}
        answer = self.peer.ask("prepare", name=name, weights=str(self.initial), settings=asked)
        if answer["parameters"] != self.parameters:
            raise UserError(f"{name}: has {answer['parameters']} parameters, expected {self.parameters}")

    def train(self, name: str, steps: int) -> float:
        """Take steps; returns the seconds of compilation among them."""
        return self.peer.ask("train", name=name, steps=steps)["compile_seconds"]

    def weights(self, name: str) -> list[np.ndarray]:
        """In the model's order."""
        file = self.folder / "weights.npz"
        self.peer.ask("weights", name=name, file=str(file))
        with np.load(file) as stored:
            return [stored[f"arr_{number}"] for number in range(len(stored.files))]


def images(network: str, *, data_dir: Path | None, count: int) -> tuple[Tensor, Tensor]:
    """Rows ``(N, C·H·W)`` in [0, 1] and labels ``(N,)``: the data set's in ``data_dir``, or ``count`` made-up ones."""
    shape, _ = TRAINED_NETWORKS[network]
    if data_dir is None:
        generator = np.random.default_rng(0)
        x = generator.random((count, math.prod(shape)), dtype=np.float32)
        return torch.from_numpy(x), torch.from_numpy(generator.integers(10, size=count))
    pixels, y = load_dataset(network, data_dir=data_dir).split("train")
    rows = torch.from_numpy(pixels[:]).reshape(len(pixels), *shape[1:], shape[0]).permute(0, 3, 1, 2)
    return rows.flatten(1).float().div_(255), torch.from_numpy(y)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one step told before anything was timed.

    Args:
        framework: name.
        convolution: how jax writes it, else None.
        physical_batch_size: rows at once; jax-privacy's ``microbatch_size``.
        seconds: an example.
        difference: largest relative difference of a step from autograd's gradient sum; None where it was not chosen.
    """

    framework: str
    convolution: str | None
    physical_batch_size: int
    seconds: float
    difference: float | None

    @property
    def agrees(self) -> bool:
        """Unless it was compared and differs."""
        return self.difference is None or self.difference <= TOLERANCE

    @property
    def way(self) -> str:
        """In words."""
        rows = "row" if self.physical_batch_size == 1 else "rows"
        written = "" if self.convolution is None else f"{self.convolution}, "
        return f"{written}{self.physical_batch_size} {rows} at once"


def check(
    network: str,
    model: nn.Module,
    frameworks: Sequence[str],
    jax: JaxSide | None,
    *,
    physical_batch_sizes: Sequence[int],
    max_grad_norm: float,
) -> Iterator[Trial]:
    """Try every framework's ways, and compare a step of the code that is timed with autograd's gradient sum.

    Of jax's ways only the fastest is compared: the others are of no consequence.

    Args:
        network: name; the batch is made up.
        model: initial weights.
        frameworks: names.
        jax: for the frameworks of the other environment; its data are others afterwards.
        physical_batch_sizes: rows at once, to try.
        max_grad_norm: of jax's trials; the comparison takes a bound that half of the examples exceed.
    """
    largest = max(physical_batch_sizes)
    count = largest * 3 // 2 + 1  # more than one piece, the last one shorter
    x, y = images(network, data_dir=None, count=3 * count)
    kept = torch.cat([separated(model, part) for part in x.split(256)])
    reference = Reference.of(model, x[kept][:count], y[kept][:count])
    count = len(reference.x)
    for name in (name for name in frameworks if name in TRAININGS):
        for size in physical_batch_sizes:
            training = TorchTraining(name, model, reference.x, reference.y, reference.settings(size))
            training.train(1)
            difference = reference.difference(training.weights(), private=FRAMEWORKS[name] is not None)
            begin = time.perf_counter()
            training.train(1)
            seconds = (time.perf_counter() - begin) / count
            trial = {"framework": name, "convolution": None, "physical_batch_size": size}
            yield Trial(**trial, seconds=seconds, difference=difference)
    if jax is None:
        return
    jax.give(reference.x, reference.y)
    for name in (name for name in frameworks if name not in TRAININGS):
        private = FRAMEWORKS[name] is not None
        sizes = sorted({*physical_batch_sizes, *([1] * private)})
        tried = jax.tries(name, sizes, max_grad_norm)
        best = min(tried, key=lambda trial: trial["seconds"])
        for trial in tried:
            difference = None
            if trial is best:
                jax.prepare(name, reference.settings(largest), best)
                jax.train(name, 1)
                difference = reference.difference(jax.weights(name), private=private)
            yield Trial(
                framework=name,
                convolution=trial["convolution"],
                physical_batch_size=trial["microbatch"],
                seconds=trial["seconds"],
                difference=difference,
            )


def fastest(trials: Sequence[Trial]) -> dict[str, Trial]:
    """Each framework's."""
    names = dict.fromkeys(trial.framework for trial in trials)
    return {name: min((t for t in trials if t.framework == name), key=lambda t: t.seconds) for name in names}


def measure(
    network: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    trials: dict[str, Trial],
    jax: JaxSide | None,
    settings: Settings,
    *,
    steps: int,
    rounds: int,
) -> list[Row]:
    """The rows of one network and batch size, each framework in the way that was fastest on trial.

    Args:
        network: name.
        model: initial weights.
        x, y: all rows and labels.
        trials: by framework, see :func:`fastest`.
        jax: for the frameworks of the other environment, which have the same rows.
        settings: of DP-SGD; the largest physical batch that was tried.
        steps: of a turn.
        rounds: turns that count.
    """
    epoch = len(x) // settings.batch_size
    compiled: dict[str, float] = {}
    turns: dict[str, Callable[[], object]] = {}
    for name, trial in trials.items():
        if name in TRAININGS:
            ours = replace(settings, physical_batch_size=trial.physical_batch_size)
            training = TorchTraining(name, model, x, y, ours)
            turns[name] = lambda training=training: training.train(steps)
        else:
            assert jax is not None
            way = {"convolution": trial.convolution, "microbatch": trial.physical_batch_size}
            jax.prepare(name, settings, way)
            compiled[name] = 0.0

            def turn(name: str = name, jax: JaxSide = jax) -> None:
                compiled[name] += jax.train(name, steps)

            turns[name] = turn
    timed = take_turns(turns, rounds, torch.device("cpu"))
    return [
        Row(
            network=network,
            batch_size=settings.batch_size,
            framework=name,
            way=trials[name].way,
            steps=steps,
            steps_per_epoch=epoch,
            seconds=tuple(s * epoch / steps for s in seconds),
            compile_seconds=compiled.get(name),
        )
        for name, seconds in timed.items()
    ]
