"""The plan's normaliser for cached features: released with DP, free, or restored from a checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scatterdp.cache import Features
from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors.base import Block, Extractor, blocks_of
from scatterdp.extractors.reference import DESCRIPTION, reference_features
from scatterdp.heads import Standardize, group_normalizer
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.statistics import (
    ChannelStatistics,
    StatisticsBounds,
    bounds_from_norm,
    bounds_from_reference,
    release_channel_statistics,
)
from scatterdp.training.distributed import BLOCK, ONE, Processes, in_order, part_of
from scatterdp.training.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicStatistics:
    """Channel means and variances that someone says are public: the ledger has no entry for them.

    Args:
        mean, variance: ``(K,)``.
        source: where they came from, for the certificate.
    """

    mean: Tensor
    variance: Tensor
    source: str

    #: Added to the variance, as in batch normalisation and in the published code.
    EPS: ClassVar[float] = 1e-5

    def normalizer(self, num_channels: int) -> Standardize:
        """``(x - mean) / sqrt(variance + 1e-5)``.

        Raises:
            UserError: not one finite mean and one variance ≥ 0 a channel.
        """
        for name, values in (("mean", self.mean), ("variance", self.variance)):
            if tuple(values.shape) != (num_channels,):
                raise UserError(f"{self.source}: {name} of shape {tuple(values.shape)}, expected ({num_channels},)")
            if not values.isfinite().all() or (name == "variance" and (values < 0).any()):
                raise UserError(f"{self.source}: the {name} is negative, NaN or infinite in places; expected numbers")
        return Standardize(self.mean, (self.variance.double() + self.EPS).rsqrt())

    def digest(self) -> str:
        """SHA-256 of the numbers."""
        return hashlib.sha256(b"".join(t.double().numpy().tobytes() for t in (self.mean, self.variance))).hexdigest()


def release_normalizer(
    features: Features,
    plan: TrainingPlan,
    *,
    extractor: Extractor,
    key: RandomKey,
    statistics: PublicStatistics | None = None,
    processes: Processes = ONE,
) -> tuple[nn.Module, list[LedgerEntry]]:
    """The plan's normaliser and what it cost: one entry for ``BN``, none for the others.

    Args:
        features: of which statistics are released.
        plan: says which normaliser.
        extractor: pushes synthetic images through, unless the plan has a bound.
        key: the run's.
        statistics: for ``given``.
        processes: each reads its part of the rows.

    Raises:
        UserError: features that are not finite.
        ConfigError: groups that do not divide the channels.
    """
    check_normalizer(plan, extractor)
    blocks = blocks_of(extractor)
    if plan.input_norm == "given":
        if statistics is None:
            raise ConfigError("input_norm=given: needs statistics; give them, or --input_norm=BN for a private release")
        return statistics.normalizer(features.output_shape[0]), []
    if plan.input_norm != "BN":
        return _free_normalizer(features, plan), []
    num_examples = features.num_rows("train")
    first, stop = part_of(num_examples, processes.rank, processes.size)
    bounds = _bounds(plan, extractor, blocks) if processes.rank == 0 else None
    released, entry = release_channel_statistics(
        (torch.from_numpy(block) for _, block in features.iter_rows("train", BLOCK, first=first, stop=stop)),
        num_examples=num_examples,
        bounds=processes.share(bounds),
        noise_multiplier=plan.bn_noise_multiplier,
        key=key,
        selection=plan.statistics_selection(),
        rows=range(first, stop),
        of_all=lambda sums: in_order(sums, processes),
    )
    if len(blocks) == 1 and blocks[0].scale == 1 and blocks[0].shape == extractor.output_shape:
        return Standardize.from_statistics(released), [entry]
    return _standardize_blocks(released, blocks), [entry]


def _bounds(plan: TrainingPlan, extractor: Extractor, blocks: tuple[Block, ...]) -> StatisticsBounds:
    shapes = [block.shape for block in blocks]
    if plan.feature_clip_norm is not None:
        return bounds_from_norm(plan.feature_clip_norm, sum(channels for channels, _, _ in shapes), shapes=shapes)
    return bounds_from_reference(reference_features(extractor), DESCRIPTION, shapes=shapes)


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


def with_fitting_groups(plan: TrainingPlan, extractor: Extractor) -> TrainingPlan:
    """The plan with the most groups that divide the features' channels and are no more than it says: for those that nobody asked for."""
    channels = extractor.output_shape[0]
    most = min(plan.num_groups, channels)
    return dataclasses.replace(plan, num_groups=next(groups for groups in range(most, 0, -1) if channels % groups == 0))


def _standardize_blocks(statistics: ChannelStatistics, blocks: tuple[Block, ...]) -> Standardize:
    """For flat features ``(B, D, 1, 1)``: every feature by its channel's statistics, to its block's scale."""
    sizes = torch.tensor([h * w for _, h, w in (block.shape for block in blocks)])
    channels = torch.tensor([block.shape[0] for block in blocks])
    repeats = sizes.repeat_interleave(channels)
    scales = torch.tensor([block.scale for block in blocks]).repeat_interleave(channels)
    return Standardize(
        statistics.mean.repeat_interleave(repeats), (scales / statistics.variance.sqrt()).repeat_interleave(repeats)
    )


def restore_normalizer(features: Features, plan: TrainingPlan, state: dict[str, Any]) -> nn.Module:
    """The normaliser whose state dict was saved: nothing is released again."""
    if plan.input_norm in ("BN", "given"):
        return Standardize(state["mean"], state["scale"])
    return _free_normalizer(features, plan)


def _free_normalizer(features: Features, plan: TrainingPlan) -> nn.Module:
    if plan.input_norm == "GroupNorm":
        return group_normalizer(features.output_shape[0], plan.num_groups)
    return nn.Identity()
