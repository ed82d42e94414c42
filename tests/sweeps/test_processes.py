"""Sweeps as processes: workers and whole sweeps killed with SIGKILL, a scheduler of its own, features extracted once."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from scatterdp.errors import UserError
from scatterdp.sweeps.cluster import running_cluster
from scatterdp.sweeps.folder import is_running
from scatterdp.sweeps.follow import follow
from scatterdp.sweeps.record import SweepRecord

LONG = """
command = "baselines"
seeds = [0]
[config]
dataset = "digits"
extractor = "pixels"
input_norm = "none"
accountant = "rdp"
epochs = 60
batch_size = 100
[grid]
noise_multiplier = [3, 4]
"""
LIMIT = 240.0


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Until something holds; fails when the process has ended before."""
    end = time.monotonic() + LIMIT
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended too soon: {process.communicate()}")
        assert time.monotonic() < end
        time.sleep(0.05)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def worker_of(process: subprocess.Popen[str], log: Path) -> psutil.Process:
    """The process that writes a run's log."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if any(Path(file.path) == log for file in child.open_files()):
            return child
    raise AssertionError(f"nobody writes {log}")


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, (out, err)
    return out, err


@pytest.fixture
def outline(tmp_path) -> Path:
    path = tmp_path / "long.toml"
    path.write_text(LONG)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "sweep"


def weights(run_dir: Path) -> bytes:
    return (run_dir / "model.safetensors").read_bytes()


def test_a_worker_killed_in_a_run_costs_nothing_but_time(start, outline, out, tmp_path):
    process = start(str(outline), f"--out={out}", "--workers=2")
    metrics = out / "runs" / "001-3" / "metrics.jsonl"
    wait_for(lambda: lines(metrics) >= 2, process)
    worker_of(process, out / "logs" / "001-3.txt").send_signal(signal.SIGKILL)
    said, _ = ended(process)
    record = SweepRecord.load(out)
    assert [entry.state for entry in record.runs] == ["done", "done"]
    assert "resuming" in (out / "logs" / "001-3.txt").read_text()
    assert "resuming" not in (out / "logs" / "002-4.txt").read_text()
    assert lines(metrics) == 60
    assert "2 runs done, 0 failed" in said
    # The very weights of the run that nobody killed.
    values = json.loads((out / "runs" / "001-3" / "config.json").read_text())
    flags = [
        f"--{name}={values[name]}"
        for name in (
            "dataset",
            "extractor",
            "input_norm",
            "accountant",
            "epochs",
            "batch_size",
            "noise_multiplier",
            "seed",
            "features_dir",
            "device",
        )
    ]
    alone = [sys.executable, "-m", "scatterdp.baselines", *flags, f"--run_dir={tmp_path / 'alone'}"]
    subprocess.run(alone, check=True, capture_output=True, timeout=LIMIT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert weights(tmp_path / "alone") == weights(out / "runs" / "001-3")
    assert len(list((tmp_path / "features").glob("*.h5"))) == 1


@pytest.mark.slow
def test_a_sweep_killed_and_started_again_does_what_is_missing(start, outline, out):
    outline.write_text(LONG.replace("seeds = [0]", "seeds = [0, 1]"))
    process = start(str(outline), f"--out={out}", "--workers=1")
    metrics = out / "runs" / "002-3" / "metrics.jsonl"
    wait_for(lambda: lines(metrics) >= 2, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    finished = out / "runs" / "001-3" / "summary.json"
    before = finished.stat().st_mtime_ns
    assert not SweepRecord.load(out).finished
    follow(out)  # returns, since nobody runs it
    again = start(str(outline), f"--out={out}", "--workers=2")
    wait_for(lambda: is_running(out), again)
    again.send_signal(signal.SIGSTOP)  # or it might end before the next one has begun
    refused = start(str(outline), f"--out={out}")
    _, err = refused.communicate(timeout=LIMIT)
    again.send_signal(signal.SIGCONT)
    assert refused.returncode == 2
    assert re.search(r"error: out=.*another live process runs this sweep", err)
    ended(again)
    assert finished.stat().st_mtime_ns == before
    assert SweepRecord.load(out).count("done") == 4
    assert "resuming" in (out / "logs" / "002-3.txt").read_text()
    assert psutil.wait_procs(workers, timeout=60)[1] == []


@pytest.mark.slow
def test_an_interrupted_sweep_says_how_to_go_on(start, outline, out):
    process = start(str(outline), f"--out={out}", "--workers=1")
    wait_for(lambda: lines(out / "runs" / "001-3" / "metrics.jsonl") >= 2, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    for each in (process.pid, *(worker.pid for worker in workers)):  # as a terminal does
        os.kill(each, signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert "interrupted: the same command starts again, and uses what was finished" in err
    assert "Traceback" not in err
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert {entry.state for entry in SweepRecord.load(out).runs} == {"waiting"}


@pytest.mark.slow
def test_a_run_that_kills_every_worker_fails_alone(start, outline, out):
    process = start(str(outline), f"--out={out}", "--workers=1")
    log = out / "logs" / "001-3.txt"
    killed: set[int] = set()
    while len(killed) < 4:
        wait_for(lambda: log.exists(), process)
        try:
            worker = worker_of(process, log)
        except (AssertionError, psutil.Error):
            time.sleep(0.05)
            continue
        worker.kill()
        killed.add(worker.pid)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    first, second = SweepRecord.load(out).runs
    assert (first.state, second.state) == ("failed", "done")
    assert first.error is not None
    assert "its worker died four times" in first.error


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a ``dask scheduler``, a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host=127.0.0.1",
        f"--port={port}",
        "--no-dashboard",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(answers)
    yield f"tcp://127.0.0.1:{port}"
    process.kill()
    process.wait(timeout=60)


@pytest.mark.slow
def test_a_worker_without_this_package_is_refused(start_worker, scheduler, tmp_path):
    other = tmp_path / "scatterdp"  # one without sweeps
    (other / "sweeps").mkdir(parents=True)
    (other / "__init__.py").touch()
    (other / "sweeps" / "__init__.py").write_text("raise ImportError('no sweeps here')")
    start_worker("--nthreads=1", cwd=tmp_path)
    with (
        pytest.raises(UserError, match=r"worker .* has scatterdp none .*; install the same versions there"),
        running_cluster(scheduler, threads_per_worker=None, device="cpu"),
    ):
        pass


@pytest.fixture
def start_worker(scheduler, tmp_path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            scheduler,
            "--no-nanny",
            "--no-dashboard",
            *arguments,
        ]
        command += [f"--local-directory={tmp_path}"]
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait(timeout=60)


@pytest.mark.slow
def test_a_running_cluster_does_the_work_and_may_lose_a_worker(start, start_worker, scheduler, outline, out):
    first = start_worker("--nthreads=1")
    process = start(str(outline), f"--out={out}", f"--scheduler={scheduler}")
    wait_for(lambda: lines(out / "runs" / "001-3" / "metrics.jsonl") >= 2, process)
    second = start_worker("--nthreads=1")
    first.kill()
    ended(process)
    assert SweepRecord.load(out).count("done") == 2
    assert "resuming" in (out / "logs" / "001-3.txt").read_text()
    assert second.poll() is None  # the cluster is not ours to end


@pytest.mark.slow
def test_a_worker_of_several_threads_is_refused(start_worker, scheduler):
    start_worker("--nthreads=3")
    with (
        pytest.raises(UserError, match=r"has 3 threads.*--nthreads=1"),
        running_cluster(scheduler, threads_per_worker=None, device="cpu"),
    ):
        pass


def test_a_scheduler_that_is_not_there_is_told_within_seconds():
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"scheduler=tcp://127\.0\.0\.1:9: no scheduler answers there; start one"):  # noqa: SIM117
        with running_cluster("tcp://127.0.0.1:9", threads_per_worker=None, device="cpu"):
            pass
    assert time.monotonic() - begin < 20


def test_an_address_that_is_none_is_told():
    with pytest.raises(UserError, match="scheduler=nonsense://x: is no address"):  # noqa: SIM117
        with running_cluster("nonsense://x", threads_per_worker=None, device="cpu"):
            pass
