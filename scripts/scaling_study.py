"""Time and memory of private training against the number of rows, of dimensions and of processes: a chart, a table, and ε as N grows.

    python scripts/scaling_study.py --folder=DIR --out=scaling              # a quarter of an hour, 5 GB of disk at a time
    python scripts/scaling_study.py --folder=DIR --out=scaling --rows 50000 100000 --dimensions 512 --processes 1 2      # minutes

Features are made up (float16). Every point is a process of its own, or several: DP-SGD on a linear head, Poisson batches of
8192, the rows on the disk and forgotten by the system before every epoch; and, where they fit, in memory. Medians of three epochs after one that
warms up. Features are made in DIR and removed after their points, unless they were there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from scatterdp.benchmarking.made_up import made_up_features
from scatterdp.benchmarking.scaling import BATCH_SIZE, Point, measure_point
from scatterdp.errors import ConfigError, UserError
from scatterdp.exits import exit_code
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.calibration import calibrate_noise_multiplier
from scatterdp.privacy.sampling import PoissonSelection
from scatterdp.sizes import available_memory
from scatterdp.writing import json_text, new_folder, write_whole

_BYTES = 2  # of a number
_LIKE = {"on the disk": ("#0b5fa5", "o"), "in memory": ("#b8470b", "s")}


def points(args: argparse.Namespace) -> list[Point]:
    """All that is measured, each once."""
    rows, dimensions = max(args.rows), min(args.dimensions)
    of_rows = [Point(rows=n, dimensions=dimensions, streamed=s) for n in args.rows for s in (True, False)]
    of_dimensions = [
        Point(rows=min(args.rows), dimensions=d, streamed=s) for d in args.dimensions for s in (True, False)
    ]
    of_processes = [
        Point(rows=rows, dimensions=dimensions, processes=k, streamed=s) for k in args.processes for s in (True, False)
    ]
    return list(dict.fromkeys([*of_dimensions, *of_rows, *of_processes]))


def measure(point: Point, cache: Path) -> dict[str, Any]:
    """A point, by processes of its own."""
    content = json.dumps({"point": dataclasses.asdict(point), "cache": str(cache)})
    threads = max(1, torch.get_num_threads() // point.processes)
    command = [__file__, "--point", content, "--threads", str(threads)]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={point.processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *(launcher if point.processes > 1 else []), *command],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"{point}: ended with exit code {done.returncode} ({words[-1] if words else 'without a word'})")
    return json.loads(done.stdout.splitlines()[-1])


def one_point(content: str, threads: int) -> None:
    """What :func:`measure` starts."""
    asked = json.loads(content)
    found = measure_point(Point(**asked["point"]), Path(asked["cache"]), threads=threads)
    if found is not None:
        print(json.dumps(found), flush=True)


def table(measured: list[tuple[Point, dict[str, Any]]]) -> str:
    lines = [
        "| N | D | size (GB) | rows | processes | before the first step (s) | step (ms) | of it, drawing the batch (ms) | batch (MB) | peak memory (GB) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for point, found in measured:
        size, batch = (n * point.dimensions * _BYTES for n in (point.rows, point.batch_size))
        lines.append(
            f"| {point.rows:,} | {point.dimensions:,} | {size / 1e9:.2f} | {'on the disk' if point.streamed else 'in memory'} | "
            f"{point.processes} | {found['seconds_prepare']:.1f} | {1e3 * found['seconds_step']:.0f} | {1e3 * found['seconds_draw']:.1f} | "
            f"{batch / 1e6:.0f} | {found['peak_memory'] / 1e9:.2f} |"
        )
    return "\n".join(lines) + "\n"


def epsilon_table(*, batch_size: int = BATCH_SIZE, steps: int = 2000) -> str:
    """What N is worth: ε of one training, and the noise that ε = 1 takes, at δ = 1 / (10 N); PLD."""
    lines = [
        f"| N | q | δ | ε of {steps} steps at σ = 2 | σ for ε = 1 |",
        "|---|---|---|---|---|",
    ]
    for n in (50_000, 500_000, 5_000_000, 50_000_000, 1_000_000_000):
        delta = 0.1 / n
        selection = PoissonSelection(num_examples=n, batch_size=batch_size, steps=steps)
        epsilon = epsilon_of(selection.event(2.0), delta=delta)
        sigma = calibrate_noise_multiplier(selection.event, target_epsilon=1.0, target_delta=delta)
        lines.append(f"| {n:,} | {selection.sample_rate:.2g} | {delta:.0e} | {epsilon:.3g} | {sigma:.3g} |")
    return "\n".join(lines) + "\n"


def chart(measured: list[tuple[Point, dict[str, Any]]], paths: list[Path]) -> None:
    """Above, time of a step; below, peak memory; against N, D and the number of processes."""
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, 3)
    alone = [(point, found) for point, found in measured if point.processes == 1]
    least = min(point.dimensions for point, _ in alone)
    fewest = min(point.rows for point, _ in alone)
    shared = max((p.rows, p.dimensions) for p, _ in measured if p.processes == max(q.processes for q, _ in measured))
    columns = (
        ("rows", f"rows N (D = {least})", [(p, f) for p, f in alone if p.dimensions == least]),
        ("dimensions", f"dimensions D (N = {fewest:,})", [(p, f) for p, f in alone if p.rows == fewest]),
        (
            "processes",
            f"processes (N = {shared[0]:,}, D = {shared[1]})",
            [(p, f) for p, f in measured if (p.rows, p.dimensions) == shared],
        ),
    )
    for column, (field, label, chosen) in enumerate(columns):
        for row, (key, unit, what) in enumerate(
            (("seconds_step", 1e3, "milliseconds a step"), ("peak_memory", 1e-9, "peak memory of a process (GB)"))
        ):
            draw(axes[row, column], chosen, field=field, key=key, unit=unit)
            axes[row, column].set_xlabel(label)
            if column == 0:
                axes[row, column].set_ylabel(what)
    axes[0, 0].legend(frameon=False)
    figure.suptitle("Private training of a linear head, batches of 8192, float16 features")
    for path in paths:
        figure.savefig(path, dpi=150)


def draw(axes: Axes, measured: list[tuple[Point, dict[str, Any]]], *, field: str, key: str, unit: float) -> None:
    for name, (colour, marker) in _LIKE.items():
        found = sorted(
            (getattr(p, field), unit * values[key]) for p, values in measured if p.streamed == (name == "on the disk")
        )
        if found:
            axes.plot(*zip(*found, strict=True), color=colour, marker=marker, label=name)
    ticks = sorted({getattr(p, field) for p, _ in measured})
    if field == "processes":
        axes.set_xticks(ticks)
        axes.set_ylim(0, 1.1 * max(unit * values[key] for _, values in measured))
    else:
        axes.loglog()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 150_000, 500_000, 1_500_000, 5_000_000])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[512, 2048, 8192, 32_768])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        one_point(args.point, args.threads)
        return 0
    if args.folder is None or args.out is None:
        parser.error("--folder and --out are needed")
    for name, least in (("rows", BATCH_SIZE), ("dimensions", 1), ("processes", 1)):
        if min(getattr(args, name)) < least:
            raise ConfigError(f"{name}={' '.join(map(str, getattr(args, name)))}: expected whole numbers ≥ {least}")
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder={args.folder}: cannot be made ({error.strerror}); give another --folder") from error
    new_folder(args.out, argument="out")
    measured: list[tuple[Point, dict[str, Any]]] = []
    todo = points(args)
    before = set(args.folder.glob("*"))
    for shape in dict.fromkeys((point.rows, point.dimensions) for point in todo):
        features = made_up_features(args.folder, rows=shape[0], dimensions=shape[1])
        features.close()
        try:
            for point in (point for point in todo if (point.rows, point.dimensions) == shape):
                free = available_memory()
                if not point.streamed and free is not None and shape[0] * shape[1] * _BYTES > free // 2:
                    continue
                measured.append((point, measure(point, features.path)))
                print(table(measured[-1:]).splitlines()[-1], flush=True)
                content = [dataclasses.asdict(point) | found for point, found in measured]
                write_whole(args.out / "scaling.json", json_text(content))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted: {args.out} holds the points that were measured before, if any were"
            ) from None
        finally:
            for path in set(args.folder.glob("*")) - before:
                if path.name.startswith("made-up-") or path.name == "commitment.key":
                    path.unlink()
    write_whole(args.out / "scaling.md", table(measured) + "\n" + epsilon_table())
    chart(measured, [args.out / f"scaling.{suffix}" for suffix in ("png", "svg")])
    print(f"{args.out}: scaling.json, scaling.md, scaling.png, scaling.svg")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
