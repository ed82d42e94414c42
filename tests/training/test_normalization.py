"""The plan's normaliser: released, free or restored."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import dp_accounting
import pytest
import torch
from torch import nn

from scatterdp.cache import FeatureCache, extract_features
from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.reference import DESCRIPTION, reference_features
from scatterdp.heads import Standardize
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.statistics import bounds_from_reference, release_channel_statistics, statistics_event
from scatterdp.training import normalization
from scatterdp.training.normalization import (
    PublicStatistics,
    release_normalizer,
    restore_normalizer,
    with_fitting_groups,
)
from scatterdp.training.plan import TrainingPlan

KEY = RandomKey.from_seed(0)


def make_plan(**changes: Any) -> TrainingPlan:
    values: dict[str, Any] = {"num_examples": 60, "batch_size": 20, "epochs": 1, "lr": 1.0, "num_groups": 3}
    return TrainingPlan(**(values | changes))


def test_bn_releases_the_statistics_of_the_training_features(small_features: FeatureCache, small_extractor: Extractor):
    plan = make_plan(input_norm="BN", bn_noise_multiplier=2.0)
    normalizer, entries = release_normalizer(small_features, plan, extractor=small_extractor, key=KEY)
    blocks = [torch.from_numpy(block) for _, block in small_features.iter_rows("train", 60)]
    assert list(map(len, blocks)) == [60]
    expected, entry = release_channel_statistics(
        blocks,
        num_examples=60,
        bounds=bounds_from_reference(reference_features(small_extractor), DESCRIPTION),
        noise_multiplier=2.0,
        key=KEY,
    )
    assert isinstance(normalizer, Standardize)
    torch.testing.assert_close(normalizer.mean, expected.mean.float())
    torch.testing.assert_close(normalizer.scale, expected.variance.rsqrt().float())
    assert entries == [entry]
    assert entry.event == statistics_event(2.0) == plan.prior
    assert entry.details["bound_source"] == DESCRIPTION


def test_bn_without_noise_standardises(small_features: FeatureCache, small_extractor: Extractor):
    plan = make_plan(input_norm="BN", bn_noise_multiplier=0.0)
    normalizer, _ = release_normalizer(small_features, plan, extractor=small_extractor, key=KEY)
    x = torch.cat([torch.from_numpy(block) for _, block in small_features.iter_rows("train", 60)])
    y = normalizer(x)
    assert y.mean((0, 2, 3)).abs().max() < 0.2  # a few examples are clipped
    assert (y.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_bn_noise_depends_on_the_key(small_features: FeatureCache, small_extractor: Extractor):
    plan = make_plan(input_norm="BN")
    first, second, again = (
        release_normalizer(small_features, plan, extractor=small_extractor, key=RandomKey.from_seed(seed))[0]
        for seed in (0, 1, 0)
    )
    assert not torch.isclose(first.state_dict()["mean"], second.state_dict()["mean"]).any()
    assert torch.equal(first.state_dict()["mean"], again.state_dict()["mean"])


@pytest.mark.parametrize(("input_norm", "kind"), [("GroupNorm", nn.GroupNorm), ("none", nn.Identity)])
def test_free_normalisers_release_nothing(
    small_features: FeatureCache, small_extractor: Extractor, monkeypatch, input_norm, kind
):
    monkeypatch.setattr(normalization, "release_channel_statistics", None)
    normalizer, entries = release_normalizer(
        small_features, make_plan(input_norm=input_norm), extractor=small_extractor, key=KEY
    )
    assert type(normalizer) is kind
    assert entries == []
    if isinstance(normalizer, nn.GroupNorm):
        assert (normalizer.num_groups, normalizer.num_channels, normalizer.affine) == (3, 6, False)


def test_groups_must_divide_the_channels(small_features: FeatureCache, small_extractor: Extractor):
    with pytest.raises(ConfigError, match=r"^num_groups=4: does not divide the 6 channels; choose one of 1, 2, 3, 6$"):
        release_normalizer(small_features, make_plan(num_groups=4), extractor=small_extractor, key=KEY)


@pytest.mark.parametrize(
    ("asked", "channels", "groups"), [(27, 6, 6), (27, 1024, 16), (27, 81, 27), (4, 6, 3), (27, 1, 1), (2, 7, 1)]
)
def test_groups_that_nobody_asked_for_are_made_to_fit(asked, channels, groups):
    extractor: Any = SimpleNamespace(output_shape=(channels, 2, 2))
    assert with_fitting_groups(make_plan(num_groups=asked), extractor).num_groups == groups


@pytest.mark.parametrize("input_norm", ["BN", "GroupNorm", "none"])
def test_restored_normalisers_are_equal_and_release_nothing(
    small_features: FeatureCache, small_extractor: Extractor, monkeypatch, input_norm
):
    plan = make_plan(input_norm=input_norm)
    released, _ = release_normalizer(small_features, plan, extractor=small_extractor, key=KEY)
    monkeypatch.setattr(normalization, "release_channel_statistics", None)
    restored = restore_normalizer(small_features, plan, released.state_dict())
    assert type(restored) is type(released)
    x = torch.randn(4, 6, 2, 2)
    assert torch.equal(restored(x), released(x))


class TestBlocks:
    @pytest.fixture
    def extractor(self, small_dataset):
        return make_extractor("pixels + 0.5*patches(patches=32, size=3, grid=2)", small_dataset.image_shape)

    @pytest.fixture
    def features(self, small_dataset, extractor, tmp_path):
        with extract_features(small_dataset, extractor, features_dir=tmp_path) as features:
            yield features

    def test_channels_come_to_their_blocks_scale(self, features, extractor):
        plan = make_plan(input_norm="BN", bn_noise_multiplier=0.0)
        normalizer, (entry,) = release_normalizer(features, plan, extractor=extractor, key=KEY)
        rows = torch.cat([torch.from_numpy(block) for _, block in features.iter_rows("train", 60)])
        pixels, patches = normalizer(rows).flatten(1).split([64, 256], 1)
        assert abs(pixels.mean().item()) < 0.2  # statistics are clipped: about 0 and 1
        assert 0.7 < pixels.std().item() < 1.3
        channels = patches.unflatten(1, (64, 4))
        live = rows.flatten(1)[:, 64:].unflatten(1, (64, 4)).transpose(0, 1).flatten(1).std(1) > 1e-3
        spread = channels.transpose(0, 1).flatten(1).std(1)[live]
        assert 0.3 < spread.median() < 0.7
        assert entry.event == statistics_event(0.0)  # one pair of releases, however many blocks
        again = restore_normalizer(features, plan, normalizer.state_dict())
        assert torch.equal(again(rows), normalizer(rows))

    def test_scales_need_released_statistics(self, features, extractor):
        with pytest.raises(ConfigError, match=r"input_norm=none: blocks are scaled by released statistics"):
            release_normalizer(features, make_plan(input_norm="none"), extractor=extractor, key=KEY)


class TestGivenStatistics:
    STATISTICS = PublicStatistics(mean=torch.arange(6.0), variance=torch.arange(6.0), source="two files")

    def test_standardise_and_release_nothing(self, small_features: FeatureCache, small_extractor: Extractor):
        plan = make_plan(input_norm="given")
        normalizer, entries = release_normalizer(
            small_features, plan, extractor=small_extractor, key=KEY, statistics=self.STATISTICS
        )
        assert entries == []
        assert plan.prior == dp_accounting.NoOpDpEvent()
        x = torch.rand(4, 6, 2, 2)
        expected = torch.nn.functional.batch_norm(x, self.STATISTICS.mean, self.STATISTICS.variance, eps=1e-5)
        torch.testing.assert_close(normalizer(x), expected, rtol=1e-5, atol=1e-5)
        restored = restore_normalizer(small_features, plan, normalizer.state_dict())
        assert torch.equal(restored(x), normalizer(x))

    def test_are_not_made_up(self, small_features: FeatureCache, small_extractor: Extractor):
        with pytest.raises(ConfigError, match="input_norm=given: needs statistics"):
            release_normalizer(small_features, make_plan(input_norm="given"), extractor=small_extractor, key=KEY)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"mean": torch.zeros(5)}, r"two files: mean of shape \(5,\), expected \(6,\)"),
            ({"variance": torch.tensor([1.0, -1, 1, 1, 1, 1])}, "two files: the variance is negative"),
            ({"mean": torch.full((6,), torch.inf)}, "two files: the mean is negative, NaN or infinite"),
        ],
    )
    def test_are_numbers_of_the_channels(self, changed, message):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(self.STATISTICS, **changed).normalizer(6)

    def test_are_named_by_their_digest(self):
        assert dataclasses.replace(self.STATISTICS, source="elsewhere").digest() == self.STATISTICS.digest()
        assert dataclasses.replace(self.STATISTICS, mean=torch.zeros(6)).digest() != self.STATISTICS.digest()
        assert dataclasses.replace(self.STATISTICS, variance=torch.ones(6)).digest() != self.STATISTICS.digest()


def test_a_public_norm_bounds_the_release_in_place_of_synthetic_images(
    small_features: FeatureCache, small_extractor: Extractor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(normalization, "reference_features")
    plan = make_plan(input_norm="BN", bn_noise_multiplier=0.0, feature_clip_norm=100.0)
    normalizer, (entry,) = release_normalizer(small_features, plan, extractor=small_extractor, key=KEY)
    assert entry.details["feature_clip_norm"] == [100.0, 10_000.0]
    x = torch.cat([torch.from_numpy(block) for _, block in small_features.iter_rows("train", 60)])
    torch.testing.assert_close(normalizer.mean, x.mean((0, 2, 3)))  # nothing is that long, so nothing is clipped


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_public_norm_is_a_number_above_0(norm):
    with pytest.raises(ConfigError, match=r"feature_clip_norm=.*expected a finite number > 0"):
        make_plan(input_norm="BN", feature_clip_norm=norm)
