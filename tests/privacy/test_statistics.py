import math

import dp_accounting
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scatterdp.errors import UserError
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import PoissonSelection
from scatterdp.privacy.statistics import (
    StatisticsBounds,
    bounds_from_norm,
    bounds_from_reference,
    clip_rows,
    release_channel_statistics,
    statistics_event,
    statistics_selection,
)

KEY = RandomKey.from_seed(0)
FLOOR = 1e-12  # of a scaled variance, without noise


def bounds_of(scale: list[float], mean_bound: float, square_bound: float) -> StatisticsBounds:
    return StatisticsBounds(
        scale=torch.tensor(scale, dtype=torch.float64),
        mean_bound=mean_bound,
        square_bound=square_bound,
        source="made for a test",
    )


def release(
    features: np.ndarray, bounds: StatisticsBounds, *, sigma: float = 0.0, n: int | None = None, key=KEY, cuts=()
):
    blocks = [torch.from_numpy(part) for part in np.split(features, list(cuts))]
    return release_channel_statistics(
        blocks, num_examples=n or len(features), bounds=bounds, noise_multiplier=sigma, key=key
    )


def released_sums(features: np.ndarray, bounds: StatisticsBounds, n: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """The two released sums in scaled units, by undoing what is done to them afterwards."""
    statistics, _ = release(features, bounds, n=n, **options)
    mean = statistics.mean.numpy() / bounds.scale.numpy()
    square = statistics.variance.numpy() / bounds.scale.numpy() ** 2 + mean**2
    return mean * n, square * n


def clipped_vectors(features: np.ndarray, bounds: StatisticsBounds) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The formulas of the module's text, one example and one channel at a time."""
    scale = bounds.scale.numpy()
    means, squares = [], []
    for example in features.astype(np.float64):
        u = np.array([np.mean(channel / s) for channel, s in zip(example, scale, strict=True)])
        w = np.array([np.mean((channel / s) ** 2) for channel, s in zip(example, scale, strict=True)])
        means.append(u * min(1.0, bounds.mean_bound / max(np.linalg.norm(u), 1e-300)))
        squares.append(w * min(1.0, bounds.square_bound / max(np.linalg.norm(w), 1e-300)))
    return means, squares


def dyadic_features(n: int, shape: tuple[int, int, int] = (3, 4, 2), seed: int = 0) -> np.ndarray:
    """Eighths in [-4, 4]: their squares are exact in single precision."""
    return (np.random.default_rng(seed).integers(-32, 33, size=(n, *shape)) / 8).astype(np.float32)


def test_without_noise_it_is_the_mean_and_the_variance():
    features = dyadic_features(50)
    statistics, _ = release(features, bounds_of([1.0, 0.5, 4.0], 1e6, 1e6))
    exact = features.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, exact.mean((0, 2, 3)), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(statistics.variance, exact.var((0, 2, 3)), rtol=1e-12)
    assert statistics.mean.dtype == statistics.variance.dtype == torch.float64
    assert statistics.mean.shape == statistics.variance.shape == (3,)


def test_without_noise_it_is_the_loop_over_clipped_vectors():
    features = dyadic_features(60)
    features[:20] *= 4  # some examples are clipped, some are not
    bounds = bounds_of([1.0, 0.5, 4.0], 2.0, 70.0)
    means, squares = clipped_vectors(features, bounds)
    at_mean_bound = sum(np.linalg.norm(u) > bounds.mean_bound * (1 - 1e-9) for u in means)
    at_square_bound = sum(np.linalg.norm(w) > bounds.square_bound * (1 - 1e-9) for w in squares)
    assert 5 < at_mean_bound < 55
    assert 5 < at_square_bound < 55
    mean, square = np.mean(means, 0), np.mean(squares, 0)
    statistics, _ = release(features, bounds)
    scale = bounds.scale.numpy()
    np.testing.assert_allclose(statistics.mean, mean * scale, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(statistics.variance, (square - mean**2) * scale**2, rtol=1e-12)


MAGNITUDES = st.one_of(st.floats(-8, 8, width=32), st.sampled_from([1e-30, -1e-10, 1e4, -1e8, 1e15, -1e18]))


@settings(max_examples=150, deadline=None)
@given(
    features=hnp.arrays(np.float32, hnp.array_shapes(min_dims=4, max_dims=4, max_side=4), elements=MAGNITUDES),
    which=st.integers(0, 3),
    scale=st.floats(0.1, 10),
    mean_bound=st.floats(1e-3, 100),
    square_bound=st.floats(1e-3, 100),
)
def test_one_example_moves_each_sum_by_at_most_its_bound(features, which, scale, mean_bound, square_bound):
    n, channels = features.shape[:2]
    neighbour = np.delete(features, which % n, axis=0)
    scales = [scale * 2.0**k for k in range(channels)]

    def difference(bounds: StatisticsBounds, release_number: int) -> float:
        with_it, without = (
            released_sums(rows, bounds, n)[release_number] if len(rows) else np.zeros(channels)
            for rows in (features, neighbour)
        )
        return float(np.linalg.norm(with_it - without))

    rounding = n * (FLOOR + 1e-13 * (mean_bound + square_bound))
    assert difference(bounds_of(scales, mean_bound, square_bound), 0) <= mean_bound * (1 + 1e-12) + rounding
    # With means clipped to almost nothing, variance + mean² gives the squares back even where they were clipped.
    assert difference(bounds_of(scales, 1e-7, square_bound), 1) <= square_bound * (1 + 1e-12) + 2 * rounding


def test_the_bounds_are_reached():
    features = dyadic_features(10)
    features[0] = 1e6
    bounds = bounds_of([1.0, 1.0, 1.0], 0.25, 3.0)
    for release_number, bound in ((0, bounds.mean_bound), (1, bounds.square_bound)):
        # Tiny means for the squares, as above; the bound of the release in question stays.
        used = bounds if release_number == 0 else bounds_of([1.0, 1.0, 1.0], 1e-7, bound)
        full, without = (released_sums(rows, used, 10)[release_number] for rows in (features, features[1:]))
        assert np.linalg.norm(full - without) == pytest.approx(bound, rel=1e-9)


@given(
    rows=hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.integers(1, 6)), elements=st.floats(-1e150, 1e150)),
    bound=st.floats(1e-6, 1e6),
)
def test_clip_rows(rows, bound):
    clipped = clip_rows(torch.from_numpy(rows), bound).numpy()
    assert clipped.shape == rows.shape
    for row, result in zip(rows, clipped, strict=True):
        norm = math.hypot(*row)
        assert math.hypot(*result) <= bound * (1 + 1e-12)
        if norm <= bound * (1 - 1e-12):
            np.testing.assert_allclose(result, row, rtol=4e-16)  # bound ÷ bound is 1 up to its last bit
        else:
            np.testing.assert_allclose(result, row / norm * min(norm, bound), rtol=1e-9, atol=bound * 1e-12)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_clip_rows_needs_a_bound(bound):
    with pytest.raises(ValueError, match=f"bound={bound}: expected a finite number > 0"):
        clip_rows(torch.ones(1, 2), bound)


def noise_of_releases(sigma: float, *, assumed: float) -> tuple[np.ndarray, np.ndarray]:
    """Both releases' noise over many keys, in units of the deviation that ``assumed`` would give."""
    features = dyadic_features(40, (4, 2, 2))
    bounds = bounds_of([1.0, 0.5, 4.0, 2.0], 0.5, 2.0)
    exact = [np.sum(vectors, 0) for vectors in clipped_vectors(features, bounds)]
    first, second = [], []
    for seed in range(400):
        mean, square = released_sums(features, bounds, 40, sigma=sigma, key=RandomKey.from_seed(seed))
        first.append((mean - exact[0]) / (assumed * bounds.mean_bound))
        second.append((square - exact[1]) / (assumed * bounds.square_bound))
    return np.array(first), np.array(second)


@pytest.mark.parametrize("factor", [1.0, 2 / 3, 1.5])
def test_the_noise_of_each_release_has_its_deviation(factor, looks_standard_normal):
    # σ is small enough for no variance to reach its floor, which would hide the noise of the squares.
    first, second = noise_of_releases(0.2 * factor, assumed=0.2)
    assert looks_standard_normal(first) == (factor == 1.0)
    assert looks_standard_normal(second) == (factor == 1.0)


def test_the_noises_of_the_two_releases_are_unrelated():
    first, second = noise_of_releases(0.2, assumed=0.2)
    correlations = np.corrcoef(np.hstack([first, second]).T) - np.eye(8)
    assert np.abs(correlations).max() < 4.5 / math.sqrt(400)


def test_the_same_key_releases_the_same_and_another_key_does_not():
    features, bounds = dyadic_features(20), bounds_of([1.0, 1.0, 1.0], 1.0, 5.0)
    first, second = (release(features, bounds, sigma=1.0)[0] for _ in range(2))
    other = release(features, bounds, sigma=1.0, key=RandomKey.from_system())[0]
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.variance, second.variance)
    assert not (first.mean == other.mean).any()


def test_releases_from_one_key_share_no_noise_when_they_differ_in_anything():
    features, bounds = dyadic_features(20), bounds_of([1.0, 1.0, 1.0], 1.0, 5.0)

    def noise_of(features, bounds, sigma, n):
        noisy, exact = (released_sums(features, bounds, n, sigma=s)[0] for s in (sigma, 0.0))
        return (noisy - exact) / (sigma * bounds.mean_bound)

    first = noise_of(features, bounds, 2.0, 20)
    wider = bounds_of([1.0, 1.0, 1.0], 1.5, 5.0)
    for other in (
        noise_of(features[:19], bounds, 2.0, 20),
        noise_of(features, wider, 2.0, 20),
        noise_of(features, bounds, 3.0, 20),
        noise_of(features, bounds, 2.0, 21),
    ):
        assert (abs(first - other) > 1e-3).all()
    np.testing.assert_allclose(noise_of(features, bounds, 2.0, 20), first, atol=1e-9)


def test_a_variance_is_at_least_the_level_of_its_noise():
    features = np.zeros((25, 2, 3, 3), dtype=np.float32)
    bounds = bounds_of([2.0, 0.5], 1.0, 6.0)
    floor = 0.5 * 6.0 / 25 * np.array([4.0, 0.25])
    variances = [
        release(features, bounds, sigma=0.5, key=RandomKey.from_seed(seed))[0].variance.numpy() for seed in range(50)
    ]
    assert np.min(variances) > 0
    assert (np.array(variances) >= floor * (1 - 1e-12)).all()
    assert np.min(variances, 0) == pytest.approx(floor)
    assert np.isfinite(1 / np.sqrt(variances)).all()


def test_a_constant_channel_without_noise_has_a_positive_variance():
    statistics, _ = release(np.full((5, 2, 2, 2), 0.5, dtype=np.float32), bounds_of([1.0, 2.0], 100.0, 100.0))
    np.testing.assert_allclose(statistics.mean, [0.5, 0.5])
    np.testing.assert_allclose(statistics.variance, [FLOOR, 4 * FLOOR])


def test_what_is_spent():
    bounds = bounds_of([1.0, 1.0, 1.0], 1.5, 4.0)
    _, entry = release(dyadic_features(20), bounds, sigma=8.0)
    assert entry.event == statistics_event(8.0)
    assert entry.event == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(8.0), 2)
    assert entry.name == "channel statistics"
    assert entry.details == {
        "releases": ["mean", "mean of squares"],
        "feature_clip_norm": [1.5, 4.0],
        "bound_source": "made for a test",
        "noise_standard_deviation": [12.0, 32.0],
    }
    two = dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(8.0), dp_accounting.GaussianDpEvent(8.0)])
    assert epsilon_of(entry.event, delta=1e-5) == pytest.approx(epsilon_of(two, delta=1e-5), abs=1e-6)


def test_no_noise_is_no_guarantee():
    _, entry = release(dyadic_features(20), bounds_of([1.0, 1.0, 1.0], 1.0, 1.0), sigma=0.0)
    assert epsilon_of(entry.event, delta=1e-5) == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 7])
def test_features_that_are_not_finite(bad, row):
    features = dyadic_features(8)
    features[row, 1, 2, 0] = bad
    with pytest.raises(UserError, match="features: found NaN or infinite values; remove the examples"):
        release(features, bounds_of([1.0, 1.0, 1.0], 1.0, 1.0), sigma=1.0, cuts=(4,))


def test_a_huge_example_is_clipped_like_any_other():
    # Its squares overflow single precision; were that an error, one example would decide whether there is a run.
    features = dyadic_features(8)
    features[3] = 1e30
    bounds = bounds_of([1.0, 1.0, 1.0], 1.0, 5.0)
    with_it, without = (released_sums(rows, bounds, 8)[0] for rows in (features, np.delete(features, 3, axis=0)))
    assert np.linalg.norm(with_it - without) == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 30), max_size=6).map(sorted))
def test_blocks_may_be_cut_anywhere(cuts):
    features = np.random.default_rng(1).normal(size=(30, 3, 4, 2)).astype(np.float32)
    bounds = bounds_of([1.0, 0.3, 3.0], 0.4, 3.0)
    whole, cut = (release(features, bounds, cuts=where)[0] for where in ((), cuts))
    torch.testing.assert_close(cut.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cut.variance, whole.variance, rtol=1e-12, atol=1e-12)


def test_half_precision_features_are_summed_in_double():
    features = dyadic_features(30)
    bounds = bounds_of([1.0, 1.0, 1.0], 1.0, 8.0)
    single, half = release(features, bounds)[0], release(features.astype(np.float16), bounds)[0]
    torch.testing.assert_close(half.mean, single.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(half.variance, single.variance, rtol=1e-12, atol=1e-14)


def test_the_features_are_left_as_they_are():
    features = dyadic_features(10)
    before = features.copy()
    release(features, bounds_of([1.0, 1.0, 1.0], 1.0, 8.0), sigma=1.0)
    np.testing.assert_array_equal(features, before)


def test_bounds_are_numbers_of_the_reference():
    reference = dyadic_features(12, (3, 4, 2), seed=5)
    reference[:, 1] *= 16
    bounds = bounds_from_reference(torch.from_numpy(reference), "eighths")
    exact = reference.astype(np.float64)
    scale = np.sqrt((exact**2).mean((0, 2, 3)))
    np.testing.assert_allclose(bounds.scale, scale, rtol=1e-12)
    means = [np.linalg.norm(example.mean((1, 2)) / scale) for example in exact]
    squares = [np.linalg.norm((example**2).mean((1, 2)) / scale**2) for example in exact]
    assert bounds.mean_bound == pytest.approx(max(means), rel=1e-6)
    assert bounds.square_bound == pytest.approx(max(squares), rel=1e-6)
    assert bounds.source == "eighths"


def test_a_silent_channel_of_the_reference_keeps_its_unit():
    reference = dyadic_features(4)
    reference[:, 2] = 0
    bounds = bounds_from_reference(torch.from_numpy(reference), "one channel is zero")
    assert bounds.scale[2] == 1.0
    assert torch.isfinite(bounds.scale).all()


@pytest.mark.parametrize("side", [8, 9])
def test_means_that_cancel_are_bounded_by_the_squares(side):
    """Two-tone pixels as ±1, half of them ink: an even number cancels to 0, an odd one almost."""
    ink = torch.ones(5, side * side)
    ink[:, : side * side // 2] = -1
    bounds = bounds_from_reference(ink.view(5, 1, side, side), "two-tone")
    assert bounds.mean_bound == pytest.approx(1.0)
    assert bounds.square_bound == pytest.approx(1.0)
    # Real ink is sparse: its mean is not clipped away.
    sparse = torch.full((40, 1, side, side), -1.0)
    sparse[:, :, 0, 0] = 1
    found, _ = release_channel_statistics(
        [sparse], num_examples=40, bounds=bounds, noise_multiplier=0.0, key=RandomKey.from_seed(0)
    )
    assert found.mean.item() == pytest.approx(sparse.mean().item())


def test_features_that_are_all_0_have_no_bounds():
    with pytest.raises(UserError, match=r"^features: all 0 for synthetic images"):
        bounds_from_reference(torch.zeros(3, 2, 4, 4), "nothing")


def test_bounds_depend_on_the_reference_alone():
    reference = torch.from_numpy(dyadic_features(6, seed=3))
    first = bounds_from_reference(reference, "eighths")
    entries = []
    for features in (dyadic_features(20), 1e6 * dyadic_features(20, seed=1), dyadic_features(20)[:5]):
        _, entry = release(features, first, sigma=1.0, n=20)
        entries.append(entry)
    assert entries[0] == entries[1] == entries[2]
    second = bounds_from_reference(reference.clone(), "eighths")
    assert torch.equal(first.scale, second.scale)
    assert (first.mean_bound, first.square_bound) == (second.mean_bound, second.square_bound)


class TestBlocks:
    """Features of several grids side by side are one vector of channels, released once."""

    SHAPES = ((2, 2, 3), (3, 1, 1))

    def make(self, n: int = 40) -> tuple[torch.Tensor, list[torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        parts = [torch.randn(n, *shape, generator=generator, dtype=torch.float64) * 3 + 1 for shape in self.SHAPES]
        return torch.cat([part.flatten(1) for part in parts], 1)[:, :, None, None], parts

    def test_each_channel_has_its_own_mean_and_variance(self):
        flat, parts = self.make()
        bounds = bounds_from_reference(flat, "made for a test", shapes=self.SHAPES)
        assert bounds.scale.shape == (5,)
        statistics, entry = release_channel_statistics(
            flat.split(7), num_examples=40, bounds=bounds, noise_multiplier=0.0, key=KEY
        )
        mean = torch.cat([part.mean((0, 2, 3)) for part in parts])
        square = torch.cat([part.square().mean((0, 2, 3)) for part in parts])
        torch.testing.assert_close(statistics.mean, mean)
        torch.testing.assert_close(statistics.variance, square - mean.square())
        assert entry.event == statistics_event(0.0)

    def test_one_bound_holds_for_all_blocks_together(self):
        flat, _ = self.make()
        bounds = StatisticsBounds(
            scale=torch.ones(5, dtype=torch.float64), mean_bound=0.5, square_bound=0.5, source="", shapes=self.SHAPES
        )
        keep = {"num_examples": 1, "bounds": bounds, "noise_multiplier": 0.0, "key": KEY}
        for i in range(5):
            statistics, _ = release_channel_statistics([flat[i : i + 1]], **keep)
            assert statistics.mean.norm() <= 0.5 * (1 + 1e-12)  # of the whole vector, not of each block
        moved = [release_channel_statistics([rows], **keep)[0].mean for rows in (flat[:10], flat[1:10])]
        assert (moved[0] - moved[1]).norm() <= 0.5 * (1 + 1e-12)

    def test_one_block_is_the_features_shape(self):
        features = torch.rand(20, 4, 2, 2)
        named = bounds_from_reference(features, "", shapes=[(4, 2, 2)])
        plain = bounds_from_reference(features, "")
        assert torch.equal(named.scale, plain.scale)
        assert (named.mean_bound, named.square_bound) == (plain.mean_bound, plain.square_bound)


class TestBoundsFromNorm:
    def test_an_example_of_that_norm_is_not_clipped(self):
        bounds = bounds_from_norm(3.0, 4)
        torch.manual_seed(0)
        for x in (torch.randn(1, 4, 2, 2), torch.eye(4)[:1, :, None, None], torch.ones(1, 4, 1, 1)):
            x = 3 * x / x.norm()
            statistics, _ = release_channel_statistics(
                [x], num_examples=1, bounds=bounds, noise_multiplier=0.0, key=RandomKey.from_seed(0)
            )
            torch.testing.assert_close(statistics.mean, x.double().mean((0, 2, 3)))

    def test_a_longer_one_is_brought_down_to_it(self):
        x = torch.tensor([30.0, 40.0]).view(1, 2, 1, 1)
        statistics, entry = release_channel_statistics(
            [x], num_examples=1, bounds=bounds_from_norm(5.0, 2), noise_multiplier=0.0, key=RandomKey.from_seed(0)
        )
        torch.testing.assert_close(statistics.mean, torch.tensor([3.0, 4.0], dtype=torch.float64))
        assert entry.details["feature_clip_norm"] == [5.0, 25.0]
        assert entry.details["bound_source"] == "feature_clip_norm=5, given as a public number"

    def test_blocks_share_it(self):
        assert bounds_from_norm(1.0, 5, shapes=[(2, 2, 2), (3, 1, 1)]).shapes == ((2, 2, 2), (3, 1, 1))


# ------------------------------------------------ a sample of the examples


def sampled(features, bounds, *, sigma, key, expected, cuts=()):
    selection = statistics_selection(len(features), expected)
    pieces = [torch.from_numpy(part) for part in np.split(features, cuts)]
    return release_channel_statistics(
        pieces, num_examples=len(features), bounds=bounds, noise_multiplier=sigma, key=key, selection=selection
    )


def test_statistics_of_a_sample_are_sums_over_it_by_its_expected_size():
    features, key = dyadic_features(200), RandomKey.from_seed(2)
    bounds = bounds_of([1.0, 1.0, 1.0], 1e6, 1e6)
    found, _ = sampled(features, bounds, sigma=0.0, key=key, expected=50, cuts=(3, 3, 64, 199))
    selection = statistics_selection(200, 50)
    assert selection is not None
    chosen = selection.indices(0, key.bound_to("sample for channel statistics"))
    assert 30 < len(chosen) < 70
    assert len(chosen) != 50  # the divisor is public, this number is not
    mean = features[chosen].mean(axis=(2, 3), dtype=np.float64).sum(0) / 50
    square = np.square(features[chosen].astype(np.float64)).mean(axis=(2, 3)).sum(0) / 50
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.variance, np.maximum(square - mean**2, 1e-12), rtol=1e-9)


def test_a_sample_is_drawn_apart_from_the_first_batch():
    key = RandomKey.from_seed(0)
    selection = statistics_selection(10_000, 1000)
    assert selection is not None
    batch = PoissonSelection(num_examples=10_000, batch_size=1000, steps=5).indices(0, key)
    both = np.intersect1d(selection.indices(0, key.bound_to("sample for channel statistics")), batch)
    assert 60 < len(both) < 140  # 100 by chance


def test_what_a_sample_spends():
    features, bounds = dyadic_features(200), bounds_of([1.0, 1.0, 1.0], 1.5, 4.0)
    _, entry = sampled(features, bounds, sigma=8.0, key=RandomKey.from_seed(0), expected=50)
    assert entry.event == statistics_event(8.0, 0.25)
    joint = dp_accounting.GaussianDpEvent(8.0 / math.sqrt(2))
    assert entry.event == dp_accounting.PoissonSampledDpEvent(0.25, joint)
    assert entry.details["noise_standard_deviation"] == [12.0, 32.0]  # of the sums, as for all examples
    assert entry.details["sample"]["sample_rate"] == 0.25
    # Two mechanisms on one sample are one of noise σ/√2: without sampling both ways of writing it cost the same.
    twice = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(8.0), 2)
    assert epsilon_of(joint, delta=1e-5) == pytest.approx(epsilon_of(twice, delta=1e-5), rel=1e-9)
    assert epsilon_of(entry.event, delta=1e-5) < epsilon_of(twice, delta=1e-5)


def test_all_examples_are_no_sample_and_rows_must_be_all():
    assert statistics_selection(200, 200) is None
    bounds = bounds_of([1.0, 1.0, 1.0], 1.0, 1.0)
    features = dyadic_features(20)
    blocks, arguments = (
        [torch.from_numpy(features)],
        {"bounds": bounds, "noise_multiplier": 1.0, "key": RandomKey.from_seed(0)},
    )
    with pytest.raises(ValueError, match="20 rows, expected the 30 that the sample is of"):
        release_channel_statistics(blocks, num_examples=30, selection=statistics_selection(30, 10), **arguments)
    with pytest.raises(ValueError, match="num_examples=20: the selection samples from 30"):
        release_channel_statistics(blocks, num_examples=20, selection=statistics_selection(30, 10), **arguments)


def test_one_example_moves_the_sums_of_a_sample_by_at_most_the_bounds():
    """Whatever it is, and only where it is in the sample."""
    features, key = dyadic_features(40), RandomKey.from_seed(3)
    bounds = bounds_of([1.0, 1.0, 1.0], 0.7, 0.4)
    selection = statistics_selection(40, 20)
    assert selection is not None
    chosen = selection.indices(0, key.bound_to("sample for channel statistics"))
    for row in range(40):
        other = features.copy()
        other[row] = 1e6
        means = [sampled(x, bounds, sigma=0.0, key=key, expected=20)[0].mean for x in (features, other)]
        moved = float((means[0] - means[1]).norm()) * 20
        assert (moved > 0) == (row in chosen)
        assert moved <= 2 * 0.7 + 1e-9  # replaced: removed and added
