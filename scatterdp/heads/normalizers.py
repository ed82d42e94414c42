"""Normalisers between fixed features and a head: modules with buffers, so that a state dict carries them.

| ``input_norm`` | what it does | privacy cost |
|---|---|---|
| ``BN`` | frozen batch normalisation: per channel ``(x - mean) / sqrt(variance)`` with released statistics | two releases |
| ``GroupNorm`` (``GN``) | each example's channels in groups, each group to mean 0 and variance 1 | none: one example at a time |
| ``none`` | nothing | none |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scatterdp.errors import ConfigError
from scatterdp.privacy.statistics import ChannelStatistics


class Standardize(nn.Module):
    """``(x - mean) * scale`` per channel of ``(B, K, h, w)``, both ``(K,)`` float32 buffers."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())

    @classmethod
    def from_statistics(cls, statistics: ChannelStatistics) -> Standardize:
        """Mean 0 and variance 1 according to released statistics."""
        return cls(statistics.mean, statistics.variance.rsqrt())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) * self.scale[:, None, None]


class Precondition(nn.Module):
    """``A x`` with ``A = g (I - V diag(1 - f) Vᵀ)``: some directions are scaled by factors f, all by g.

    Args:
        directions: V ``(D, k)`` float32, orthonormal columns, of flat features x; or ``(C, k)`` with C fewer than the features: of the channels of maps, the
            same at every place.
        factors: f ``(k,)`` float32.
        gain: g, a number.
    """

    directions: Tensor
    factors: Tensor
    gain: Tensor

    def __init__(self, directions: Tensor, factors: Tensor, gain: Tensor | float = 1.0) -> None:
        super().__init__()
        self.register_buffer("directions", directions.float())
        self.register_buffer("factors", factors.float())
        self.register_buffer("gain", torch.as_tensor(gain, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] == len(self.directions):
            scaled = flat - ((flat @ self.directions) * (1 - self.factors)) @ self.directions.t()
        else:
            maps = flat.unflatten(1, (len(self.directions), -1))
            along = (1 - self.factors)[:, None] * (self.directions.t() @ maps)
            scaled = maps - self.directions @ along
        return (self.gain * scaled).view_as(x)


def group_normalizer(num_channels: int, num_groups: int) -> nn.GroupNorm:
    """Group normalisation without parameters (Wu & He 2018).

    Raises:
        ConfigError: ``num_groups`` does not divide the number of channels.
    """
    if num_groups < 1 or num_channels % num_groups:
        divisors = [d for d in range(1, num_channels + 1) if num_channels % d == 0]
        raise ConfigError(
            f"num_groups={num_groups}: does not divide the {num_channels} channels; choose one of {', '.join(map(str, divisors))}"
        )
    return nn.GroupNorm(num_groups, num_channels, affine=False)
