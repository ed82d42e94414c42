"""Seconds of an epoch of DP-SGD, and of SGD, by framework: scatterdp, Opacus and jax-privacy, the same networks, data and settings.

The comparison of Kurakin et al. 2022 (arXiv 2201.12328) for today's frameworks, on a processor. jax-privacy runs in an environment of its
own; without --jax_python its rows are left out:

    python3.11 -m venv jax_env && jax_env/bin/pip install jax==0.10.2 jax-privacy==2.0.0
    python scripts/compare_frameworks.py --jax_python=jax_env/bin/python                          # whole epochs: hours on two cores
    python scripts/compare_frameworks.py --jax_python=jax_env/bin/python --examples 8192 2048   # parts of epochs: ten minutes
    python scripts/compare_frameworks.py --networks mnist --batch_sizes 256 --examples 1024 --rounds=1 --out=trial

Before anything is timed, one step of every framework, without noise, from the same weights and on the same batch, is compared with per-example autograd:
exit code 1 when one differs by more than 1e-4. Every framework computes in the way that is fastest for it on trial. Times are medians of turns: in every
round each framework trains its part of an epoch, so that whatever slows the machine down slows all alike; a first round, in which jax compiles, is not
counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro

from scatterdp.benchmarking.epochs import TRAININGS, Settings
from scatterdp.benchmarking.frameworks import (
    FRAMEWORKS,
    TOLERANCE,
    TRAINED_NETWORKS,
    JaxSide,
    Row,
    Trial,
    check,
    fastest,
    images,
    measure,
)
from scatterdp.benchmarking.peer import Peer
from scatterdp.errors import ConfigError
from scatterdp.exits import exit_code
from scatterdp.heads import make_classifier
from scatterdp.report.framework_epochs import epoch_table, trial_table
from scatterdp.writing import json_text, new_folder, write_whole

REMEDY = "make an environment with `python3.11 -m venv jax_env && jax_env/bin/pip install jax==0.10.2 jax-privacy==2.0.0` and give --jax_python=jax_env/bin/python"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Seconds of an epoch by framework, private and not."""

    networks: tuple[str, ...] = tuple(TRAINED_NETWORKS)
    """Which networks: mnist (28×28×1), cifar10 (32×32×3)."""
    frameworks: tuple[str, ...] = tuple(FRAMEWORKS)
    """Which frameworks: torch and jax (not private), scatterdp, opacus_hooks, opacus_ghost, jax_privacy."""
    batch_sizes: tuple[int, ...] = (256, 2048)
    """Expected logical batch sizes."""
    examples: tuple[int, ...] = ()
    """Examples of a turn, at least one batch: one number, or one a network; the epoch's seconds are scaled from them. None given: whole epochs."""
    rounds: int = 3
    """Turns of each framework that count; their median is told."""
    threads: int = 2
    """Threads of every framework."""
    physical_batch_sizes: tuple[int, ...] = (32, 256)
    """Rows that are computed at once: each framework gets the fastest of these, found by trial, and jax-privacy may also take them one by one."""
    jax_python: Path | None = None
    """A Python with jax-privacy. None: no rows of jax."""
    data_dir: Path | None = None
    """Where the real data sets lie (they are fetched if need be). None: made-up images."""
    num_examples: int | None = None
    """Made-up training images. None: as many as the data set has."""
    noise_multiplier: float = 1.1
    """σ of DP-SGD."""
    max_grad_norm: float = 1.0
    """Per-example bound of DP-SGD."""
    lr: float = 0.1
    """Learning rate."""
    momentum: float = 0.9
    """Of SGD."""
    out: Path = Path("frameworks")
    """A new or empty folder for frameworks.json and frameworks.md."""

    def __post_init__(self) -> None:
        for name, known in (("networks", TRAINED_NETWORKS), ("frameworks", FRAMEWORKS)):
            values = getattr(self, name)
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise ConfigError(f"{name}={' '.join(unknown) or '()'}: expected some of {', '.join(known)}")
        for name in ("batch_sizes", "examples", "physical_batch_sizes"):
            values = getattr(self, name)
            if min(values, default=1) < 1 or (not values and name != "examples"):
                raise ConfigError(f"{name}={' '.join(map(str, values)) or '()'}: expected whole numbers ≥ 1")
        for name in ("rounds", "threads", "num_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: expected a whole number ≥ 1")
        for name in ("noise_multiplier", "max_grad_norm", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number > 0")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum}: expected a number in [0, 1)")
        if len(self.examples) not in (0, 1, len(self.networks)):
            given = " ".join(map(str, self.examples))
            raise ConfigError(f"examples={given}: expected one number, or {len(self.networks)}, one a network")
        if self.num_examples is not None and self.data_dir is not None:
            raise ConfigError(f"num_examples={self.num_examples}: is about made-up images; leave it or data_dir out")
        for network in self.networks:
            if max(self.batch_sizes) > self.size_of(network):
                sizes = " ".join(map(str, self.batch_sizes))
                raise ConfigError(
                    f"batch_sizes={sizes}: expected at most {self.size_of(network)}, the examples of {network}"
                )
        for size in self.physical_batch_sizes:
            if max(self.physical_batch_sizes) % size:
                raise ConfigError(
                    f"physical_batch_sizes={size}: expected a divisor of the largest, {max(self.physical_batch_sizes)}"
                )

    def size_of(self, network: str) -> int:
        """Number of training images."""
        return self.num_examples or TRAINED_NETWORKS[network][1]

    def steps(self, network: str, batch_size: int) -> int:
        """Steps of a turn."""
        epoch = self.size_of(network) // batch_size
        if not self.examples:
            return epoch
        part = self.examples[0] if len(self.examples) == 1 else self.examples[self.networks.index(network)]
        return min(epoch, max(1, part // batch_size))

    def settings(self, batch_size: int) -> Settings:
        """Of DP-SGD."""
        return Settings(
            batch_size=batch_size,
            physical_batch_size=max(self.physical_batch_sizes),
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            lr=self.lr,
            momentum=self.momentum,
        )


def write(config: CompareConfig, setup: dict[str, Any], rows: Sequence[Row], trials: dict[str, list[Trial]]) -> None:
    """What was found so far, as frameworks.json and frameworks.md."""
    content = {
        "units": {"rows": "s an epoch", "compile_seconds": "s", "trials": "s an example"},
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "setup": setup,
        "rows": [asdict(row) | {"median_seconds": row.median_seconds} for row in rows],
        "trials": {network: [asdict(trial) for trial in found] for network, found in trials.items()},
    }
    write_whole(config.out / "frameworks.json", json_text(content))
    told = ", ".join(f"{name} {value}" for name, value in setup["versions"].items())
    data = "made-up images" if config.data_dir is None else "the data sets' images"
    text = (
        f"# Seconds of an epoch, by framework\n\n{setup['processor']}, {config.threads} threads each, {told}. {data.capitalize()}; SGD with "
        f"momentum {config.momentum:g}, max_grad_norm {config.max_grad_norm:g}, noise_multiplier {config.noise_multiplier:g}.\n"
        f"Medians of {config.rounds} turns; load average at the start {setup['load']:.2f}.\n\n"
        f"{epoch_table(rows)}\nWays that were tried (bold: the fastest, timed above), and the largest relative difference of one step from "
        f"per-example autograd, same weights and batch, no noise:\n\n{trial_table(trials)}"
    )
    write_whole(config.out / "frameworks.md", text)


def compare(config: CompareConfig) -> int:
    """Check, measure, and write what was measured after every batch size.

    Returns:
        The exit code: 0, or 1 when a framework's gradient differs.

    Raises:
        UserError: see the message.
    """
    load = os.getloadavg()[0]
    frameworks = [
        name
        for name in FRAMEWORKS
        if name in config.frameworks and (config.jax_python is not None or name in TRAININGS)
    ]
    if not frameworks:
        raise ConfigError(f"frameworks={' '.join(config.frameworks)}: run in another environment; {REMEDY}")
    torch.set_num_threads(config.threads)
    with contextlib.ExitStack() as stack:
        peer = None
        if any(name not in TRAININGS for name in frameworks):
            assert config.jax_python is not None
            worker = Path(__file__).with_name("jax_worker.py")
            flag: dict[str, Any] = {"argument": "jax_python", "remedy": REMEDY}
            peer = stack.enter_context(Peer(config.jax_python, worker, threads=config.threads, **flag))
        elif any(name not in TRAININGS for name in config.frameworks):
            print(f"jax and jax_privacy are left out: {REMEDY}", flush=True)
        new_folder(config.out, argument="out")
        setup = {
            "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
            "load": load,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("scatterdp", "torch", "opacus")}
            | (peer.versions if peer is not None else {}),
        }
        rows: list[Row] = []
        trials: dict[str, list[Trial]] = {}
        for network in config.networks:
            x, y = images(network, data_dir=config.data_dir, count=config.size_of(network))
            model = make_classifier("cnn", TRAINED_NETWORKS[network][0], 10)
            with tempfile.TemporaryDirectory() as folder:
                jax = None if peer is None else JaxSide(peer, network, model, Path(folder))
                trials[network] = []
                how = {"physical_batch_sizes": config.physical_batch_sizes, "max_grad_norm": config.max_grad_norm}
                for trial in check(network, model, frameworks, jax, **how):
                    print(_told(network, trial), flush=True)
                    trials[network].append(trial)
                    if not trial.agrees:
                        return 1
                if jax is not None:
                    jax.give(x, y)
                for batch_size in sorted(set(config.batch_sizes)):
                    measured = measure(
                        network,
                        model,
                        x,
                        y,
                        fastest(trials[network]),
                        jax,
                        config.settings(batch_size),
                        steps=config.steps(network, batch_size),
                        rounds=config.rounds,
                    )
                    for row in measured:
                        told = f"{row.median_seconds:10.2f} s  {row.way}"
                        print(f"{network:<10}{batch_size:>6}  {row.framework:<14}{told}", flush=True)
                    rows += measured
                    write(config, setup, rows, trials)
    print(f"{config.out}: frameworks.json, frameworks.md")
    return 0


def _told(network: str, trial: Trial) -> str:
    """A trial's line."""
    line = f"{network:<10}{trial.framework:<14}{trial.way:<32}{1e3 * trial.seconds:8.2f} ms an example"
    if trial.difference is not None:
        line += f", from autograd {trial.difference:.1e}"
    return line if trial.agrees else f"{line}  DIFFERS by more than {TOLERANCE:g}: times would compare different things"


def main(argv: list[str]) -> int:
    config = tyro.cli(CompareConfig, prog="compare_frameworks.py", args=argv, use_underscores=True, description=__doc__)
    # Opacus' warnings: of hooks, of noise that is not cryptographic, of drop_last, which is there for the sampling rate alone.
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.getLogger("opacus.data_loader").setLevel(logging.ERROR)
    try:
        return compare(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {config.out} holds what was measured before, if anything was") from None


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
