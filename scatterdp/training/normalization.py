"""The plan's normaliser for cached features: released with DP, free, or restored from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scatterdp.cache import FeatureCache
from scatterdp.errors import ConfigError
from scatterdp.extractors.base import Block, Extractor, blocks_of
from scatterdp.extractors.reference import DESCRIPTION, reference_features
from scatterdp.heads import Standardize, group_normalizer
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.statistics import ChannelStatistics, bounds_from_reference, release_channel_statistics
from scatterdp.training.plan import TrainingPlan

_BLOCK = 512


def release_normalizer(
    features: FeatureCache, plan: TrainingPlan, *, extractor: Extractor, key: RandomKey
) -> tuple[nn.Module, list[LedgerEntry]]:
    """The plan's normaliser and what it cost: one entry for ``BN``, none for the others.

    Raises:
        UserError: features that are not finite.
        ConfigError: groups that do not divide the channels.
    """
    check_normalizer(plan, extractor)
    blocks = blocks_of(extractor)
    if plan.input_norm != "BN":
        return _free_normalizer(features, plan), []
    statistics, entry = release_channel_statistics(
        (torch.from_numpy(block) for _, block in features.iter_rows("train", _BLOCK)),
        num_examples=features.num_rows("train"),
        bounds=bounds_from_reference(
            reference_features(extractor), DESCRIPTION, shapes=[block.shape for block in blocks]
        ),
        noise_multiplier=plan.bn_noise_multiplier,
        key=key,
    )
    if len(blocks) == 1 and blocks[0].scale == 1 and blocks[0].shape == extractor.output_shape:
        return Standardize.from_statistics(statistics), [entry]
    return _standardize_blocks(statistics, blocks), [entry]


def check_normalizer(plan: TrainingPlan, extractor: Extractor) -> None:
    """Refuse a plan whose normaliser cannot serve the extractor's features.

    Raises:
        ConfigError: groups that do not divide the channels; scaled blocks without released statistics.
    """
    if plan.input_norm != "BN" and any(block.scale != 1 for block in blocks_of(extractor)):
        raise ConfigError(
            f"input_norm={plan.input_norm}: blocks are scaled by released statistics; give --input_norm=BN, or features without scales, "
            "such as --extractor=scatternet"
        )
    if plan.input_norm == "GroupNorm":
        group_normalizer(extractor.output_shape[0], plan.num_groups)


def _standardize_blocks(statistics: ChannelStatistics, blocks: tuple[Block, ...]) -> Standardize:
    """For flat features ``(B, D, 1, 1)``: every feature by its channel's statistics, to its block's scale."""
    sizes = torch.tensor([h * w for _, h, w in (block.shape for block in blocks)])
    channels = torch.tensor([block.shape[0] for block in blocks])
    repeats = sizes.repeat_interleave(channels)
    scales = torch.tensor([block.scale for block in blocks]).repeat_interleave(channels)
    return Standardize(
        statistics.mean.repeat_interleave(repeats), (scales / statistics.variance.sqrt()).repeat_interleave(repeats)
    )


def restore_normalizer(features: FeatureCache, plan: TrainingPlan, state: dict[str, Any]) -> nn.Module:
    """The normaliser whose state dict was saved: nothing is released again."""
    if plan.input_norm == "BN":
        return Standardize(state["mean"], state["scale"])
    return _free_normalizer(features, plan)


def _free_normalizer(features: FeatureCache, plan: TrainingPlan) -> nn.Module:
    if plan.input_norm == "GroupNorm":
        return group_normalizer(features.output_shape[0], plan.num_groups)
    return nn.Identity()
