"""What the tests of engines share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile


def _most_bytes(step: Callable[[], object]) -> int:
    """The most that tensors took at one time, by torch's own book of what it gave and took back."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    assert watched.profiler is not None
    assert watched.profiler.kineto_results is not None
    events: list[Any] = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.fixture
def most_bytes() -> Callable[[Callable[[], object]], int]:
    return _most_bytes
