import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from scatterdp.privacy.noise import bound_to_sums, gaussian_noise, noisy_count, standard_normal
from scatterdp.privacy.randomness import RandomKey

KEY = RandomKey.from_seed(0)


def draw(
    shape: tuple[int, ...], *, sigma: float = 1.0, sensitivity: float = 1.0, key: RandomKey = KEY, purpose: str = "test",
    counter: int = 0, dtype: torch.dtype = torch.float32,
) -> torch.Tensor:  # fmt: skip
    return gaussian_noise(
        shape, noise_multiplier=sigma, sensitivity=sensitivity, key=key, purpose=purpose, counter=counter, dtype=dtype
    )


class FixedWords(RandomKey):
    """A key whose words are given."""

    def __init__(self, words: Sequence[int] | np.ndarray) -> None:
        super().__init__(bytes(32))
        object.__setattr__(self, "given", np.array(words, dtype=np.uint64))

    def words(self, purpose: str, *, counter: int, count: int) -> np.ndarray:
        return vars(self)["given"][:count]


@pytest.mark.parametrize(("sigma", "sensitivity"), [(1.0, 1.0), (5.67, 0.1), (8.0, 3.5), (0.05, 1000.0)])
def test_the_deviation_is_the_multiplier_times_the_sensitivity(sigma, sensitivity, looks_standard_normal):
    # Enough numbers to tell the right deviation from two thirds and from one and a half of it, by the same test.
    for factor in (1.0, 2 / 3, 1.5):
        sample = draw((500,), sigma=sigma * factor, sensitivity=sensitivity, counter=1)
        assert looks_standard_normal(sample.numpy() / (sigma * sensitivity)) == (factor == 1.0)


@pytest.mark.parametrize(("sigma", "sensitivity"), [(5.67, 0.1), (0.05, 1000.0), (3.0, 1e-6)])
def test_the_deviation_is_a_factor(sigma, sensitivity):
    unit, scaled = (
        draw((50,), dtype=torch.float64),
        draw((50,), sigma=sigma, sensitivity=sensitivity, dtype=torch.float64),
    )
    torch.testing.assert_close(scaled, unit * sigma * sensitivity, rtol=1e-12, atol=0)


def test_the_distribution_is_normal_to_the_tails(looks_standard_normal):
    sample = draw((400_000,), dtype=torch.float64).numpy()
    assert looks_standard_normal(sample)
    assert abs(stats.skew(sample)) < 4 * math.sqrt(6 / len(sample))
    assert abs(stats.kurtosis(sample)) < 4 * math.sqrt(24 / len(sample))
    for threshold in (2.0, 3.0, 4.0):
        for tail in (sample > threshold, sample < -threshold):
            assert stats.binomtest(int(tail.sum()), len(sample), float(stats.norm.sf(threshold))).pvalue > 1e-4
    # The same test refuses what differs in shape alone.
    other = np.random.default_rng(0).laplace(scale=math.sqrt(0.5), size=400_000)
    assert not looks_standard_normal(other)


def test_a_slightly_wrong_deviation_is_seen_in_many_numbers(looks_standard_normal):
    sample = draw((400_000,), dtype=torch.float64).numpy()
    assert not looks_standard_normal(0.99 * sample)
    assert not looks_standard_normal(1.01 * sample)
    assert not looks_standard_normal(sample + 0.02)


def test_coordinates_are_independent():
    n = 200_000
    sample = draw((n,), dtype=torch.float64).numpy()
    for lag in (1, 2, 3, 8, 100):
        assert abs(np.corrcoef(sample[:-lag], sample[lag:])[0, 1]) < 4 / math.sqrt(n)
        assert abs(np.corrcoef(sample[:-lag] ** 2, sample[lag:] ** 2)[0, 1]) < 4 / math.sqrt(n)
    # Jointly normal: squared lengths of neighbours are χ² with as many degrees of freedom; any direction is normal.
    for size in (2, 5, 10):
        rows = sample.reshape(-1, size)
        assert stats.kstest(np.square(rows).sum(1), stats.chi2(size).cdf).pvalue > 1e-4
        direction = np.random.default_rng(size).normal(size=size)
        assert stats.kstest(rows @ (direction / np.linalg.norm(direction)), "norm").pvalue > 1e-4
    # Negative control: one shared coordinate makes neighbours dependent at this sample size.
    leaky = sample + 0.05 * np.repeat(sample[::2], 2)
    assert abs(np.corrcoef(leaky[:-1:2], leaky[1::2])[0, 1]) > 4 / math.sqrt(n)


@pytest.mark.parametrize(
    "other",
    [
        {"purpose": "another"},
        {"purpose": "test "},
        {"counter": 1},
        {"counter": 2**40},
        {"key": RandomKey.from_seed(1)},
        {"key": RandomKey.from_system()},
    ],
)
def test_other_draws_are_unrelated(other):
    n = 50_000
    first, second = draw((n,), dtype=torch.float64), draw((n,), dtype=torch.float64, **other)
    correlation = torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    assert abs(correlation) < 4.5 / math.sqrt(n)
    assert not (first == second).any()
    # The difference of two draws has the variance of both.
    assert (first - second).var().item() == pytest.approx(2, rel=0.05)


def test_steps_are_unrelated_in_each_coordinate():
    steps = torch.stack([draw((4,), counter=step, dtype=torch.float64) for step in range(5000)]).numpy()
    assert np.abs(np.corrcoef(steps.T) - np.eye(4)).max() < 4.5 / math.sqrt(5000)
    for coordinate in steps.T:
        assert stats.kstest(coordinate, "norm").pvalue > 1e-4
        assert abs(np.corrcoef(coordinate[:-1], coordinate[1:])[0, 1]) < 4.5 / math.sqrt(5000)


def test_the_same_name_gives_the_same_noise():
    first = draw((3, 5), sigma=2.0, purpose="gradient of weight", counter=7)
    assert torch.equal(first, draw((3, 5), sigma=2.0, purpose="gradient of weight", counter=7))
    # Scaled by the deviation and cut from one stream, whatever the shape.
    torch.testing.assert_close(2 * first, draw((3, 5), sigma=4.0, purpose="gradient of weight", counter=7))
    assert torch.equal(first.flatten()[:6], draw((2, 3), sigma=2.0, purpose="gradient of weight", counter=7).flatten())


@pytest.mark.parametrize("sensitivity", [0.1, 10.0])
def test_no_noise_is_zeros(sensitivity):
    noise = draw((3, 4), sigma=0.0, sensitivity=sensitivity)
    assert noise.shape == (3, 4)
    assert torch.equal(noise, torch.zeros(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (0,), (5, 0)])
@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_shape_and_type(dtype, shape, sigma):
    noise = draw(shape, sigma=sigma, dtype=dtype)
    assert noise.shape == torch.Size(shape)
    assert noise.dtype == dtype
    assert noise.device.type == "cpu"


def test_single_precision_is_the_rounded_double():
    double = draw((1000,), sigma=3.0, dtype=torch.float64)
    assert torch.equal(draw((1000,), sigma=3.0), double.float())


def test_uniforms_become_quantiles():
    # Words of given quantiles against scipy's inverse distribution function.
    quantiles = [0.5, 0.975, 0.025, 0.001, 0.999]
    key = FixedWords([int(quantile * 2**64) for quantile in quantiles])
    np.testing.assert_allclose(
        standard_normal(5, key, "test", counter=0), stats.norm.ppf(quantiles), rtol=1e-12, atol=1e-12
    )


def test_the_extreme_words_give_finite_noise_of_9_deviations():
    lowest, highest = standard_normal(2, FixedWords([0, 2**64 - 1]), "test", counter=0)
    assert lowest == -highest == pytest.approx(stats.norm.ppf(2.0**-65), rel=1e-12)
    assert -9.16 < lowest < -9.15


@given(word=st.integers(0, 2**64 - 1))
@example(word=2**63 - 1)
@example(word=2**63)
@example(word=1)
def test_noise_is_symmetric_and_grows_with_its_word(word):
    # Also in the upper tail, where a probability near 1 has no digits left: 2^10 words there are 2^10 different numbers.
    low, high, one_below, far_below = standard_normal(
        4, FixedWords([word, 2**64 - 1 - word, max(word - 1, 0), max(word - 2**12, 0)]), "test", counter=0
    )
    assert low == -high
    assert far_below <= one_below <= low


def test_the_upper_tail_is_as_fine_as_the_lower():
    words = np.arange(1024, dtype=np.uint64)
    lower = standard_normal(1024, FixedWords(words), "test", counter=0)
    upper = standard_normal(1024, FixedWords(~words), "test", counter=0)
    assert len(np.unique(lower)) == 1024
    assert (upper == -lower).all()


@pytest.mark.parametrize("sigma", [-1.0, math.inf, math.nan])
def test_a_multiplier_out_of_range(sigma):
    with pytest.raises(ValueError, match=f"noise_multiplier={sigma}: expected a finite number ≥ 0"):
        draw((2,), sigma=sigma)


@pytest.mark.parametrize("sensitivity", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_a_sensitivity_out_of_range(sigma, sensitivity):
    with pytest.raises(ValueError, match=f"sensitivity={sensitivity}: expected a finite number > 0"):
        draw((2,), sigma=sigma, sensitivity=sensitivity)


def test_a_noisy_count_is_the_gaussian_mechanism_on_a_grid():
    found = [noisy_count(7, noise_multiplier=3.0, key=KEY, purpose="count", counter=counter) for counter in range(50)]
    exact = [
        7 + float(draw((), sigma=3.0, purpose="count", counter=counter, dtype=torch.float64)) for counter in range(50)
    ]
    assert all((value * 1024).is_integer() for value in found)
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.5 / 1024)
    assert len(set(found)) == 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_that_differ_in_a_bit_meet_other_noise(dtype):
    sums = [torch.linspace(-1, 1, 12, dtype=dtype).view(3, 4), torch.tensor(0.5, dtype=dtype)]
    key = bound_to_sums(KEY, *sums)
    assert key != KEY
    assert key.origin == KEY.origin
    # The same numbers, whatever their layout and history.
    assert bound_to_sums(KEY, sums[0].t().clone().t().requires_grad_(), sums[1].clone()) == key
    for which in range(2):
        other = [total.clone() for total in sums]
        flat = other[which].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(2.0, dtype=dtype))
        assert bound_to_sums(KEY, *other) != key
        assert not (draw((50,), key=key) == draw((50,), key=bound_to_sums(KEY, *other))).any()
    assert bound_to_sums(RandomKey.from_seed(1), *sums) != key
