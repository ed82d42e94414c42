r"""Patch features: how much each image region resembles each of many whitened synthetic patches.

With x a patch made mean 0 and contrast 1, and filters :math:`w_k, b_k` of :mod:`scatterdp.extractors.patch_filters`, the response is
:math:`r_k = w_k \cdot x + b_k`. Responses become features by an assignment and are averaged over the cells of a grid:

| ``assignment`` | features of a patch | source |
|---|---|---|
| ``soft`` | max(r - t, 0) and max(-r - t, 0) | Coates & Ng 2011, section 3.3 |
| ``abs`` | max(abs(r) - t, 0) | one-sided form of it |
| ``triangle`` | max(0, mean_k d_k - d_k), d_k the distance of whitened patch and filter | Coates, Lee & Ng 2011, section 3.2 |
| ``hard`` | 1 for the filter of the largest response, else 0 | the same |

With ``mirror=True`` features are averaged with those of the mirror image, by filters and cells mirrored: a free invariance.

How they are computed: :mod:`scatterdp.extractors.patch_layer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, get_args

import torch
from torch import Tensor

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import check_images, fingerprint
from scatterdp.extractors.patch_filters import CONTRAST, IMAGES, PATCHES, SOURCES, make_patch_filters
from scatterdp.extractors.patch_layer import Assignment, PatchLayer, layer_channels, layer_pooling

_ALGORITHM = 1  # of filters and features: another number is another fingerprint
MULTIPLE = 32  # of filters, for the kernel's blocks


@dataclass(frozen=True, kw_only=True)
class PatchesConfig:
    """What patch features compute.

    Args:
        patches: K, the number of filters, a multiple of 32.
        size: side of a patch in pixels.
        threshold: t, for ``soft`` and ``abs``.
        whitening: added to the eigenvalues of the patches' covariance; larger whitens less.
        grid: pooling cells a side.
        mirror: average with the mirror image's features.
        assignment: see the module.
        source: the synthetic images that filters are patches of.
        seed: of those images and patches.

    Raises:
        ConfigError: a value out of range.
    """

    patches: int = 512
    size: int = 6
    threshold: float = 0.8
    whitening: float = 0.1
    grid: int = 3
    mirror: bool = True
    assignment: Assignment = "soft"
    source: str = "dead_leaves"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("patches", MULTIPLE), ("size", 2), ("grid", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name}={value!r}: expected an integer ≥ {least}")
        if self.patches % MULTIPLE or self.patches > PATCHES:
            raise ConfigError(f"patches={self.patches}: expected a multiple of {MULTIPLE}, at most {PATCHES}")
        for name in ("threshold", "whitening"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}: expected a number")
        if not 0 <= self.threshold <= 100:
            raise ConfigError(f"threshold={self.threshold}: expected a number from 0 to 100")
        if not 1e-6 <= self.whitening <= 1e6:
            raise ConfigError(f"whitening={self.whitening}: expected a number from 1e-6 to 1e6")
        if type(self.mirror) is not bool:
            raise ConfigError(f"mirror={self.mirror!r}: expected True or False")
        if self.assignment not in get_args(Assignment):
            raise ConfigError(f"assignment={self.assignment!r}: expected one of {', '.join(get_args(Assignment))}")
        if self.source not in SOURCES:
            raise ConfigError(f"source={self.source!r}: expected one of {', '.join(SOURCES)}")


def default_config(input_shape: tuple[int, int, int], **changes: Any) -> PatchesConfig:
    """Colour images are mirrored, grey ones not: the mirror image of a letter is another sign.

    Args:
        input_shape: ``(C, H, W)``.
        changes: fields of :class:`PatchesConfig` to set otherwise.
    """
    return PatchesConfig(**{"mirror": input_shape[0] == 3, **changes})


class Patches:
    """Pooled patch features; see :class:`~scatterdp.extractors.base.Extractor`.

    Args:
        config: what to compute.
        input_shape: ``(C, H, W)``; ``soft`` gives ``(2K, grid, grid)``, the positive parts first, the others ``(K, grid, grid)``.

    Raises:
        ConfigError: images smaller than a patch, or a grid finer than the positions.
    """

    name = "patches"

    def __init__(self, config: PatchesConfig, input_shape: tuple[int, int, int]) -> None:
        self.config, self.input_shape = config, input_shape
        self._pooling = layer_pooling(input_shape, size=config.size, grid=config.grid)
        self.output_shape = (layer_channels(config.patches, config.assignment), config.grid, config.grid)
        self.fingerprint = fingerprint(
            type(self).__name__,
            config,
            input_shape,
            preprocessing={"contrast": CONTRAST, "images": IMAGES, "patches": PATCHES},
            versions={"algorithm": str(_ALGORITHM)},
        )
        self._device = torch.device("cpu")

    @cached_property
    def layer(self) -> PatchLayer:
        """Made when first needed: what is cached needs none."""
        config = self.config
        filters = make_patch_filters(
            self.input_shape,
            count=config.patches,
            size=config.size,
            whitening=config.whitening,
            source=config.source,
            seed=config.seed,
        )
        return PatchLayer(
            self.input_shape,
            filters,
            pooling=self._pooling,
            threshold=config.threshold,
            assignment=config.assignment,
            mirror=config.mirror,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, channels, grid, grid)`` of ``(B, C, H, W)`` images in [0, 1]; float32, on this device.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        features = self.layer.to(self._device)(images.to(self._device, torch.float32).contiguous())
        return features.view(len(images), *self.output_shape)

    def to(self, device: torch.device | str) -> Self:
        """Choose the device, in place."""
        self._device = torch.device(device)
        return self
