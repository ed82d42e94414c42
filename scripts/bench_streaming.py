"""Training on features that stay on the disk against what the disk gives.

    python scripts/bench_streaming.py --cache=features/FILE.h5              # or --folder=DIR: made-up features, 3 GB

Rounds of four readings, each after the system was told to forget the file (posix_fadvise): the file from first to last with nothing done
to it; an epoch of full batches (each row once); the rows of an epoch of Poisson batches with nothing done to them; that epoch. Bytes are those of the
rows that are used. `--no_forget` leaves the file in the system's memory.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

import numpy as np
import torch

from scatterdp.benchmarking.forgetting import forget_file
from scatterdp.benchmarking.made_up import made_up_features
from scatterdp.cache import FeatureCache
from scatterdp.engines import ENGINES
from scatterdp.exits import exit_code
from scatterdp.heads import Standardize
from scatterdp.heads.head import linear
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.loop import TrainingState, train
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.streaming import StreamedRows, matrix_bytes, stream_rows

_PIECE = 8 << 20


def raw(path: Path) -> float:
    """Seconds to read a file from first to last."""
    buffer = bytearray(_PIECE)
    begin = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - begin


def epoch(rows: StreamedRows, plan: TrainingPlan, features: FeatureCache) -> float:
    """Seconds of an epoch of private training."""
    state = TrainingState.begin(linear(features.output_shape, len(features.class_names)), plan)
    begin = time.perf_counter()
    train(state, rows, plan, key=RandomKey.from_seed(0), engine=ENGINES["linear"])
    return time.perf_counter() - begin


def reading(rows: StreamedRows, plan: TrainingPlan) -> tuple[float, int]:
    """Seconds and number of rows of the same epoch's batches when they are only read."""
    begin, count = time.perf_counter(), 0
    for step in range(plan.steps):
        indices = plan.selection().indices(step, RandomKey.from_seed(0))
        parts = [indices[start : start + 512] for start in range(0, len(indices), 512)]
        for number, part in enumerate(parts):
            for later in parts[:8] if number == 0 else parts[number + 7 : number + 8]:
                rows.reader.expect(later)
            rows.reader.read(part)
        count += len(indices)
    return time.perf_counter() - begin, count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cache", type=Path)
    where.add_argument("--folder", type=Path)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--batch_size", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_forget", action="store_true")
    args = parser.parse_args()
    with contextlib.closing(
        FeatureCache(args.cache) if args.cache else made_up_features(args.folder, rows=args.rows, dimensions=3072)
    ) as features:
        channels, total = features.output_shape[0], features.num_rows("train")
        normalizer = Standardize(torch.full((channels,), 0.5), torch.full((channels,), 2.0))
        rows = stream_rows(features, "train", normalizer)
        full = TrainingPlan(num_examples=total, batch_size=total, epochs=1, lr=1.0, noise_multiplier=1.0)
        batches = TrainingPlan(
            num_examples=total,
            batch_size=args.batch_size,
            epochs=1,
            epoch_examples=args.batch_size * args.steps,
            lr=1.0,
            noise_multiplier=1.0,
        )
        size = matrix_bytes(features, "train")
        print(
            f"{features.path.name}: {total} rows of {size // total} bytes, {torch.get_num_threads()} threads of torch"
        )

        def forget() -> None:
            if not args.no_forget:
                forget_file(features.path)

        found: dict[str, list[float]] = {"raw": [], "full": [], "read": [], "batches": []}
        for _ in range(args.rounds):
            forget()
            found["raw"].append(features.path.stat().st_size / raw(features.path))
            forget()
            found["full"].append(size / epoch(rows, full, features))
            forget()
            seconds, count = reading(rows, batches)
            found["read"].append(count * (size // total) / seconds)
            forget()
            found["batches"].append(count * (size // total) / epoch(rows, batches, features))
    middle = {name: float(np.median(speeds)) / 1e6 for name, speeds in found.items()}
    print(f"the file from first to last, nothing done: {middle['raw']:.0f} MB/s")
    print(f"an epoch of full batches: {middle['full']:.0f} MB/s, {middle['full'] / middle['raw']:.0%} of that")
    print(f"rows of Poisson batches of {args.batch_size}, nothing done: {middle['read']:.0f} MB/s")
    print(f"an epoch of them: {middle['batches']:.0f} MB/s, {middle['batches'] / middle['read']:.0%} of that")
    print(f"medians of {args.rounds}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
