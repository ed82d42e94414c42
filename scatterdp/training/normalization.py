"""The plan's normaliser for cached features: released with DP, free, or restored from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scatterdp.cache import FeatureCache
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.reference import DESCRIPTION, reference_features
from scatterdp.heads import Standardize, group_normalizer
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.statistics import bounds_from_reference, release_channel_statistics
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
    if plan.input_norm != "BN":
        return _free_normalizer(features, plan), []
    statistics, entry = release_channel_statistics(
        (torch.from_numpy(block) for _, block in features.iter_rows("train", _BLOCK)),
        num_examples=features.num_rows("train"),
        bounds=bounds_from_reference(reference_features(extractor), DESCRIPTION),
        noise_multiplier=plan.bn_noise_multiplier,
        key=key,
    )
    return Standardize.from_statistics(statistics), [entry]


def restore_normalizer(features: FeatureCache, plan: TrainingPlan, state: dict[str, Any]) -> nn.Module:
    """The normaliser whose state dict was saved: nothing is released again."""
    if plan.input_norm == "BN":
        return Standardize(state["mean"], state["scale"])
    return _free_normalizer(features, plan)


def _free_normalizer(features: FeatureCache, plan: TrainingPlan) -> nn.Module:
    if plan.input_norm == "GroupNorm":
        return group_normalizer(features.output_shape[0], plan.num_groups)
    return nn.Identity()
