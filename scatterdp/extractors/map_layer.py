"""A layer of patches on maps that another layer gave: principal components of their channels, then whitened patches of those.

Components and filters are fitted to the maps of synthetic images (Coates & Ng 2012, "Learning Feature Representations with K-means"). Extractors
that have such a layer name its code by their own ``_ALGORITHM``: a change here raises them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from scatterdp.extractors.patch_filters import SOURCES, make_map_filters
from scatterdp.extractors.patch_layer import Assignment, PatchLayer
from scatterdp.extractors.pooling import Pooling

#: Synthetic images that a layer is fitted to: fewer where they are large.
IMAGES, PIXELS, FEWEST_IMAGES = 1000, 1 << 22, 32


def images_to_fit(source: str, image_shape: tuple[int, int, int], *, seed: int) -> Tensor:
    """``(n, C, H, W)`` synthetic images of a key of :data:`SOURCES`."""
    _, height, width = image_shape
    count = max(FEWEST_IMAGES, min(IMAGES, PIXELS // (height * width)))
    return torch.from_numpy(SOURCES[source](count, image_shape, seed=seed))


class Components(NamedTuple):
    """Reduced maps are ``vectors · maps + bias``."""

    vectors: Tensor
    """``(components, channels)`` float32."""
    bias: Tensor
    """``(components, 1)`` float32."""


def principal_components(maps: Iterable[Tensor], count: int) -> Components:
    """The largest principal components of the channels of maps ``(b, channels, places)``, over all places."""
    total, products, places = np.zeros(()), np.zeros(()), 0
    for piece in maps:
        rows = piece.movedim(1, 2).flatten(0, 1).cpu().double().numpy()
        total, products, places = total + rows.sum(0), products + rows.T @ rows, places + len(rows)
    mean = total / places
    _, vectors = np.linalg.eigh(products / places - np.outer(mean, mean))
    vectors = vectors[:, ::-1][:, :count].T
    return Components(
        *(torch.from_numpy(np.ascontiguousarray(part)).float() for part in (vectors, -vectors @ mean[:, None]))
    )


def reduced(maps: Tensor, components: Components) -> Tensor:
    """``(b, channels, places) -> (b, components, places)``; image by image, so that a row is the same in every batch."""
    if not len(maps):
        return maps.new_empty(0, len(components.vectors), maps.shape[2])
    return torch.stack([torch.addmm(components.bias, components.vectors, each) for each in maps])


class MapLayer(NamedTuple):
    """Pooled features of maps; on a CPU unless moved."""

    components: Components
    layer: PatchLayer
    map_shape: tuple[int, int, int]
    """``(components, h, w)``."""

    @classmethod
    def fitted(
        cls,
        maps: Callable[[], Iterable[Tensor]],
        map_shape: tuple[int, int, int],
        *,
        patches: int,
        size: int,
        threshold: float,
        whitening: float,
        assignment: Assignment,
        pooling: Pooling,
        seed: int,
    ) -> Self:
        """The layer that fits synthetic images' maps.

        Args:
            maps: gives them, ``(b, channels, places)`` at a time, as often as it is called.
            map_shape: ``(components, h, w)``.
            patches, size, threshold, whitening, assignment, pooling, seed: as in :mod:`scatterdp.extractors.patches`.
        """
        components = principal_components(maps(), map_shape[0])
        reduced_maps = torch.cat([reduced(piece.cpu(), components) for piece in maps()])
        filters = make_map_filters(
            reduced_maps.unflatten(2, map_shape[1:]).numpy(), count=patches, size=size, whitening=whitening, seed=seed
        )
        layer = PatchLayer(
            map_shape, filters, pooling=pooling, threshold=threshold, assignment=assignment, mirror=False
        )
        return cls(components, layer, map_shape)

    def __call__(self, maps: Tensor) -> Tensor:
        """``(b, channels, places)`` of this layer's device ``-> (b, outputs, cells)``."""
        return self.layer(reduced(maps, self.components).unflatten(2, self.map_shape[1:]))

    def of_scaled(self, mean: Tensor, scale: Tensor) -> Self:
        """The same layer of maps that are not yet ``(maps - mean) · scale``, both ``(channels,)`` in double precision."""
        vectors, bias = (part.double() for part in self.components)
        vectors = vectors * scale
        return self._replace(components=Components(vectors.float(), (bias - vectors @ mean[:, None]).float()))

    def to(self, device: torch.device | str) -> Self:
        """The layer on a device."""
        components = Components(*(part.to(device) for part in self.components))
        return self._replace(components=components, layer=self.layer.to(device))
