"""The largest physical batch whose step stays below a memory bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scatterdp.benchmarking.probe import Probe

_MOST = 2**20


@dataclass(frozen=True, kw_only=True)
class Largest:
    """A batch size that fits (0: not even one example; None: unknown), and how it was found, in words."""

    batch_size: int | None
    how: str


def largest_batch(ask: Callable[[int], Probe], bound: int, *, max_seconds: float, first: int = 16) -> Largest:
    """Double from ``first`` until a step does not fit, then bisect to a sixteenth.

    Where steps become slower than ``max_seconds`` before they become too large, the answer is the straight line through the peaks
    of the two largest batches, and says so.

    Args:
        ask: measures a step of this batch size.
        bound: bytes that a step may take beside weights and batch.
        max_seconds: see there.
        first: batch size to begin with.
    """
    peaks: dict[int, int] = {}
    low, high = 0, None
    while high is None or high - low > max(1, low // 16):
        size = (2 * low or first) if high is None else (low + high) // 2
        if size > _MOST:
            return Largest(batch_size=low, how=f"measured: {low} fits, larger ones were not tried")
        answer = ask(size)
        if answer.out_of_memory or (answer.extra_memory or 0) > bound:
            high = size
            continue
        if answer.extra_memory is not None:
            peaks[size] = answer.extra_memory
            low = size
            if answer.seconds is not None and answer.seconds <= max_seconds:
                continue
            reason = f"a step of {size} takes more than {max_seconds:g} s"
        else:
            reason = f"batch {size}: {answer.reason or 'the memory of a step is unknown here'}"
        return _extrapolated(peaks, bound, high, reason)
    return Largest(batch_size=low, how=f"measured: {low or 'none'} fits, {high} does not")


def _extrapolated(peaks: dict[int, int], bound: int, high: int | None, reason: str) -> Largest:
    if len(peaks) < 2:
        return Largest(batch_size=None, how=f"unknown: {reason}")
    *_, smaller, larger = sorted(peaks)
    slope = (peaks[larger] - peaks[smaller]) / (larger - smaller)
    if slope <= 0:
        return Largest(batch_size=None, how=f"unknown, {larger} fits: {reason}")
    size = larger + int((bound - peaks[larger]) / slope)
    size = size if high is None else min(size, high - 1)
    return Largest(
        batch_size=size, how=f"extrapolated from the peaks of {smaller} and {larger}, not measured: {reason}"
    )
