"""Scattering on a CPU: the compiled kernel against Kymatio's torch frontend, images/s in one process.

    python scripts/bench_scattering.py             # 1 and 2 threads, a few minutes
    python scripts/bench_scattering.py --repeats=9 --threads 1

Each side runs at its own best batch size of those tried, warmed up; the sides take turns; medians. "First call" is what compiling
costs, or loading a library compiled before. The last column compares with the arithmetic limit: the operations that the transform
needs (fast Fourier transforms at 5 N log₂ N) at the rate of a large matrix product on the same threads.
"""

from __future__ import annotations

import math
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
LARGEST = {28: 256, 32: 384, 64: 96, 224: 48}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to time."""

    threads: tuple[int, ...] = (1, 2)
    repeats: int = 5


def main(options: Options) -> None:
    """Print one row a case and number of threads."""
    print(
        "| case | threads | Kymatio images/s (batch) | kernel images/s (batch) | ratio | first call (s) | max difference | "
        "Mflop/image | of the arithmetic limit |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
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
            operations = colours * flops(J, 8, int(kymatio._M_padded), size >> J)
            slow, fast = statistics.median(rates["k"]), statistics.median(rates["c"])
            print(
                f"| {name} | {threads} | {slow:.1f} ({best['k']}) | {fast:.1f} ({best['c']}) | {fast / slow:.1f}× | "
                f"{first:.1f} | {difference:.1e} | {operations / 1e6:.1f} | {100 * fast * operations / gemm_rate():.0f} % |",
                flush=True,
            )


def flops(J: int, L: int, padded: int, grid: int) -> float:
    """Floating point operations of one square plane to the second order."""

    def transform(side: int) -> float:  # a complex one
        return 5 * side**2 * math.log2(side**2)

    def low_pass(side: int) -> float:  # a small matrix on each side of a map
        return 2 * grid * side * (side + grid)

    def path(side: int, to: int) -> float:  # product with a real filter, fold, inverse transform, modulus
        return 2 * side**2 + 2 * (side**2 - to**2) + transform(to) + 4 * to**2

    total = transform(padded) / 2 + low_pass(padded)
    for j1 in range(J):
        side = padded >> j1
        total += L * (path(padded, side) + low_pass(side))
        if j1 + 1 < J:
            total += L * transform(side) / 2
        for j2 in range(j1 + 1, J):
            total += L**2 * (path(side, padded >> j2) + low_pass(padded >> j2))
    return total


def gemm_rate() -> float:
    """Operations/s of a float32 product of 1024 × 1024 matrices on the threads that torch has."""
    a = torch.rand(1024, 1024)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - begin)
    return 2 * 1024**3 / statistics.median(times)


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
