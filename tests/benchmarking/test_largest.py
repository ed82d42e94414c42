"""The search for the largest batch, on made-up steps."""

from __future__ import annotations

import pytest

from scatterdp.benchmarking import Largest, Probe, largest_batch


def steps(each: int, *, fixed: int = 0, refused: int | None = None, slow: int | None = None):
    """A step takes ``fixed + each·b`` bytes, is refused above ``refused`` examples and slow above ``slow``."""

    def ask(size: int) -> Probe:
        if refused is not None and size > refused:
            return Probe(reason="needs more", out_of_memory=True)
        return Probe(extra_memory=fixed + each * size, seconds=9.0 if slow is not None and size > slow else 0.1)

    return ask


@pytest.mark.parametrize("fits", [1, 2, 5, 15, 16, 17, 31, 100, 1000, 12345])
@pytest.mark.parametrize("by", ["peak", "refusal"])
def test_within_a_sixteenth(fits, by):
    ask = steps(10) if by == "peak" else steps(0, refused=fits)
    found = largest_batch(ask, 10 * fits, max_seconds=1.0)
    assert found.batch_size is not None
    assert found.batch_size <= fits <= max(found.batch_size * 17 / 16, found.batch_size)
    assert found.how.startswith(f"measured: {found.batch_size} fits, ")


def test_not_even_one():
    found = largest_batch(steps(10), 9, max_seconds=1.0)
    assert found == Largest(batch_size=0, how="measured: none fits, 1 does not")


def test_a_slow_step_ends_in_a_straight_line_that_says_so():
    found = largest_batch(steps(10, fixed=100, slow=60), 5100, max_seconds=1.0)
    assert found.batch_size == 500
    assert found.how == ("extrapolated from the peaks of 32 and 64, not measured: a step of 64 takes more than 1 s")


def test_the_line_never_passes_what_did_not_fit():
    peaks = {16: 100, 32: 201, 24: 101}  # the larger half as slow
    ask = lambda size: Probe(extra_memory=peaks[size], seconds=9.0 if size == 24 else 0.1)  # noqa: E731
    assert largest_batch(ask, 200, max_seconds=1.0).batch_size == 31


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        (Probe(reason="UserError: no rule"), "unknown: batch 16: UserError: no rule"),
        (Probe(seconds=0.1), "unknown: batch 16: the memory of a step is unknown here"),
        (Probe(seconds=9.0, extra_memory=5), "unknown: a step of 16 takes more than 1 s"),
    ],
)
def test_unknown_with_its_reason(answer, how):
    assert largest_batch(lambda _: answer, 10, max_seconds=1.0) == Largest(batch_size=None, how=how)


def test_it_ends_where_nothing_is_ever_too_large():
    found = largest_batch(steps(0), 10, max_seconds=1.0)
    assert found == Largest(batch_size=2**20, how=f"measured: {2**20} fits, larger ones were not tried")
