"""A layer of patches on maps that another layer gave: some components of their channels, then whitened patches of those.

Components and filters are fitted to the maps of synthetic images (Coates & Ng 2012, "Learning Feature Representations with K-means"), by default to those of
two views of each, slightly moved and in another light: components have the largest variance over the images for their variance between the
views of one (linear discriminant analysis with every image a class of its own, Fisher 1936), and patches are whitened by differences between
views. Extractors that have such a layer name :func:`facts` in their fingerprints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from torch import Tensor

from scatterdp.errors import ConfigError
from scatterdp.extractors.patch_filters import MAP_CONTRAST, MAP_PATCHES, SOURCES, PatchFilters, make_map_filters
from scatterdp.extractors.patch_layer import Assignment, PatchLayer
from scatterdp.extractors.pooling import Pooling
from scatterdp.extractors.synthetic import ALIGNED, random_views

#: Fitted to two views of synthetic images, or to the images as they are.
FittedTo = Literal["views", "images"]
FITTED_TO: tuple[FittedTo, ...] = get_args(FittedTo)
#: Maps ``(b, channels, places)`` of the images, or of one view of each and of another.
Views = tuple[Tensor, ...]

_ALGORITHM = 2
#: Of the mean variance between views, added to every direction's.
_RIDGE = 0.1
#: Synthetic images that a layer is fitted to: fewer where they are large.
IMAGES, PIXELS, FEWEST_IMAGES = 1000, 1 << 22, 32


def check_fitted_to(value: str) -> None:
    """Refuse what is not :data:`FittedTo`.

    Raises:
        ConfigError: names what there is.
    """
    if value not in FITTED_TO:
        raise ConfigError(f"fitted_to={value!r}: expected one of {', '.join(FITTED_TO)}")


def facts() -> tuple[dict[str, Any], dict[str, str]]:
    """What a layer depends on beside its settings, for a fingerprint: preprocessing, and the version of this code, raised with every change of it."""
    images = [FEWEST_IMAGES, IMAGES, PIXELS]
    return {"contrast": MAP_CONTRAST, "images": images, "patches": MAP_PATCHES}, {"algorithm": str(_ALGORITHM)}


def images_to_fit(source: str, image_shape: tuple[int, int, int], *, seed: int, to: FittedTo) -> tuple[Tensor, ...]:
    """``(n, C, H, W)`` synthetic images of a key of :data:`SOURCES`, or two views of each."""
    _, height, width = image_shape
    count = max(FEWEST_IMAGES, min(IMAGES, PIXELS // (height * width)))
    return views_to_fit(torch.from_numpy(SOURCES[source](count, image_shape, seed=seed)), seed=seed, to=to)


def views_to_fit(images: Tensor, *, seed: int, to: FittedTo = "views") -> tuple[Tensor, ...]:
    """The images, or two views of each."""
    if to == "images":
        return (images,)
    return tuple(random_views(images, seed=2 * seed + i, changes=ALIGNED) for i in range(2))


class Components(NamedTuple):
    """Reduced maps are ``vectors · maps + bias``."""

    vectors: Tensor
    """``(components, channels)`` float32."""
    bias: Tensor
    """``(components, 1)`` float32."""


def fitted_components(views: Iterable[Views], count: int) -> Components:
    """Components of the channels of maps, over all places: of the largest variance for their variance between two views of an image, else the principal
    ones; their mean variance is 1."""
    total, products, between, places = np.zeros(()), np.zeros(()), None, 0
    for maps, *others in views:
        rows = _rows(maps)
        total, products, places = total + rows.sum(0), products + rows.T @ rows, places + len(rows)
        if others:
            differences = rows - _rows(others[0])
            between = (0 if between is None else between) + differences.T @ differences
    mean = total / places
    covariance = products / places - np.outer(mean, mean)
    whitening = np.eye(len(mean))
    if between is not None:
        eigenvalues, axes = np.linalg.eigh(between / places / 2)
        whitening = (axes / np.sqrt(eigenvalues.clip(0) + _RIDGE * eigenvalues.mean())) @ axes.T
    variances, vectors = np.linalg.eigh(whitening @ covariance @ whitening)
    vectors = vectors[:, ::-1][:, :count].T @ whitening / np.sqrt(variances[::-1][:count].mean())
    return Components(
        *(torch.from_numpy(np.ascontiguousarray(part)).float() for part in (vectors, -vectors @ mean[:, None]))
    )


def _rows(maps: Tensor) -> np.ndarray:
    """``(b, channels, places) -> (b · places, channels)`` in double precision."""
    return maps.movedim(1, 2).flatten(0, 1).cpu().double().numpy()


def reduced(maps: Tensor, components: Components) -> Tensor:
    """``(b, channels, places) -> (b, components, places)``; image by image, so that a row is the same in every batch."""
    if not len(maps):
        return maps.new_empty(0, len(components.vectors), maps.shape[2])
    return torch.stack([torch.addmm(components.bias, components.vectors, each) for each in maps])


def fitted_filters(
    views: Iterable[Views],
    components: Components,
    map_shape: tuple[int, int, int],
    *,
    count: int,
    size: int,
    whitening: float,
    seed: int,
) -> PatchFilters:
    """Filters for patches of reduced maps ``(components, h, w)``; :func:`make_map_filters`."""
    pieces = [[reduced(maps.cpu(), components) for maps in view] for view in views]
    maps, *others = (
        torch.cat(list(column)).unflatten(2, map_shape[1:]).numpy() for column in zip(*pieces, strict=True)
    )
    return make_map_filters(maps, others[0] if others else None, count=count, size=size, whitening=whitening, seed=seed)


class MapLayer(NamedTuple):
    """Pooled features of maps; on a CPU unless moved."""

    components: Components
    layer: PatchLayer
    map_shape: tuple[int, int, int]
    """``(components, h, w)``."""

    @classmethod
    def fitted(
        cls,
        views: Callable[[], Iterable[Views]],
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
            views: gives them, some at a time, as often as it is called.
            map_shape: ``(components, h, w)``.
            patches, size, threshold, whitening, assignment, pooling, seed: as in :mod:`scatterdp.extractors.patches`; the threshold in
                standard deviations of the responses to synthetic patches.
        """
        components = fitted_components(views(), map_shape[0])
        filters = fitted_filters(
            views(), components, map_shape, count=patches, size=size, whitening=whitening, seed=seed
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
