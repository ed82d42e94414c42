r"""Patch features of two layers: patches of the maps that patches give.

The first layer is :mod:`scatterdp.extractors.patches` with a fine grid. Its maps are reduced to a few components of their channels; the
second layer's filters are whitened patches of such maps (:mod:`scatterdp.extractors.map_layer`), thresholded and averaged over a coarse grid as in
the first (Coates & Ng 2012, "Learning Feature Representations with K-means"). Filters of the first, components and filters of the second all
come from synthetic images, so they cost no privacy.

With ``mirror=True`` features are averaged with those of the mirror image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import check_images, fingerprint
from scatterdp.extractors.map_layer import FittedTo, MapLayer, check_fitted_to, facts, images_to_fit
from scatterdp.extractors.patch_filters import MAP_PATCHES
from scatterdp.extractors.patch_layer import Assignment, layer_channels, layer_pooling
from scatterdp.extractors.patches import Patches, PatchesConfig

_SMALL = 16  # a side of images that get smaller patches
_MAP_VALUES = 1 << 24  # of the first layer, in memory at once


@dataclass(frozen=True, kw_only=True)
class DeepPatchesConfig(PatchesConfig):
    """What patch features of two layers compute: the settings of the second layer, whose patches are of maps, and those of the first.

    Args:
        first_patches: filters of the first layer, a multiple of 32.
        first_size: side of its patches in pixels.
        first_threshold: its t, for ``soft`` and ``abs``.
        first_whitening: added to the eigenvalues of its patches' covariance; larger whitens less.
        first_grid: its cells a side: the side of the maps that the second layer sees.
        first_assignment: see :mod:`scatterdp.extractors.patches`.
        components: of the maps' channels that are kept.
        patches: filters of the second layer, a multiple of 32.
        size: side of its patches in places of the maps.
        threshold: its t, for ``soft`` and ``abs``, in standard deviations of its responses to synthetic images.
        source: the synthetic images that everything is fitted to.
        fitted_to: ``views``: the second layer to two of each image, so that what changes between them counts less; ``images``: to images as they are.

    Raises:
        ConfigError: a value out of range.
    """

    first_patches: int = 256
    first_size: int = 6
    first_threshold: float = 0.8
    first_whitening: float = 0.1
    first_grid: int = 13
    first_assignment: Assignment = "soft"
    components: int = 128
    size: int = 2
    threshold: float = 0.45
    fitted_to: FittedTo = "views"

    def __post_init__(self) -> None:
        super().__post_init__()  # its own names first, so that what the first layer refuses is of the first
        with _of_first_layer():
            first = self.first_layer()
        if self.patches > MAP_PATCHES:
            raise ConfigError(f"patches={self.patches}: expected a multiple of 32, at most {MAP_PATCHES}")
        channels = layer_channels(first.patches, first.assignment)
        if type(self.components) is not int or not 1 <= self.components <= channels:
            raise ConfigError(f"components={self.components!r}: expected 1 to {channels}, the first layer's channels")
        check_fitted_to(self.fitted_to)

    def first_layer(self) -> PatchesConfig:
        """The first layer by itself, of the image as it is."""
        return PatchesConfig(
            patches=self.first_patches,
            size=self.first_size,
            threshold=self.first_threshold,
            whitening=self.first_whitening,
            grid=self.first_grid,
            assignment=self.first_assignment,
            mirror=False,
            source=self.source,
            seed=self.seed,
        )


@contextmanager
def _of_first_layer() -> Iterator[None]:
    """Messages name the setting that this extractor has."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"first_{error}") from error


def default_config(input_shape: tuple[int, int, int], **changes: Any) -> DeepPatchesConfig:
    """Colour images are mirrored, as by :mod:`scatterdp.extractors.patches`; the first grid is no finer than its positions.

    Args:
        input_shape: ``(C, H, W)``.
        changes: fields of :class:`DeepPatchesConfig` to set otherwise.
    """
    side = min(input_shape[1:])
    size = changes.get("first_size", 6 if side >= _SMALL else 3)
    positions = max(1, side - size + 1) if isinstance(size, int) else 1
    grid = min(13, positions // 2) if positions >= _SMALL // 2 else positions
    return DeepPatchesConfig(**{"mirror": input_shape[0] == 3, "first_size": size, "first_grid": grid, **changes})


class DeepPatches:
    """Pooled features of the second layer; see :class:`~scatterdp.extractors.base.Extractor`.

    Args:
        config: what to compute.
        input_shape: ``(C, H, W)``; ``soft`` gives ``(2K, grid, grid)``, the positive parts first, the others ``(K, grid, grid)``.

    Raises:
        ConfigError: images or maps smaller than a patch, a patch of too many values, or a grid finer than the positions.
    """

    name = "deep_patches"

    def __init__(self, config: DeepPatchesConfig, input_shape: tuple[int, int, int]) -> None:
        with _of_first_layer():
            self._first = Patches(config.first_layer(), input_shape)
        self.config, self.input_shape = config, input_shape
        self._map_shape = (config.components, config.first_grid, config.first_grid)
        self._pooling = layer_pooling(self._map_shape, size=config.size, grid=config.grid, what="first layer's maps")
        self.output_shape = (layer_channels(config.patches, config.assignment), config.grid, config.grid)
        preprocessing, versions = facts()
        self.fingerprint = fingerprint(
            type(self).__name__,
            config,
            input_shape,
            preprocessing=preprocessing,
            versions={**versions, "first": self._first.fingerprint},
        )
        self._device = torch.device("cpu")

    @cached_property
    def _second(self) -> MapLayer:
        """Fitted when first needed: what is cached needs none."""
        config = self.config
        views = images_to_fit(config.source, self.input_shape, seed=config.seed, to=config.fitted_to)
        return MapLayer.fitted(
            lambda: zip(*(self._first_maps(images) for images in views), strict=True),
            self._map_shape,
            patches=config.patches,
            size=config.size,
            threshold=config.threshold,
            whitening=config.whitening,
            assignment=config.assignment,
            pooling=self._pooling,
            seed=config.seed,
        )

    def _first_maps(self, images: Tensor) -> Iterator[Tensor]:
        """The first layer's maps ``(b, channels, places)``, a few images at a time."""
        size = max(1, _MAP_VALUES // math.prod(self._first.output_shape))
        for piece in images.split(size):
            yield self._first(piece).flatten(2)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, channels, grid, grid)`` of ``(B, C, H, W)`` images in [0, 1]; float32, on this device.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        features = self._of_view(images)
        if self.config.mirror:
            features = features.add_(self._of_view(images.flip(3))).div_(2)
        return features.view(len(images), *self.output_shape)

    def _of_view(self, images: Tensor) -> Tensor:
        second = self._second.to(self._device)
        return torch.cat([second(maps) for maps in self._first_maps(images)])

    def to(self, device: torch.device | str) -> Self:
        """Choose the device, in place."""
        self._device = torch.device(device)
        self._first.to(device)
        return self
