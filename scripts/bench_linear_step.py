"""How fast is a private step of the linear head? Ratios in one process, sides alternating, medians.

    python scripts/bench_linear_step.py                  # all tables, a few minutes
    python scripts/bench_linear_step.py --no_opacus --repeats=9

Random features of the CIFAR-10 ScatterNet shape (15552 dimensions, 10 classes), B = 8192 rows drawn by Poisson
sampling from N rows. Compared: scatterdp's step; the same step without clipping and noise (same rows, same physical
batches); a plain torch step (gather, nn.Linear, cross entropy, backward, SGD); Opacus' ghost clipping.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import nn
from torch.nn import functional as F

from scatterdp.engines import linear_engine
from scatterdp.engines.contract import ClippedSum
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.loop import private_gradient
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.rows import DEFAULT_PHYSICAL_BATCH, FeatureRows


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of the benchmark."""

    num_examples: int = 25_000
    batch_size: int = 8192
    dimensions: int = 15_552
    repeats: int = 7
    threads: int = torch.get_num_threads()
    opacus: bool = True


def sum_engine(model, loss, x, y, *, max_grad_norm, clipping="flat", squared_norms=None, copies=1) -> ClippedSum:
    """The linear engine without norms and clipping: the non-private gradient."""
    residuals = torch.softmax((model.weight.detach() @ x.t()).t() + model.bias.detach(), 1)
    residuals[torch.arange(len(y)), y] -= 1
    return ClippedSum({"weight": residuals.t() @ x, "bias": residuals.sum(0)}, residuals.new_zeros(0))


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(options.num_examples, options.dimensions)
    y = torch.randint(10, (options.num_examples,))
    squared_norms = x.square().sum(1)
    key = RandomKey.from_seed(0)
    private = TrainingPlan(
        num_examples=options.num_examples, batch_size=options.batch_size, epochs=1, lr=0.01, noise_multiplier=4.0
    )
    plain = TrainingPlan(
        num_examples=options.num_examples, batch_size=options.batch_size, epochs=1, lr=0.01, noise_multiplier=0.0
    )
    model = nn.Linear(options.dimensions, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    gigabytes = options.batch_size * options.dimensions * 4 / 1e9
    print(f"threads {options.threads}, a logical batch is {gigabytes:.2f} GB of float32 rows")

    def step(plan: TrainingPlan, engine, physical: int) -> Callable[[], None]:
        rows = FeatureRows(x, y, squared_norms, physical)

        def run() -> None:
            gradients = private_gradient(model, rows, plan, step=0, key=key, engine=engine)
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name]
            optimizer.step()

        return run

    def torch_step(physical: int) -> Callable[[], None]:
        indices = torch.from_numpy(plain.selection().indices(0, key))

        def run() -> None:
            optimizer.zero_grad()
            for part in indices.split(physical):
                F.cross_entropy(model(x[part]), y[part], reduction="sum").div(options.batch_size).backward()
            optimizer.step()

        return run

    print("\nphysical batch: private step, plain torch step (ms, medians)")
    sizes = (32, 64, 128, 256, 512, 1024, 2048, 8192)
    sides = {f"private {b}": step(private, linear_engine, b) for b in sizes} | {
        f"torch {b}": torch_step(b) for b in sizes
    }
    medians = measure(sides, options.repeats)
    for b in sizes:
        print(f"{b:>6}  {1e3 * medians[f'private {b}']:8.0f}  {1e3 * medians[f'torch {b}']:8.0f}")
    best = min(sizes, key=lambda b: medians[f"torch {b}"])
    print(f"default physical batch {DEFAULT_PHYSICAL_BATCH}; plain torch is fastest at {best}")

    print("\nprivate ÷ non-private, alternating")
    sides = {
        "private": step(private, linear_engine, DEFAULT_PHYSICAL_BATCH),
        "same step, no clip, no noise": step(plain, sum_engine, DEFAULT_PHYSICAL_BATCH),
        f"plain torch, pieces of {best}": torch_step(best),
        "plain torch, one piece": torch_step(options.num_examples),
        "read the rows once": lambda: read_once(x, plain.selection().indices(0, key)),
    }
    report(measure(sides, options.repeats))

    if options.opacus:
        warnings.filterwarnings("ignore", module="opacus|torch")
        print("\nagainst Opacus 1.6, ghost clipping")
        sides = {
            "private": step(private, linear_engine, DEFAULT_PHYSICAL_BATCH),
            "Opacus ghost, with its loader": opacus_ghost_step(x, y, options, loader=True),
            "Opacus ghost, batch lying ready": opacus_ghost_step(x, y, options, loader=False),
        }
        report(measure(sides, max(3, options.repeats // 2)))


def opacus_ghost_step(x, y, options: Options, *, loader: bool) -> Callable[[], None]:
    """One logical step of Opacus' ghost clipping, as its documentation sets it up (``make_private``).

    Args:
        x: ``(N, D)`` rows.
        y: ``(N,)`` labels.
        options: sizes.
        loader: draw the batch with Opacus' own Poisson loader; otherwise a batch lies ready and nothing is drawn or copied.
    """
    from opacus import PrivacyEngine

    model = nn.Linear(options.dimensions, 10)
    engine: Any = PrivacyEngine()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=options.batch_size)
    model, optimizer, criterion, batches = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        data_loader=data,
        noise_multiplier=4.0,
        max_grad_norm=0.1,
        poisson_sampling=True,
        grad_sample_mode="ghost",
    )
    ready = next(iter(batches))
    endless = itertools.chain.from_iterable(itertools.repeat(batches))

    def run() -> None:
        inputs, labels = next(endless) if loader else ready
        optimizer.zero_grad()
        criterion(model(inputs), labels).backward()
        optimizer.step()

    return run


def read_once(x: torch.Tensor, indices) -> None:
    """The bound: every sampled row comes from memory once."""
    for part in torch.from_numpy(indices).split(DEFAULT_PHYSICAL_BATCH):
        x[part].sum()


def measure(sides: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each side after one warm-up, the sides taking turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def report(medians: dict[str, float]) -> None:
    """Seconds of each side and the private step's ratio to it."""
    for name, seconds in medians.items():
        print(f"  {name:<40} {1e3 * seconds:8.0f} ms   private ÷ this {medians['private'] / seconds:6.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, use_underscores=True, description=__doc__))
