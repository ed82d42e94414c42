"""Several extractors' features side by side, as named blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import Extractor, blocks_of, check_images, fingerprint


@dataclass(frozen=True, kw_only=True)
class ConcatConfig:
    """The parts, by block name: each part's configuration and scale. Their code is named by their fingerprints."""

    parts: dict[str, Any]
    scales: dict[str, float]


class Concat:
    """Flat features of the parts, one after the other; see :class:`~scatterdp.extractors.base.Extractor`.

    Args:
        parts: extractors of the same images.
        scales: of each part, positive: what released statistics bring its channels' standard deviation to.

    The output's shape is ``(D, 1, 1)``: parts have grids of their own. A part of a kind that came before is named ``kind-2`` and so on.

    Raises:
        ConfigError: no parts, parts for other images, or scales that do not fit.
    """

    name = "concat"

    def __init__(self, parts: list[Extractor], scales: list[float]) -> None:
        if not parts:
            raise ConfigError("parts=[]: expected at least one extractor")
        if len({part.input_shape for part in parts}) != 1:
            raise ConfigError(f"parts: they take images of {', '.join(str(part.input_shape) for part in parts)}")
        if len(scales) != len(parts) or not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ConfigError(
                f"extractor: scales {', '.join(map(str, scales))}: expected a finite number > 0 before each part"
            )
        names: list[str] = []
        for part in parts:
            number = 1 + sum(name == part.name or name.startswith(f"{part.name}-") for name in names)
            names.append(part.name if number == 1 else f"{part.name}-{number}")
        self.parts = parts
        self.input_shape = parts[0].input_shape
        self.blocks = tuple(
            replace(block, name=f"{name}.{block.name}" if len(blocks) > 1 else name, scale=scale * block.scale)
            for name, blocks, scale in zip(names, map(blocks_of, parts), scales, strict=True)
            for block in blocks
        )
        self.output_shape = (sum(math.prod(part.output_shape) for part in parts), 1, 1)
        self.config = ConcatConfig(
            parts={name: part.config for name, part in zip(names, parts, strict=True)},
            scales=dict(zip(names, scales, strict=True)),
        )
        self.fingerprint = fingerprint(
            type(self).__name__,
            ConcatConfig(parts={}, scales=self.config.scales),
            self.input_shape,
            preprocessing={"parts": [part.fingerprint for part in parts]},
            versions={},
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, D, 1, 1)``.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        return torch.cat([part(images).flatten(1) for part in self.parts], 1)[:, :, None, None]

    def to(self, device: torch.device | str) -> Self:
        """Move the parts to a device, in place."""
        for part in self.parts:
            part.to(device)
        return self
