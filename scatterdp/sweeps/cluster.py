"""Workers: processes of this machine, or a ``dask`` cluster that is running already.

Every worker is a process that does one run at a time. Where the machine has CUDA devices, each worker has one to itself, named as a resource (``GPU``), so that a mixed
cluster gives runs on a device to those workers only. The local scheduler listens on 127.0.0.1 without a password, as ``dask`` does: on a machine that is shared with people
who are not trusted, sweep on one of your own.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster

from scatterdp.errors import ConfigError, UserError

GPU = "GPU"
_ANSWER_SECONDS = 8
_WORKER_SECONDS = 20
_START_SECONDS = 120
_LOUD = ("nanny", "worker", "scheduler", "core", "batched", "client", "deploy.spec")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers that are there.

    Args:
        client: to give them work.
        threads: of torch in each; None leaves them.
        resources: that a run asks for.
    """

    client: Client
    threads: int | None
    resources: dict[str, int]

    def count(self) -> int:
        """How many can take a run now. A killed worker is missing until another takes its place."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return sum(
            all(worker["resources"].get(name, 0) >= need for name, need in self.resources.items()) for worker in workers
        )


def default_workers(threads_per_worker: int | None, cuda_devices: int) -> tuple[int, int]:
    """How many workers of how many threads this machine has room for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cuda_devices:
        return cuda_devices, threads_per_worker or max(1, cores // cuda_devices)
    threads = threads_per_worker or 1
    return max(1, cores // threads), threads


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Threads started in the block never take Ctrl-C, nor do the processes that these start, now or later: a mask is inherited. A terminal sends it to everyone."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or the thread that starts it later would lift its mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def local_workers(*, workers: int | None, threads_per_worker: int | None, cuda_devices: int) -> Iterator[Workers]:
    """Processes of this machine; gone when the block ends.

    Args:
        workers: how many; None: one for each CUDA device, else as many as the cores give their threads.
        threads_per_worker: of torch in each; None: one, or an even share of the cores where there are CUDA devices.
        cuda_devices: how many to use, 0 for none.
    """
    usual, threads = default_workers(threads_per_worker, cuda_devices)
    environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}

    def worker(number: int) -> dict[str, Any]:
        options: dict[str, Any] = {
            "nthreads": 1,
            "memory_limit": 0,
            "dashboard": False,
            "silence_logs": logging.CRITICAL,
        }
        if cuda_devices:
            options |= {"resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": str(number % cuda_devices)}}
        return {"cls": Nanny, "options": options}

    # memory_limit=0: dask would pause or kill a run that is merely large.
    with (
        _silenced(),
        dask.config.set(
            {"distributed.nanny.pre-spawn-environ": environment, "distributed.comm.timeouts.connect": _START_SECONDS}
        ),
        ExitStack() as stack,
    ):
        with _interrupts_blocked():
            cluster = stack.enter_context(
                SpecCluster(
                    workers={number: worker(number) for number in range(usual if workers is None else workers)},
                    scheduler={
                        "cls": Scheduler,
                        "options": {
                            "dashboard": False,
                            "dashboard_address": "127.0.0.1:0",
                            "host": "127.0.0.1",
                            "port": 0,
                        },
                    },
                    shutdown_on_close=True,
                )
            )
        client = stack.enter_context(Client(cluster))
        yield Workers(client=client, threads=threads, resources={GPU: 1} if cuda_devices else {})


def _check_versions(client: Client, address: str) -> None:
    """Raise UserError unless scheduler and workers have this scatterdp and this torch: a run would not go on elsewhere."""

    def versions() -> dict[str, str]:  # a function in a function travels by value: the other side may lack this module
        import importlib
        from importlib.metadata import version

        try:
            importlib.import_module("scatterdp.sweeps.work")
        except ImportError as error:
            return {"scatterdp": f"none ({error})"}
        return {name: version(name) for name in ("scatterdp", "torch", "distributed")}

    ours = versions()
    theirs: Any = client.run(versions)
    scheduler: Any = client.run_on_scheduler(versions)
    for name, found in {
        "the scheduler": scheduler,
        **{f"worker {name}": found for name, found in theirs.items()},
    }.items():
        different = [f"{package} {found.get(package)}" for package in ours if found.get(package) != ours[package]]
        if different:
            raise UserError(
                f"scheduler={address}: {name} has {different[0]}, this machine {ours[different[0].split()[0]]}; install the same versions there"
            )


@contextmanager
def _silenced() -> Iterator[None]:
    """A killed worker is replaced, and the sweep's own lines say what came of its run; ``dask``'s pages about it are left out."""
    loggers = [logging.getLogger(name) for name in ("distributed", *(f"distributed.{part}" for part in _LOUD))]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def running_cluster(address: str, *, threads_per_worker: int | None, device: str) -> Iterator[Workers]:
    """The workers of a scheduler that is running; they stay when the block ends. They must see the sweep's folder, the data and the features under the same paths.

    Args:
        address: ``tcp://HOST:PORT``.
        threads_per_worker: of torch in each; None leaves what they were started with.
        device: of the runs; anything but ``cpu`` asks for a ``GPU`` where a worker has that resource.

    Raises:
        UserError: nobody answers within seconds, there is no worker, or one has several threads.
    """
    remedy = "start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads=1`"
    try:
        client = Client(address, timeout=_ANSWER_SECONDS)
    except (OSError, TimeoutError) as error:
        raise UserError(f"scheduler={address}: no scheduler answers there; {remedy}") from error
    except ValueError as error:
        raise ConfigError(f"scheduler={address}: is no address ({error}); expected tcp://HOST:PORT") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_WORKER_SECONDS)
        except TimeoutError as error:
            raise UserError(
                f"scheduler={address}: has no workers; start some with `dask worker {address} --nthreads=1`"
            ) from error
        _check_versions(client, address)
        found = client.scheduler_info(n_workers=-1)["workers"]
        for name, worker in found.items():
            if worker["nthreads"] != 1:
                raise UserError(
                    f"scheduler={address}: worker {name} has {worker['nthreads']} threads, and a run needs a process; start it with "
                    "--nthreads=1, and several with --nworkers"
                )
        gpus = device != "cpu" and any(worker["resources"].get(GPU) for worker in found.values())
        yield Workers(client=client, threads=threads_per_worker, resources={GPU: 1} if gpus else {})
