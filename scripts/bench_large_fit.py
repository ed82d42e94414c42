"""A million rows of 512 half-precision features in HDF5: what `fit` needs, and an epoch of DP-SGD against reading the file once.

    python scripts/bench_large_fit.py --folder=/tmp/large            # 1 GB of disk, some minutes

The file is made up (classes around random centres). The whole command runs as a process of its own for its peak memory; the epoch and the
reading are timed in this process, several times, alternating.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from scatterdp.linear import Budget, Problem
from scatterdp.linear.choice import make_method
from scatterdp.linear.fitting import unit_rows
from scatterdp.linear.gradient_descent import GradientDescent
from scatterdp.privacy.randomness import RandomKey
from scatterdp.tables import read_table, row_blocks


def make(path: Path, rows: int, features: int, classes: int) -> None:
    """Write the file, once."""
    if path.exists():
        return
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, features)).astype(np.float32)
    unfinished = path.with_suffix(".unfinished")
    with h5py.File(unfinished, "w") as file:
        x = file.create_dataset("x", (rows, features), np.float16, chunks=(2048, features))
        y = file.create_dataset("y", (rows,), np.int64)
        for start in range(0, rows, 65536):
            count = min(65536, rows - start)
            labels = generator.integers(0, classes, count)
            x[start : start + count] = centres[labels] + 4 * generator.standard_normal((count, features), np.float32)
            y[start : start + count] = labels
    unfinished.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / f"rows-{args.rows}-{args.features}.h5"
    make(path, args.rows, args.features, 10)

    run = args.folder / f"run-{time.time_ns()}"
    command = [
        "fit",
        f"--features={path}:x",
        f"--labels={path}:y",
        "--target_epsilon=2",
        "--target_delta=1e-7",
        f"--run_dir={run}",
    ]
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "scatterdp", *command], check=True)
    summary = json.loads((run / "summary.json").read_text())
    print(
        f"fit: {time.monotonic() - begin:.0f} s in all, peak memory {summary['peak_memory_bytes'] / 1e9:.2f} GB",
        flush=True,
    )

    table = read_table(f"{path}:x", f"{path}:y")
    labels = np.asarray(table.labels)
    problem = Problem(num_examples=args.rows, num_features=args.features, num_classes=10)
    method = make_method("dp_sgd", problem, Budget(epsilon=2, delta=1e-7))
    assert isinstance(method, GradientDescent)
    epoch = GradientDescent(problem=problem, batch_size=method.batch_size, epochs=1, lr=method.lr)
    rows, _ = unit_rows(table.x, labels)
    from_disk, from_memory, training = [], [], []
    for _ in range(args.rounds):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # the system forgets the file
        for seconds in (from_disk, from_memory):
            begin = time.monotonic()
            for _ in row_blocks(table.x):
                pass
            seconds.append(time.monotonic() - begin)
        begin = time.monotonic()
        epoch.solve(rows, noise_multiplier=2.0, key=RandomKey.from_seed(0))
        training.append(time.monotonic() - begin)
    disk, memory, epoch_seconds = (float(np.median(seconds)) for seconds in (from_disk, from_memory, training))
    print(
        f"an epoch {epoch_seconds:.2f} s; reading once from disk {disk:.2f} s (ratio {epoch_seconds / disk:.2f}), from the system's cache "
        f"{memory:.2f} s (ratio {epoch_seconds / memory:.2f}); medians of {args.rounds}"
    )


if __name__ == "__main__":
    main()
