"""``python -m scatterdp benchmark``: what clipping per example costs, in time and memory, and whether all ways to do it agree.

    python -m scatterdp benchmark                                                   # all of it: hours on two cores
    python -m scatterdp benchmark --models cnn --batch_sizes 64 256 --repeats=3     # minutes
    python -m scatterdp benchmark --models cnn --engines mixed_ghost opacus_ghost --memory_bound=2GB
    python -m scatterdp benchmark --gradcheck                                       # only: is it the same gradient?

Inputs are made up. Times are medians in one process, the contenders taking turns; memory is measured in a new process for each figure.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro

from scatterdp.benchmarking import (
    CONTENDERS,
    NETWORKS,
    Cell,
    Largest,
    Question,
    differences,
    largest_batch,
    measure,
    probe,
)
from scatterdp.errors import ConfigError
from scatterdp.sizes import available_memory, bytes_of
from scatterdp.training.device import resolve_device
from scatterdp.writing import new_folder

TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure what clipping per example costs; made-up inputs, nothing is trained."""

    models: tuple[str, ...] = tuple(NETWORKS)
    """Which networks: scatternet_cnn, cnn, resnet20, vgg11."""
    engines: tuple[str, ...] = tuple(CONTENDERS)
    """Which contenders: non_private, loop, vmap, hooks, crb, ghost, mixed_ghost, privacy_engine, opacus_hooks, opacus_ghost."""
    batch_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Physical batch sizes."""
    repeats: int = 7
    """Steps of each contender that count; their median is told."""
    threads: int = torch.get_num_threads()
    """Threads of torch."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    memory_bound: str | None = None
    """Also find the largest physical batch whose step takes at most this much memory beside weights and batch, such as 2GB or 500MB."""
    max_seconds: float = 10.0
    """A contender whose step takes longer is timed once; one that takes five times as long is given up."""
    max_grad_norm: float = 1.0
    """The bound that gradients are clipped to."""
    out: Path = Path("benchmark")
    """A new or empty folder for benchmark.json, .md, .png and .svg."""
    gradcheck: bool = False
    """Measure nothing: compare the contenders' gradients on three small batches in double precision; exit code 1 if one differs by more than 1e-5."""

    def __post_init__(self) -> None:
        for name, values, known in (("models", self.models, NETWORKS), ("engines", self.engines, CONTENDERS)):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise ConfigError(f"{name}={' '.join(unknown) or '()'}: expected some of {', '.join(known)}")
        for name in ("repeats", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected an integer ≥ 1")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError(f"batch_sizes={' '.join(map(str, self.batch_sizes)) or '()'}: expected integers ≥ 1")
        for name in ("max_seconds", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number > 0")
        if self.memory_bound is not None:
            bytes_of(self.memory_bound, argument="memory_bound")


def gradcheck(config: BenchmarkConfig) -> int:
    """Print each contender's largest differences from ``loop``.

    Returns:
        The exit code: 0, or 1 when a relative difference is larger than :data:`TOLERANCE`.
    """
    torch.set_num_threads(config.threads)
    device = resolve_device(config.device)
    size = min(8, *config.batch_sizes)
    failed = 0
    for network in config.models:
        print(f"{network}: average gradients of batches of {size}, compared with loop")
        print(f"  {'batch':<7}{'bound':<10}{'contender':<14}{'absolute':>10}{'relative':>10}")
        for found in differences(network, config.engines, batch_size=size, batches=3, device=device):
            bound = "none" if found.max_grad_norm is None else f"{found.max_grad_norm:.3g}"
            line = f"  {found.batch:<7}{bound:<10}{found.contender:<14}"
            if found.reason is not None:
                print(f"{line}  cannot: {found.reason}")
                continue
            differs = not found.relative <= TOLERANCE
            failed += differs
            print(f"{line}{found.absolute:>10.1e}{found.relative:>10.1e}{'  DIFFERS' if differs else ''}", flush=True)
    print(f"{failed} differ by more than {TOLERANCE:g}" if failed else f"all agree within {TOLERANCE:g}")
    return 1 if failed else 0


def benchmark(config: BenchmarkConfig) -> list[Cell]:
    """Measure, and write what was measured after every batch size.

    Raises:
        UserError: see the message.
    """
    device = resolve_device(config.device)
    bound = None if config.memory_bound is None else bytes_of(config.memory_bound, argument="memory_bound")
    free = available_memory() if device.type == "cpu" else None
    if bound is not None and free is not None and bound > _share(free):
        raise ConfigError(
            f"memory_bound={config.memory_bound}: {free / 1e9:.1f} GB are free here; give at most {_share(free) / 1e9:.1f}GB"
        )
    new_folder(config.out, argument="out")
    torch.set_num_threads(config.threads)
    question = functools.partial(
        Question,
        max_grad_norm=config.max_grad_norm,
        device=str(device),
        threads=config.threads,
        max_seconds=config.max_seconds,
    )
    cells: list[Cell] = []
    largest: dict[tuple[str, str], Largest] = {}
    try:
        for network in config.models:
            failed: dict[str, str] = {}
            for size in sorted(set(config.batch_sizes)):
                free = available_memory() if device.type == "cpu" else None
                room = None if free is None else _share(free)
                asked = question(network=network, contender="", batch_size=size, max_memory=room)
                measured = measure(asked, config.engines, repeats=config.repeats, failed=failed)
                print("\n".join(map(_line, measured)), flush=True)
                cells += measured
                _write(config, device, cells, largest)
            if bound is not None:
                for contender in config.engines:
                    # The system counts what is reserved, the peak only what was used: the latter decides.
                    asked = question(network=network, contender=contender, batch_size=0, max_memory=bound + bound // 4)
                    found = largest_batch(
                        lambda size, asked=asked: probe(replace(asked, batch_size=size)),
                        bound,
                        max_seconds=config.max_seconds,
                    )
                    largest[network, contender] = found
                    print(f"{network} {contender}: largest batch in {config.memory_bound}: {found.how}", flush=True)
                _write(config, device, cells, largest)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: {config.out} holds what was measured before; another run needs another --out"
        ) from None
    print(f"{config.out}: benchmark.json, benchmark.md, benchmark.png, benchmark.svg")
    return cells


def _share(free: int) -> int:
    """What one step may take of the free memory: with the quarter above a bound, all of it at most."""
    return free * 4 // 5


def _line(cell: Cell) -> str:
    median, memory = cell.median_seconds, cell.extra_memory
    told = "" if median is None else f"{1e3 * median:10.1f} ms"
    told += "" if memory is None else f"{memory / 1e6:10.0f} MB"
    return f"{cell.network:<16}{cell.batch_size:>6}  {cell.contender:<14}{told}  {cell.note or ''}".rstrip()


def _setup(config: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    processor = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "processor": processor if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": config.threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("scatterdp", "torch", "opacus")},
    }


def _write(
    config: BenchmarkConfig, device: torch.device, cells: Sequence[Cell], largest: dict[tuple[str, str], Largest]
) -> None:
    from scatterdp.report.clipping_cost import clipping_table, plot_clipping_cost  # matplotlib takes a second to import

    setup = _setup(config, device)
    told = ", ".join([f"{setup['processor']}, {setup['threads']} threads", f"torch {setup['torch']}"])
    content = {
        "units": {"seconds": "s", "extra_memory": "bytes"},
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "setup": setup,
        "cells": [asdict(cell) | {"median_seconds": cell.median_seconds} for cell in cells],
        "largest_batches": [
            {"network": network, "contender": contender, **asdict(found)}
            for (network, contender), found in largest.items()
        ],
    }
    (config.out / "benchmark.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    head = (
        f"# What clipping per example costs\n\n{told}, Opacus {setup['opacus']}; medians of {config.repeats} steps in one process, the "
        "contenders taking turns.\nExtra memory: peak during one step in a process of its own, beside weights and batch.\n\n"
    )
    (config.out / "benchmark.md").write_text(head + clipping_table(cells, largest, config.memory_bound))
    pictures = [config.out / f"benchmark.{suffix}" for suffix in ("png", "svg")]
    plot_clipping_cost(cells, pictures, title=f"One clipped gradient sum ({told})")


def run(argv: list[str]) -> int:
    """Run ``benchmark`` with its arguments.

    Returns:
        The exit code: 0, or 1 when ``--gradcheck`` found a difference.

    Raises:
        UserError: see the message.
    """
    config = tyro.cli(BenchmarkConfig, prog="scatterdp benchmark", args=argv, use_underscores=True, description=__doc__)
    if config.gradcheck:
        return gradcheck(config)
    benchmark(config)
    return 0
