"""Patch features of another extractor's maps, such as a second layer on ScatterNet: ``map_patches(scatternet(mirror=True))``.

The maps' channels are standardised, reduced to a few components and their patches whitened, all as fits synthetic images
(:mod:`scatterdp.extractors.map_layer`); responses are thresholded on both sides and averaged over a coarse grid (:mod:`scatterdp.extractors.patches`). A fixed function of one image, at no
privacy cost. Maps whose places have seen a neighbourhood, as ScatterNet's have, need no larger patches than single places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import Extractor, blocks_of, check_images, fingerprint
from scatterdp.extractors.map_layer import FittedTo, MapLayer, Views, check_fitted_to, facts, images_to_fit
from scatterdp.extractors.patch_filters import MAP_PATCHES, SOURCES
from scatterdp.extractors.patch_layer import check_patch, layer_channels
from scatterdp.extractors.patches import MULTIPLE
from scatterdp.extractors.pooling import grid_pooling

_BATCH = 64
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class MapPatchesConfig:
    """What patch features of maps compute.

    Args:
        patches: K, the number of filters, a multiple of 32.
        size: side of a patch in places of the maps.
        threshold: t: features are max(r - t, 0) and max(-r - t, 0) of responses r, whose standard deviation is 1 on synthetic images.
        whitening: added to the eigenvalues of the covariance that is whitened; larger whitens less.
        components: of the channels that are kept; fewer where there are fewer channels.
        grid: pooling cells along the longer side of the maps; along the other one in proportion.
        source: the synthetic images that everything is fitted to.
        fitted_to: ``views``: two of each image, so that what changes between them counts less; ``images``: as they are.
        seed: of those images and patches.

    Raises:
        ConfigError: a value out of range.
    """

    patches: int = 512
    size: int = 1
    threshold: float = 0.45
    whitening: float = 0.3
    components: int = 64
    grid: int = 3
    source: str = "photographic_leaves"
    fitted_to: FittedTo = "views"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("patches", MULTIPLE), ("size", 1), ("components", 1), ("grid", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name}={value!r}: expected an integer ≥ {least}")
        if self.patches % MULTIPLE or self.patches > MAP_PATCHES:
            raise ConfigError(f"patches={self.patches}: expected a multiple of {MULTIPLE}, at most {MAP_PATCHES}")
        for name, least, most in (("threshold", 0, 100), ("whitening", 1e-6, 1e6)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"{name}={value!r}: expected a number from {least:g} to {most:g}")
        if self.source not in SOURCES:
            raise ConfigError(f"source={self.source!r}: expected one of {', '.join(SOURCES)}")
        check_fitted_to(self.fitted_to)


@dataclass(frozen=True, kw_only=True)
class _WrappedConfig:
    """Whose maps: an extractor and its configuration; and the layer."""

    extractor: str
    config: Any
    layer: MapPatchesConfig


class MapPatches:
    """Pooled patch features of maps; see :class:`~scatterdp.extractors.base.Extractor`.

    Args:
        extractor: gives the maps, of one kind.
        config: what to compute; the output is ``(2K, cells down, cells across)``, the positive parts first.

    Raises:
        ConfigError: features of several kinds side by side, or patches or cells that the maps are too small for.
    """

    name = "map_patches"

    def __init__(self, extractor: Extractor, config: MapPatchesConfig) -> None:
        if len(blocks_of(extractor)) > 1:
            raise ConfigError(f"map_patches: takes maps of one kind, {extractor.name} has several; give each its own")
        channels, height, width = extractor.output_shape
        self._map_shape = (min(config.components, channels), height, width)
        check_patch(self._map_shape, size=config.size, what="maps")
        if self._map_shape[0] * config.size**2 < 2:
            raise ConfigError(
                f"size={config.size}: a patch of maps of one channel has one value, and nothing is left of it when its mean is taken away; take larger patches"
            )
        rows, columns = height - config.size + 1, width - config.size + 1
        down, across = (max(1, round(config.grid * side / max(rows, columns))) for side in (rows, columns))
        self._pooling = grid_pooling(rows, columns, down, across=across)
        self.extractor, self.input_shape = extractor, extractor.input_shape
        self.output_shape = (layer_channels(config.patches, "soft"), down, across)
        self.config = _WrappedConfig(extractor=extractor.name, config=extractor.config, layer=config)
        preprocessing, versions = facts()
        self.fingerprint = fingerprint(
            type(self).__name__,
            _WrappedConfig(extractor=extractor.fingerprint, config=None, layer=config),
            self.input_shape,
            preprocessing={**preprocessing, "variance": _LEAST_VARIANCE},
            versions=versions,
        )
        self._device = torch.device("cpu")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, channels, cells down, cells across)`` of ``(B, C, H, W)`` images in [0, 1]; float32, on this device.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        layer = self._layer.to(self._device)
        maps = self.extractor(images).flatten(2).contiguous()
        return layer(maps).view(len(images), *self.output_shape)

    @cached_property
    def _layer(self) -> MapLayer:
        """Fitted when first needed: what is cached needs none."""
        config = self.config.layer
        views = images_to_fit(config.source, self.input_shape, seed=config.seed, to=config.fitted_to)
        maps = [self._maps(images) for images in views]
        places = maps[0].double().movedim(1, 0).flatten(1)
        mean, scale = places.mean(1), (places.var(1) + _LEAST_VARIANCE).rsqrt()

        def standardised() -> Iterator[Views]:
            yield tuple(((each - mean[:, None]) * scale[:, None]).float() for each in maps)

        return MapLayer.fitted(
            standardised,
            self._map_shape,
            patches=config.patches,
            size=config.size,
            threshold=config.threshold,
            whitening=config.whitening,
            assignment="soft",
            pooling=self._pooling,
            seed=config.seed,
        ).of_scaled(mean, scale)

    def _maps(self, images: Tensor) -> Tensor:
        """The extractor's ``(n, channels, places)`` of synthetic images."""
        return torch.cat([self.extractor(batch).flatten(2).cpu() for batch in images.split(_BATCH)])

    def to(self, device: torch.device | str) -> Self:
        """Choose the device, in place."""
        self._device = torch.device(device)
        self.extractor.to(device)
        return self
