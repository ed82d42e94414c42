"""One step in a process of its own: its peak memory, and how long it took.

The peak of a process never falls, so that each figure needs a new one. On a CPU it is the largest resident size during the step minus
the one before it (Linux: ``/proc/self``); on CUDA the most that tensors took minus what they took before. The batch itself and the
weights are there before and do not count. A step on two examples goes first: what libraries load on first use does not count either.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from scatterdp.benchmarking.contenders import CONTENDERS
from scatterdp.benchmarking.networks import make_batch, make_network
from scatterdp.sizes import report_field
from scatterdp.training.device import resolve_device

_STATUS = Path("/proc/self/status")
_START_SECONDS = 120.0
_PATIENCE = 5
#: How libraries say that they got no memory; the last is oneDNN's.
_NO_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "could not create a ")


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which step is asked for.

    Args:
        network, contender: by name.
        batch_size: examples.
        max_grad_norm: of the contenders that clip.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of torch.
        max_seconds: a step that is not done after five times as long is given up.
        max_memory: bytes that the step may take before it is refused more, or None (CPU: Linux only).
    """

    network: str
    contender: str
    batch_size: int
    max_grad_norm: float
    device: str
    threads: int
    max_seconds: float
    max_memory: int | None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one step took.

    Args:
        seconds: of the one step, or None where there was none.
        extra_memory: its peak in bytes, or None where there is no way to know.
        reason: why there is no answer, or None.
        out_of_memory: the reason is memory.
    """

    seconds: float | None = None
    extra_memory: int | None = None
    reason: str | None = None
    out_of_memory: bool = False


def probe(question: Question) -> Probe:
    """Ask a new process; whatever goes wrong there is the answer's reason."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload([__name__, "opacus"])
    if question.device != "cpu":
        torch.cuda.empty_cache()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(question, sender), daemon=True)
    process.start()
    sender.close()
    patience = _PATIENCE * question.max_seconds
    try:
        if not receiver.poll(_START_SECONDS + patience):
            return Probe(reason=f"a step on two examples was not done after {_START_SECONDS + patience:g} s")
        first = receiver.recv()
        if first is not None:
            return first
        if not receiver.poll(patience):
            return Probe(reason=f"a step was not done after {patience:g} s")
        return receiver.recv()
    except EOFError:
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        reason = "killed by the system: out of memory" if killed else f"its process ended with {process.exitcode}"
        return Probe(reason=reason, out_of_memory=killed)
    finally:
        receiver.close()
        process.kill()
        process.join()


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _answer(question: Question, sender: Connection) -> None:
    """Send None once all is warm, then the answer; or the answer alone when it comes early."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the asking process, which ends this one
    try:
        sender.send(_measure(question, lambda: sender.send(None)))
    except Exception as error:  # of three libraries and four networks: what is raised is what is reported
        text = " ".join(str(error).split())
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in text for words in _NO_MEMORY)
        if short and question.max_memory is not None:
            text = f"needs more than {question.max_memory / 1e6:.0f} MB"
        sender.send(Probe(reason=text if short else f"{type(error).__name__}: {text[:200]}", out_of_memory=short))


def _measure(question: Question, warm: Callable[[], None]) -> Probe:
    torch.set_num_threads(question.threads)
    device = resolve_device(question.device)
    model = make_network(question.network, device)
    contender = CONTENDERS[question.contender]
    contender.prepare(model, *make_batch(question.network, 2, device), question.max_grad_norm)()
    step = contender.prepare(model, *make_batch(question.network, question.batch_size, device), question.max_grad_norm)
    wait(device)
    warm()
    peak_since = _watch_cuda(device, question.max_memory) if device.type == "cuda" else _watch_cpu(question.max_memory)
    begin = time.perf_counter()
    step()
    wait(device)
    return Probe(seconds=time.perf_counter() - begin, extra_memory=peak_since())


def _watch_cuda(device: torch.device, max_memory: int | None) -> Callable[[], int | None]:
    index = torch.cuda.current_device() if device.index is None else device.index
    before = torch.cuda.memory_allocated(device)
    if max_memory is not None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (before + max_memory) / total), index)
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: torch.cuda.max_memory_allocated(device) - before


def _watch_cpu(max_memory: int | None) -> Callable[[], int | None]:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what the first step has freed goes back, or the second would seem to need less
    before, taken = report_field(_STATUS, "VmRSS"), report_field(_STATUS, "VmData")
    if before is None or taken is None:
        return lambda: None
    if max_memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (taken + max_memory, hard))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def peak_since() -> int | None:
        peak = report_field(_STATUS, "VmHWM")
        return None if peak is None else max(0, peak - before)

    return peak_since
