"""The README's results table: every recipe with seeds 0, 1, 2; mean and standard deviation.

    python scripts/results_table.py                          # mnist, fmnist, cifar10: about 15 minutes on two cores
    python scripts/results_table.py --datasets digits --seeds 0 1 --folder runs/try

Each run is the command that the table prints, in a process of its own; finished runs are not repeated.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

PUBLISHED = {"mnist": 98.7, "fmnist": 89.7, "cifar10": 67.0}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run, and where the data and features are."""

    datasets: tuple[str, ...] = ("mnist", "fmnist", "cifar10")
    seeds: tuple[int, ...] = (0, 1, 2)
    folder: Path = Path("runs/results")
    flags: str = ""
    """More flags for every run, as one string."""


def main(options: Options) -> None:
    """Run what is missing and print the table as Markdown."""
    print(
        "| data set | command | n | test accuracy (%) | averaged weights (%) | published (%) | ε (PLD) | ε (classic RDP) |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for dataset in options.datasets:
        command = ["-m", "scatterdp.baselines", f"--dataset={dataset}", *shlex.split(options.flags)]
        summaries = []
        for seed in options.seeds:
            run_dir = options.folder / f"{dataset}-seed{seed}"
            if not (run_dir / "summary.json").exists():
                arguments = [f"--seed={seed}", f"--run_dir={run_dir}"]
                subprocess.run([sys.executable, *command, *arguments], check=True, stdout=sys.stderr)
            summaries.append(json.loads((run_dir / "summary.json").read_text()))
        cells = [dataset, f"`python {shlex.join(command)}`", str(len(summaries))]
        cells += [spread([100 * s[name] for s in summaries]) for name in ("test_accuracy", "test_accuracy_ema")]
        cells.append(f"{PUBLISHED[dataset]}" if dataset in PUBLISHED else "–")
        cells += [f"{max(s['epsilon_by_accountant'][name] for s in summaries):.3f}" for name in ("pld", "rdp_classic")]
        print("| " + " | ".join(cells) + " |", flush=True)


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    main(tyro.cli(Options, use_underscores=True, description=__doc__))
