"""Seconds of an epoch of DP-SGD, and of SGD, by framework: scatterdp, Opacus and jax-privacy, the same networks, data and settings.

The comparison of Kurakin et al. 2022 (arXiv 2201.12328, section 3) for today's frameworks, on a processor. jax-privacy runs in an environment of its
own; without --jax_python its rows are left out:

    python3.11 -m venv jax_env && jax_env/bin/pip install jax==0.10.2 jax-privacy==2.0.0
    python scripts/compare_frameworks.py --jax_python=jax_env/bin/python                          # whole epochs: hours on two cores
    python scripts/compare_frameworks.py --jax_python=jax_env/bin/python --examples 6144 2048   # parts of epochs: ten minutes
    python scripts/compare_frameworks.py --networks mnist --batch_sizes 256 --examples 1024 --rounds=1 --out=trial

Before anything is timed, one step of every framework, without noise, from the same weights and on the same batch, is compared with per-example autograd:
exit code 1 when one differs by more than 1e-4. Every framework computes in the way that is fastest for it on trial. Times are medians of turns: in every round each framework trains its part of an epoch, so that whatever
slows the machine down slows all alike; a first round, in which jax compiles, is not counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from scatterdp import load_dataset
from scatterdp.benchmarking.epochs import TRAININGS, Reference, Settings, TorchTraining
from scatterdp.benchmarking.measuring import take_turns
from scatterdp.benchmarking.peer import Peer
from scatterdp.errors import ConfigError, UserError
from scatterdp.exits import exit_code
from scatterdp.heads import make_classifier
from scatterdp.writing import json_text, new_folder, write_whole

#: Name → shape of its images, number of training images. The networks are the published end-to-end ones (head ``cnn``).
NETWORKS: dict[str, tuple[tuple[int, int, int], int]] = {
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
REMEDY = "make an environment with `python3.11 -m venv jax_env && jax_env/bin/pip install jax==0.10.2 jax-privacy==2.0.0` and give --jax_python=jax_env/bin/python"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Seconds of an epoch by framework, private and not."""

    networks: tuple[str, ...] = tuple(NETWORKS)
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
        for name, known in (("networks", NETWORKS), ("frameworks", FRAMEWORKS)):
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
        return self.num_examples or NETWORKS[network][1]

    def steps(self, network: str, batch_size: int) -> tuple[int, int]:
        """Steps of a turn, and of an epoch."""
        epoch = self.size_of(network) // batch_size
        if not self.examples:
            return epoch, epoch
        part = self.examples[0] if len(self.examples) == 1 else self.examples[self.networks.index(network)]
        return min(epoch, max(1, part // batch_size)), epoch

    def settings(self, batch_size: int, physical_batch_size: int) -> Settings:
        """Of DP-SGD."""
        return Settings(
            batch_size=batch_size,
            physical_batch_size=physical_batch_size,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            lr=self.lr,
            momentum=self.momentum,
        )


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


def images(config: CompareConfig, network: str) -> tuple[Tensor, Tensor]:
    """Rows ``(N, C·H·W)`` in [0, 1] and labels ``(N,)``: the data set's, or made-up ones."""
    shape, _ = NETWORKS[network]
    if config.data_dir is None:
        generator = np.random.default_rng(0)
        count = config.size_of(network)
        x = generator.random((count, math.prod(shape)), dtype=np.float32)
        return torch.from_numpy(x), torch.from_numpy(generator.integers(10, size=count))
    pixels, y = load_dataset(network, data_dir=config.data_dir).split("train")
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
        written = "" if self.convolution is None else f"{self.convolution}, "
        return f"{written}{self.physical_batch_size} rows at once"


def check(
    config: CompareConfig, model: nn.Module, x: Tensor, y: Tensor, frameworks: Sequence[str], jax: JaxSide | None
) -> Iterator[Trial]:
    """Try every framework's ways, and compare a step of the code that is timed with autograd's gradient sum.

    Of jax's ways only the fastest is compared: the others are of no consequence.
    """
    largest = max(config.physical_batch_sizes)
    count = min(len(x), largest * 3 // 2)  # more than one piece, the last one shorter
    reference = Reference.of(model, x[:count], y[:count])
    for name in (name for name in frameworks if name in TRAININGS):
        for size in config.physical_batch_sizes:
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
        sizes = sorted({size for size in (*config.physical_batch_sizes, *([1] * private)) if size <= count}) or [1]
        tried = jax.tries(name, sizes, config.max_grad_norm)
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
    config: CompareConfig,
    network: str,
    batch_size: int,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    trials: dict[str, Trial],
    jax: JaxSide | None,
) -> list[Row]:
    """The rows of one network and batch size, each framework in the way that was fastest on trial."""
    steps, epoch = config.steps(network, batch_size)
    compiled: dict[str, float] = {}
    turns: dict[str, Callable[[], object]] = {}
    for name, trial in trials.items():
        if name in TRAININGS:
            settings = config.settings(batch_size, trial.physical_batch_size)
            training = TorchTraining(name, model, x, y, settings)
            turns[name] = lambda training=training: training.train(steps)
        else:
            assert jax is not None
            settings = config.settings(batch_size, max(config.physical_batch_sizes))
            way = {"convolution": trial.convolution, "microbatch": trial.physical_batch_size}
            jax.prepare(name, settings, way)
            compiled[name] = 0.0

            def turn(name: str = name, jax: JaxSide = jax) -> None:
                compiled[name] += jax.train(name, steps)

            turns[name] = turn
    timed = take_turns(turns, config.rounds, torch.device("cpu"))
    return [
        Row(
            network=network,
            batch_size=batch_size,
            framework=name,
            way=trials[name].way,
            steps=steps,
            steps_per_epoch=epoch,
            seconds=tuple(s * epoch / steps for s in seconds),
            compile_seconds=compiled.get(name),
        )
        for name, seconds in timed.items()
    ]


def epoch_table(rows: Sequence[Row]) -> str:
    """Markdown: a row a network, batch size and framework."""
    lines = [
        "| network | batch | framework | seconds per epoch | fastest–slowest turn | DP ÷ non-DP, same framework | ÷ scatterdp | compiling (s) | steps timed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    medians = {(row.network, row.batch_size, row.framework): row.median_seconds for row in rows}
    for row in rows:
        plain = FRAMEWORKS[row.framework]
        base = None if plain is None else medians.get((row.network, row.batch_size, plain))
        ours = medians.get((row.network, row.batch_size, "scatterdp"))
        values = (
            row.framework,
            _number(row.median_seconds),
            f"{_number(min(row.seconds))}–{_number(max(row.seconds))}",
            "–" if base is None else f"{row.median_seconds / base:.2f}",
            "–" if ours is None else f"{row.median_seconds / ours:.2f}",
            "–" if row.compile_seconds is None else f"{row.compile_seconds:.1f}",
            f"{row.steps} of {row.steps_per_epoch}",
        )
        lines.append(f"| {row.network} | {row.batch_size} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def trial_table(trials: dict[str, list[Trial]]) -> str:
    """Markdown: every way that was tried, and how far a step in it is from autograd's."""
    lines = [
        "| network | framework | way | ms per example | relative difference |",
        "|---|---|---|---|---|",
    ]
    for network, found in trials.items():
        chosen = fastest(found).values()
        for trial in found:
            way = f"**{trial.way}**" if trial in chosen else trial.way
            difference = "–" if trial.difference is None else f"{trial.difference:.1e}"
            lines.append(f"| {network} | {trial.framework} | {way} | {_number(1e3 * trial.seconds)} | {difference} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


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
            x, y = images(config, network)
            model = make_classifier("cnn", NETWORKS[network][0], 10)
            with tempfile.TemporaryDirectory() as folder:
                jax = None if peer is None else JaxSide(peer, network, model, Path(folder))
                trials[network] = []
                for trial in check(config, model, x, y, frameworks, jax):
                    print(_told(network, trial), flush=True)
                    trials[network].append(trial)
                    if not trial.agrees:
                        return 1
                if jax is not None:
                    jax.give(x, y)
                for batch_size in sorted(set(config.batch_sizes)):
                    measured = measure(config, network, batch_size, model, x, y, fastest(trials[network]), jax)
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
    warnings.filterwarnings(
        "ignore", category=UserWarning
    )  # of Opacus: about hooks, and noise that is not cryptographic
    logging.getLogger("opacus.data_loader").setLevel(logging.ERROR)  # drop_last gives the sampling rate, no more
    try:
        return compare(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {config.out} holds what was measured before, if anything was") from None


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
