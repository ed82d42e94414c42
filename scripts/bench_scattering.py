"""Scattering on a CPU: the compiled kernel against Kymatio's torch frontend, images/s in one process.

    python scripts/bench_scattering.py             # 1 and 2 threads, a few minutes
    python scripts/bench_scattering.py --repeats=9 --threads 1

Each side runs at its own best batch size of those tried, warmed up; the sides take turns; medians. The first line of each
table row says what the first call costs (compiling, or loading a library compiled before).
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import tyro
from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

from scatterdp.extractors.scattering_kernel import ScatteringKernel

CASES = {
    "RGB 32×32, J=2": (2, 3, 32),
    "grey 28×28, J=2": (2, 1, 28),
    "RGB 64×64, J=3": (3, 3, 64),
    "RGB 224×224, J=4": (4, 3, 224),
}
BATCHES = (2, 4, 8, 16, 32, 64, 128, 256)
#: Planes in the largest batch tried; Kymatio keeps hundreds of maps of each.
LARGEST = {28: 256, 32: 384, 64: 96, 224: 12}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to time."""

    threads: tuple[int, ...] = (1, 2)
    repeats: int = 5


def main(options: Options) -> None:
    """Print one row a case and number of threads."""
    print(
        "| case | threads | Kymatio images/s (batch) | kernel images/s (batch) | ratio | first call (s) | max difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (J, colours, size) in CASES.items():
        kymatio = ScatteringTorch2D(J, (size, size))
        begin = time.perf_counter()
        kernel = ScatteringKernel(kymatio)
        first = time.perf_counter() - begin
        planes = torch.rand(2 * colours, size, size)
        difference = (kernel(planes) - kymatio(planes)).abs().max().item()
        for threads in options.threads:
            torch.set_num_threads(threads)
            batches = [b for b in BATCHES if b * colours <= LARGEST[size] or b == BATCHES[0]]
            best = {
                side: best_batch(transform, batches, colours, size)
                for side, transform in (("k", kymatio), ("c", kernel))
            }
            rates: dict[str, list[float]] = {"k": [], "c": []}
            for _ in range(options.repeats):
                for side, transform in (("k", kymatio), ("c", kernel)):
                    rates[side].append(rate(transform, best[side], colours, size))
            slow, fast = statistics.median(rates["k"]), statistics.median(rates["c"])
            print(
                f"| {name} | {threads} | {slow:.1f} ({best['k']}) | {fast:.1f} ({best['c']}) | {fast / slow:.1f}× | "
                f"{first:.1f} | {difference:.1e} |",
                flush=True,
            )


def best_batch(transform, batches, colours: int, size: int) -> int:
    """The batch size of the highest rate in one try each, after a warm-up."""
    return max(batches, key=lambda batch: rate(transform, batch, colours, size))


def rate(transform, batch: int, colours: int, size: int) -> float:
    """Images/s over at least half a second, after one call."""
    planes = torch.rand(batch * colours, size, size)
    transform(planes)
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < 0.5:
        transform(planes)
        calls += 1
    return calls * batch / (time.perf_counter() - begin)


if __name__ == "__main__":
    main(tyro.cli(Options, use_underscores=True, description=__doc__))
