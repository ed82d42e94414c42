import itertools
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import ADJACENCY, epsilon_of
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import (
    BatchSelection,
    FullBatch,
    PoissonSelection,
    ShuffledBatches,
    make_selection,
)

KEY = RandomKey.from_seed(0)
N, BATCH, STEPS = 300, 60, 3000


class FixedNumbers(RandomKey):
    """A key of which each row gets a given 64-bit number: its first byte, and the other seven where that is ``undecided``."""

    def __init__(self, numbers: list[int], undecided: int) -> None:
        super().__init__(bytes(32))
        given = np.array(numbers, dtype=np.uint64)
        object.__setattr__(self, "first", (given >> np.uint64(56)).astype(np.uint8))
        object.__setattr__(self, "rest", given[vars(self)["first"] == undecided] << np.uint64(8))

    def words(self, purpose: str, *, counter: int, count: int) -> np.ndarray:
        if purpose.endswith("other bytes"):
            assert count == len(vars(self)["rest"])
            return vars(self)["rest"]
        padded = np.zeros(8 * count, np.uint8)
        padded[: len(vars(self)["first"])] = vars(self)["first"]
        assert 0 <= len(padded) - len(vars(self)["first"]) < 8
        return padded.view("<u8")


def inclusions(selection: BatchSelection, steps: int) -> np.ndarray:
    """``(steps, N)``: whether a step takes an example."""
    taken = np.zeros((steps, selection.num_examples), dtype=bool)
    for step in range(steps):
        taken[step, selection.indices(step, KEY)] = True
    return taken


@pytest.fixture(scope="module")
def poisson() -> np.ndarray:
    return inclusions(PoissonSelection(num_examples=N, batch_size=BATCH, steps=STEPS), STEPS)


def binomial_p_value(taken: np.ndarray, q: float) -> float:
    return float(stats.binomtest(int(taken.sum()), taken.size, q).pvalue)  # pyright: ignore[reportArgumentType]


def sizes_p_value(taken: np.ndarray, q: float) -> float:
    """Two-sided χ² test that batch sizes have the binomial variance N q (1-q)."""
    sizes = taken.sum(1)
    statistic = float(np.square(sizes - sizes.mean()).sum() / (taken.shape[1] * q * (1 - q)))
    chi2 = stats.chi2(len(sizes) - 1)
    return 2 * min(float(chi2.cdf(statistic)), float(chi2.sf(statistic)))


def test_poisson_takes_each_example_with_probability_q(poisson):
    q = BATCH / N
    assert binomial_p_value(poisson, q) > 1e-4
    # The total at this sample size tells q from a rate 2 % off.
    assert binomial_p_value(poisson, 1.02 * q) < 1e-4
    assert binomial_p_value(poisson, 0.98 * q) < 1e-4
    # Each example by itself: 300 p values are uniform; one example taken a fifth less often would show.
    p_values = np.array([binomial_p_value(column, q) for column in poisson.T])
    assert p_values.min() > 1e-4 / N * 10
    favoured = poisson[:, 0] & (np.arange(STEPS) % 5 != 0)
    assert binomial_p_value(favoured, q) < 1e-4 / N


def test_poisson_batch_sizes_are_binomial(poisson):
    q = BATCH / N
    assert sizes_p_value(poisson, q) > 1e-4
    sizes = poisson.sum(1)
    edges = stats.binom(N, q).ppf([0.1, 0.3, 0.5, 0.7, 0.9]).astype(int)
    observed = np.bincount(np.searchsorted(edges, sizes), minlength=6)
    expected = np.diff(np.concatenate([[0], stats.binom(N, q).cdf(edges), [1]])) * STEPS
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_fixed_batches_are_not_taken_for_binomial_ones():
    shuffled = inclusions(ShuffledBatches(num_examples=N, batch_size=BATCH, steps=STEPS), 500)
    assert sizes_p_value(shuffled, BATCH / N) < 1e-10
    other_rate = inclusions(PoissonSelection(num_examples=N, batch_size=120, steps=STEPS), 1000)
    assert sizes_p_value(other_rate, BATCH / N) < 1e-4


def dependence_p_value(first: np.ndarray, second: np.ndarray) -> float:
    table = np.array(
        [[np.sum(first & second), np.sum(first & ~second)], [np.sum(~first & second), np.sum(~first & ~second)]]
    )
    return stats.chi2_contingency(table, correction=False).pvalue  # pyright: ignore[reportAttributeAccessIssue]


def test_poisson_steps_are_independent(poisson):
    for lag in (1, 2, 5, 50):
        assert dependence_p_value(poisson[:-lag].ravel(), poisson[lag:].ravel()) > 1e-4
    # Without replacement within an epoch, consecutive steps are dependent, and the test sees it.
    shuffled = inclusions(ShuffledBatches(num_examples=N, batch_size=BATCH, steps=STEPS), 500)
    assert dependence_p_value(shuffled[:-1].ravel(), shuffled[1:].ravel()) < 1e-10


def test_poisson_examples_are_independent(poisson):
    for lag in (1, 2, 7, 64):
        assert dependence_p_value(poisson[:, :-lag].ravel(), poisson[:, lag:].ravel()) > 1e-4
    # All pairs at once: off-diagonal correlations are N(0, 1 / STEPS).
    correlations = np.corrcoef(poisson.T)[np.triu_indices(N, 1)] * np.sqrt(STEPS)
    assert stats.kstest(correlations, "norm").pvalue > 1e-4
    pairs = np.repeat(poisson[:, :150], 2, axis=1)
    assert dependence_p_value(pairs[:, :-1].ravel(), pairs[:, 1:].ravel()) < 1e-10


def test_poisson_indices_are_row_numbers():
    selection = PoissonSelection(num_examples=N, batch_size=BATCH, steps=5)
    rows = selection.indices(0, KEY)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < N
    assert (rows == selection.indices(0, KEY)).all()
    assert set(rows) != set(selection.indices(1, KEY))
    assert set(rows) != set(selection.indices(0, RandomKey.from_seed(1)))


def test_a_poisson_batch_may_be_empty():
    selection = PoissonSelection(num_examples=5, batch_size=1, steps=100)
    sizes = [len(selection.indices(step, KEY)) for step in range(100)]
    assert 0 in sizes
    assert max(sizes) > 1


@given(n=st.integers(2, 10**9), data=st.data())
def test_the_accounted_rate_is_the_samplers_threshold(n, data):
    batch = data.draw(st.integers(1, n - 1))
    selection = PoissonSelection(num_examples=n, batch_size=batch, steps=3)
    event = selection.event(2.0)
    assert isinstance(event, dp_accounting.SelfComposedDpEvent)
    assert isinstance(event.event, dp_accounting.PoissonSampledDpEvent)
    accounted = Fraction(event.event.sampling_probability)
    assert event.event.sampling_probability == selection.sample_rate
    # What the sampler does: of all 2⁶⁴ words it takes those below a threshold, found here by asking it.
    low, high = 0, 2**64
    while high - low > 1:
        middle = (low + high) // 2
        taken = one_row_is_taken(selection, middle - 1)
        low, high = (middle, high) if taken else (low, middle)
    sampled = Fraction(low, 2**64)
    assert Fraction(batch, n) - Fraction(1, 2**64) < sampled <= Fraction(batch, n)
    # The accounted rate is its nearest double.
    assert abs(accounted - Fraction(batch, n)) <= accounted / 2**53


def one_row_is_taken(selection: BatchSelection, number: int) -> bool:
    class OneNumber(RandomKey):
        def words(self, purpose: str, *, counter: int, count: int) -> np.ndarray:
            if purpose.endswith("other bytes"):
                return np.full(count, (number << 8) % 2**64, dtype=np.uint64)
            return np.full(8 * count, number >> 56, dtype=np.uint8).view("<u8")

    return len(selection.indices(0, OneNumber(bytes(32)), first=0, stop=1)) == 1


def test_numbers_at_the_threshold():
    """A quarter is the first byte alone; a third is decided by the other seven where the first is 0x55."""
    quarter = PoissonSelection(num_examples=4, batch_size=1, steps=1)
    assert quarter.indices(0, FixedNumbers([0, 2**62 - 1, 2**62, 2**64 - 1], 0x40)).tolist() == [0, 1]
    third = PoissonSelection(num_examples=6, batch_size=2, steps=1)
    at = 2**64 // 3
    numbers = [at, at - 1, 0x54 << 56 | 2**56 - 1, 0x55 << 56, 0x56 << 56, 0x55 << 56 | 2**56 - 1]
    assert third.indices(0, FixedNumbers(numbers, 0x55)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("rows", [1, 7, 65_536, 65_537, 200_003])
def test_parts_of_a_batch_are_drawn_alone(rows):
    selection = PoissonSelection(num_examples=rows, batch_size=max(1, rows // 3), steps=3)
    whole = selection.indices(1, KEY)
    bounds = sorted({0, 1, rows // 3, min(rows, 65_535), min(rows, 65_536), rows})
    parts = [selection.indices(1, KEY, first=a, stop=b) for a, b in itertools.pairwise(bounds)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert len(selection.indices(1, KEY, first=rows, stop=rows)) == 0
    for first, stop in ((-1, 1), (1, 0), (0, rows + 1)):
        with pytest.raises(ValueError, match=r"^rows "):
            selection.indices(0, KEY, first=first, stop=stop)


def test_a_part_of_a_shuffled_or_full_batch():
    for selection in (
        ShuffledBatches(num_examples=10, batch_size=5, steps=2),
        FullBatch(num_examples=10, batch_size=10, steps=2),
    ):
        whole, part = selection.indices(1, KEY), selection.indices(1, KEY, first=3, stop=7)
        assert part.tolist() == [row for row in whole if 3 <= row < 7]


def test_blocks_of_rows_and_steps_have_numbers_of_their_own():
    """Two blocks' worth of rows: no block repeats another, of this step or the next, and every block has the rate."""
    selection = PoissonSelection(num_examples=3 * 65_536, batch_size=3 * 16_384, steps=2)
    blocks = [
        taken
        for step in range(2)
        for taken in np.bincount(selection.indices(step, KEY), minlength=3 * 65_536).reshape(3, -1).astype(bool)
    ]
    for number, taken in enumerate(blocks):
        assert binomial_p_value(taken, 0.25) > 1e-4
        for other in blocks[:number]:
            assert dependence_p_value(taken, other) > 1e-4
    assert dependence_p_value(blocks[0], blocks[0]) < 1e-10


@pytest.mark.parametrize("batch", [2, 100, 2_000])
def test_small_rates_are_decided_by_the_other_bytes(batch):
    """Rates of less than 1/256, where the first byte never says yes."""
    n, steps = 100_000, 400
    selection = PoissonSelection(num_examples=n, batch_size=batch, steps=steps)
    sizes = np.array([len(selection.indices(step, KEY)) for step in range(steps)])
    total, q = int(sizes.sum()), batch / n
    assert stats.binomtest(total, n * steps, q).pvalue > 1e-4  # pyright: ignore[reportArgumentType]
    assert 0.7 < sizes.var() / (batch * (1 - q)) < 1.4


def test_poisson_event():
    event = PoissonSelection(num_examples=50_000, batch_size=8192, steps=360).event(5.67)
    step = dp_accounting.PoissonSampledDpEvent(8192 / 50_000, dp_accounting.GaussianDpEvent(5.67))
    assert event == dp_accounting.SelfComposedDpEvent(step, 360)


def test_a_full_batch_is_the_plain_gaussian(exact_gaussian_epsilon):
    selection = FullBatch(num_examples=100, batch_size=100, steps=7)
    assert selection.indices(3, KEY).tolist() == list(range(100))
    assert selection.sample_rate == 1
    event = selection.event(9.0)
    assert event == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(9.0), 7)
    assert epsilon_of(event, delta=1e-5) == pytest.approx(exact_gaussian_epsilon([9.0] * 7, 1e-5), abs=1e-5)


def test_a_full_batch_needs_all_examples():
    with pytest.raises(ConfigError, match="batch_size=99: a full batch has all 100 training examples"):
        FullBatch(num_examples=100, batch_size=99, steps=1)


def test_poisson_of_all_examples_takes_all():
    selection = PoissonSelection(num_examples=10, batch_size=10, steps=1)
    assert selection.indices(0, KEY).tolist() == list(range(10))


@given(n=st.integers(1, 60), data=st.data())
def test_shuffled_batches_take_an_example_at_most_once_an_epoch(n, data):
    batch = data.draw(st.integers(1, n))
    selection = ShuffledBatches(num_examples=n, batch_size=batch, steps=1000)
    for epoch in range(2):
        first = epoch * (n // batch)
        rows = [selection.indices(first + step, KEY) for step in range(n // batch)]
        assert all(len(part) == batch for part in rows)
        taken = np.concatenate(rows)
        assert len(np.unique(taken)) == len(taken) == n // batch * batch
        assert 0 <= taken.min() <= taken.max() < n


def test_shuffled_epochs_have_orders_of_their_own():
    selection = ShuffledBatches(num_examples=100, batch_size=50, steps=4)
    batches = [selection.indices(step, KEY) for step in range(4)]
    assert set(batches[0]) | set(batches[1]) == set(range(100))
    assert set(batches[0]) not in (set(batches[2]), set(batches[3]))
    assert batches[0].tolist() != sorted(batches[0])
    assert (batches[0] == selection.indices(0, KEY)).all()


@pytest.mark.parametrize(
    ("n", "batch", "steps", "epochs"),
    [(100, 20, 10, 2), (100, 20, 11, 3), (100, 30, 3, 1), (100, 30, 4, 2), (7, 7, 3, 3)],
)
def test_a_shuffled_epoch_is_one_gaussian(n, batch, steps, epochs):
    selection = ShuffledBatches(num_examples=n, batch_size=batch, steps=steps)
    assert selection.event(4.0) == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(4.0), epochs)
    # No example is in more batches than there are Gaussians.
    counts = np.bincount(np.concatenate([selection.indices(step, KEY) for step in range(steps)]), minlength=n)
    assert counts.max() <= epochs


def test_shuffling_is_never_accounted_as_poisson():
    shuffled = make_selection("shuffle", num_examples=1000, batch_size=100, steps=50)
    assert "Poisson" not in repr(shuffled.event(4.0))
    poisson = make_selection("poisson", num_examples=1000, batch_size=100, steps=50)
    assert "PoissonSampled" in repr(poisson.event(4.0))
    assert epsilon_of(shuffled.event(4.0), delta=1e-5) > 2 * epsilon_of(poisson.event(4.0), delta=1e-5)


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_a_batch_of_all_is_a_full_batch(sampling):
    selection = make_selection(sampling, num_examples=40, batch_size=40, steps=3)
    assert isinstance(selection, FullBatch)
    assert selection.describe()["kind"] == "full"


def test_names_and_descriptions():
    kinds = {name: make_selection(name, num_examples=40, batch_size=10, steps=3) for name in ("poisson", "shuffle")}
    assert isinstance(kinds["poisson"], PoissonSelection)
    assert isinstance(kinds["shuffle"], ShuffledBatches)
    assert kinds["poisson"].describe() == {
        "kind": "poisson",
        "num_examples": 40,
        "expected_batch_size": 10,
        "sample_rate": 0.25,
        "steps": 3,
        "adjacency": ADJACENCY,
    }
    assert "add or remove one example" in kinds["poisson"].adjacency
    shuffled = kinds["shuffle"].describe()["adjacency"]
    assert "replaced by nothing (zero-out)" in shuffled
    assert "add or remove" not in shuffled
    assert FullBatch(num_examples=4, batch_size=4, steps=1).adjacency == ADJACENCY


@pytest.mark.parametrize("kind", [PoissonSelection, ShuffledBatches, FullBatch])
@pytest.mark.parametrize("batch", [0, -1, 11])
def test_a_batch_size_out_of_range(kind, batch):
    with pytest.raises(ConfigError, match=f"batch_size={batch}: expected 1 to 10, the number of training examples"):
        kind(num_examples=10, batch_size=batch, steps=1)


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
@pytest.mark.parametrize("batch", [0, 11])
def test_a_batch_size_out_of_range_by_name(sampling, batch):
    with pytest.raises(ConfigError, match=f"batch_size={batch}"):
        make_selection(sampling, num_examples=10, batch_size=batch, steps=1)


@pytest.mark.parametrize("steps", [0, -3])
def test_steps_out_of_range(steps):
    with pytest.raises(ConfigError, match=f"steps={steps}: expected at least 1"):
        make_selection("poisson", num_examples=10, batch_size=1, steps=steps)


def test_no_examples():
    with pytest.raises(ConfigError, match="batch_size=0: expected 1 to 0"):
        make_selection("poisson", num_examples=0, batch_size=0, steps=1)


def test_an_unknown_sampling():
    with pytest.raises(ConfigError, match="sampling='cyclic': expected one of poisson, shuffle"):
        make_selection("cyclic", num_examples=10, batch_size=1, steps=1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("step", [-1, 5, 6])
@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_no_step_is_drawn_that_is_not_counted(sampling, step):
    with pytest.raises(ValueError, match=f"^step={step}: the event counts steps 0 to 4$"):
        make_selection(sampling, num_examples=20, batch_size=4, steps=5).indices(step, RandomKey.from_seed(0))
