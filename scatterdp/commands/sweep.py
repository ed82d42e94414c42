"""``python -m scatterdp sweep OUTLINE.toml``: many runs of one command, shared out among processes or machines, and their table.

    python -m scatterdp sweep experiments/opacus_baseline.toml --dry_run       # the runs, their noise, and how long it would take
    python -m scatterdp sweep experiments/opacus_baseline_smoke.toml           # a minute on the digits, no download
    python -m scatterdp sweep experiments/cifar10_linear.toml --random=10      # a random number of runs, whose best costs as much as a few

The same command goes on with a sweep that was stopped: it does what is missing, and tries runs again that had failed. The exit code is 1 when runs have failed.
``scatterdp.sweeps`` says what an outline is and what the sweep's folder holds.

On several machines, with the folder, data and features on a file system that all of them see: `dask scheduler` on one, `dask worker tcp://HOST:8786 --nthreads=1
--nworkers=CORES` on each (with `--resources GPU=1` for those that have a CUDA device), then `--scheduler=tcp://HOST:8786`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import tyro

from scatterdp.errors import ConfigError
from scatterdp.sweeps.folder import SweepFolder
from scatterdp.sweeps.outline import read_outline, told
from scatterdp.sweeps.plans import PlannedRun
from scatterdp.sweeps.sweep import Places, Sweep, distinct_budgets

_MOST_FAILED = 5  # that are told one by one


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Run an outline: every combination of its values, or a random number of them."""

    outline: tyro.conf.Positional[Path]
    """A .toml file: command, [config], [grid], [zip], seeds, validation; see scatterdp.sweeps."""
    out: Path | None = None
    """The sweep's folder. None: runs/<outline's name>."""
    dry_run: bool = False
    """Print the runs, their noise multipliers and an estimate of the time; run nothing but a probe on made-up images."""
    workers: int | None = None
    """Processes on this machine. None: as many as it has cores for, or one for each CUDA device."""
    threads_per_worker: int | None = None
    """Threads of torch in each process. None: one (on CUDA an even share of the cores)."""
    scheduler: str | None = None
    """tcp://HOST:PORT of a dask scheduler that is running, in place of processes on this machine."""
    random: float | None = None
    """K: a random number of runs of mean K, each a combination drawn at random. The best alone may then be published at about the ε of a few runs, if the number
    stays secret: the folder best holds it, with its certificate."""
    data_dir: Path | None = None
    """Where data sets are looked for and kept. None: the outline's."""
    features_dir: Path | None = None
    """Where extracted features are cached. None: the outline's."""
    device: str | None = None
    """auto, cpu, cuda or cuda:N. None: the outline's."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: expected a whole number ≥ 1")
        if self.scheduler is not None and self.workers is not None:
            raise ConfigError(
                f"workers={self.workers} beside scheduler={self.scheduler}: a running cluster has its own workers, leave workers out"
            )


def sweep(config: SweepConfig) -> int:
    """Run the command.

    Returns:
        0, or 1 when runs have failed.

    Raises:
        UserError: see the message.
    """
    outline = read_outline(config.outline)
    folder = SweepFolder(config.out or Path("runs") / outline.name)
    places = Places(data_dir=config.data_dir, features_dir=config.features_dir, device=config.device)
    prepared = Sweep(
        config.outline.read_text(encoding="utf-8"), name=outline.name, places=places, random_mean=config.random
    )
    _check_devices(config, prepared)
    if config.dry_run:
        _dry_run(config, prepared)
        return 0
    from scatterdp.sweeps.execution import execute
    from scatterdp.sweeps.table import best_in_words

    if config.random is not None:
        print(
            "the number of runs is a secret: whoever sees this output, the folder or how long it takes learns it, and the bound for the published best "
            "does not hold against them"
        )
    record = execute(prepared, folder, _workers(config, prepared))
    failed = record.count("failed")
    done = record.count("done")
    print(f"{done} run{'s' * (done != 1)} done, {failed} failed")
    for entry in [entry for entry in record.runs if entry.error][:_MOST_FAILED]:
        print(f"failed: {told(entry.changes) or entry.name}: {entry.error}")
    if failed > _MOST_FAILED:
        print(f"… and {failed - _MOST_FAILED} more: results.md has them all")
    for line in best_in_words(record):
        print(f"best by {record.score.replace('_', ' ')}: {line}")
    print(record.selection["statement"])
    print(f"sweep: {folder.path}")
    if config.random is not None and done:
        print(f"may be published, and nothing else: {folder.path / 'best'}")
    if config.random is not None and failed:
        print("a random search that has finished tries nothing again: for another, give a new --out; it spends anew")
    return 1 if failed else 0


def _workers(config: SweepConfig, prepared: Sweep) -> AbstractContextManager:
    from scatterdp.sweeps.cluster import local_workers, running_cluster  # dask takes a second to import

    device = config.device or prepared.outline.config.get("device", "auto")
    if config.scheduler is not None:
        return running_cluster(config.scheduler, threads_per_worker=config.threads_per_worker, device=device)
    return local_workers(
        workers=config.workers, threads_per_worker=config.threads_per_worker, cuda_devices=_cuda_devices(device)
    )


def _check_devices(config: SweepConfig, prepared: Sweep) -> None:
    """Refuse a device that this machine does not have, before every run fails by it. Of a running cluster only its workers know."""
    if config.scheduler is not None:
        return
    from scatterdp.training.device import resolve_device

    outline = prepared.outline
    named = [config.device] if config.device else [outline.config_of(changes).device for changes in outline.runs()]
    for device in dict.fromkeys(named):
        resolve_device(device)


def _cuda_devices(device: str) -> int:
    """How many devices local workers may use."""
    import torch

    return 0 if device == "cpu" else torch.cuda.device_count()


def _dry_run(config: SweepConfig, prepared: Sweep) -> None:
    changes = prepared.outline.runs()
    planned = prepared.candidates()
    print(
        f"{prepared.outline.name}: {len(planned)} runs of scatterdp.{prepared.outline.command} on {prepared.dataset.name}"
    )
    width = max(len(told(one)) for one in changes)
    print(f"{'':>4}  {'run':<{width}}  {'steps':>7}  {'sample rate':>11}  {'σ':>9}  {'ε':>7}")
    for number, (one, run) in enumerate(zip(changes, planned, strict=True), 1):
        print(f"{number:>4}  {told(one):<{width}}  {_plan_in_words(run)}")
    print(f"{distinct_budgets(planned)} different budgets")
    if prepared.trials is not None:
        print(f"--random={config.random:g}: a number of these, drawn at random, whose mean is {config.random:g}")
    runnable = [run for run in planned if run.plan is not None]
    if not runnable:
        return
    cost = prepared.cost(runnable, planned)
    print(f"if all of them run: {cost['statement']}")
    _print_time(config, prepared, runnable)


def _plan_in_words(run: PlannedRun) -> str:
    if run.plan is None:
        return f"fails: {run.error}"
    if run.config.optim == "LR":
        return "NOT PRIVATE: logistic regression"
    asked = run.config.target_epsilon
    epsilon = f"{run.plan.epsilon():.3f}" if run.config.noise_multiplier is not None else f"≤ {asked or 3:g}"
    return f"{run.plan.steps:>7}  {run.plan.selection().sample_rate:>11.4g}  {run.plan.sigma:>9.4f}  {epsilon:>7}"


def _print_time(config: SweepConfig, prepared: Sweep, runnable: Sequence[PlannedRun]) -> None:
    from scatterdp.sweeps.cluster import default_workers
    from scatterdp.sweeps.probe import probe

    device = config.device or prepared.outline.config.get("device", "auto")
    usual, threads = default_workers(config.threads_per_worker, _cuda_devices(device))
    workers = config.workers or usual
    import torch

    torch.set_num_threads(threads)
    print("a probe on made-up images …", flush=True)
    dataset = prepared.dataset
    pace = probe(runnable[0], dataset)
    plans = [run.plan for run in runnable if run.plan is not None]
    images = len(dataset.x_train) + len(dataset.x_test)
    count = len(plans) if config.random is None else config.random
    seconds = pace.seconds(plans, images, workers) * count / len(plans)
    print(
        f"about {_duration(seconds)} on {workers} workers of this machine with {threads} threads each "
        f"({1e3 * pace.seconds_per_example:.3g} ms an example and step; features {_duration(pace.seconds_per_image * images)}, once)"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def run(argv: list[str]) -> int:
    """Run ``sweep`` with its arguments.

    Raises:
        UserError: see the message.
    """
    return sweep(tyro.cli(SweepConfig, prog="scatterdp sweep", args=argv, use_underscores=True, description=__doc__))
