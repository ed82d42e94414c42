"""Filters for patches of images, or of other filters' maps, from synthetic images alone: no data set is read, so they cost no privacy.

Random patches of dead leaves, or of their maps, are made mean 0 and contrast 1 and whitened; some of them, whitened and of unit
length, are the filters (Coates & Ng 2011, "The Importance of Encoding Versus Training"; Thiry et al. 2021, arXiv 2101.07528, with
natural patches). Whitening is linear, so filter and whitening are one linear map of the normalised patch.

Patches of images are whitened by their own covariance, patches of maps by that of *differences* between two views of an image: what changes with the
light, or when an image moves a little, carries no meaning, and then changes all responses alike (Fisher 1936).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scatterdp.extractors.synthetic import GENERATORS, Generator, photographic_leaves

#: Added to a patch's variance before it is divided by its square root: 10 grey levels squared, so that flat patches stay flat.
CONTRAST = 10 / 255**2
IMAGES = 1000
MOST_PIXELS = 96  # a side of the synthetic images: larger ones take long and show patches of the same kinds
PATCHES = 200_000
MAP_PATCHES = 30_000  # of maps: their patches have many more values
#: Of the mean square of the maps, added to that of a patch of theirs.
MAP_CONTRAST = 0.01
#: The images that filters can be made from, by name.
SOURCES: dict[str, Generator] = {**GENERATORS, "photographic_leaves": photographic_leaves}


@dataclass(frozen=True, kw_only=True)
class PatchFilters:
    """Responses of a normalised patch x are ``weight · x + bias``.

    Args:
        weight: ``(K, C, p, p)`` float32, each filter's values of mean 0 where patches are centred.
        bias: ``(K,)`` float32.
        whitening: ``(C·p·p, C·p·p)`` float64, symmetric.
        mean: ``(C·p·p,)`` float64, of normalised patches.
        contrast: added to a patch's variance before it is divided by its square root.
        centred: whether a patch's mean is taken from it.
    """

    weight: np.ndarray
    bias: np.ndarray
    whitening: np.ndarray
    mean: np.ndarray
    contrast: float = CONTRAST
    centred: bool = True


def make_patch_filters(
    image_shape: tuple[int, int, int], *, count: int, size: int, whitening: float, source: str, seed: int
) -> PatchFilters:
    """Filters from synthetic images of this shape.

    Args:
        image_shape: ``(C, H, W)``.
        count: K.
        size: p, the patch's side in pixels.
        whitening: added to the covariance's eigenvalues; larger whitens less.
        source: a key of :data:`SOURCES`.
        seed: of images and patches.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    channels, height, width = image_shape
    shape = (channels, min(height, MOST_PIXELS), min(width, MOST_PIXELS))
    patches = _random_patches(SOURCES[source](IMAGES, shape, seed=seed), size, PATCHES, generator)
    normal = normalized(patches, CONTRAST)
    covariance = np.cov(normal, rowvar=False).reshape(normal.shape[1], -1)
    return _chosen(normal, covariance, (channels, size, size), count, whitening, generator)


def make_map_filters(
    maps: np.ndarray, others: np.ndarray | None, *, count: int, size: int, whitening: float, seed: int
) -> PatchFilters:
    """Filters for patches of maps: as of images, but patches keep their mean, for what the channels' mean is depends on their basis.

    Responses have standard deviation 1 over all patches and filters.

    Args:
        maps: ``(n, C, h, w)`` of synthetic images.
        others: the same of another view of each; None: whiten by the patches' own covariance.
        count: K, at most :data:`MAP_PATCHES`.
        size: p, the patch's side in positions.
        whitening: added to the eigenvalues of the covariance that is whitened, whose trace is that of the patches' own.
        seed: of the choice of patches.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    views = [maps] if others is None else [maps, others]
    drawn = _random_patches(np.concatenate(views, 1), size, MAP_PATCHES, generator)
    patches, *another = np.split(drawn, len(views), axis=1)
    contrast = MAP_CONTRAST * float(np.square(patches).mean())
    normal = normalized(patches, contrast, centred=False)
    covariance = np.cov(normal, rowvar=False).reshape(normal.shape[1], -1)
    whitened = covariance
    if another:
        differences = normal - normalized(another[0], contrast, centred=False)
        whitened = differences.T @ differences
        whitened *= np.trace(covariance) / np.trace(whitened)
    filters = _chosen(
        normal, whitened, (maps.shape[1], size, size), count, whitening, generator, contrast=contrast, centred=False
    )
    weight = filters.weight.reshape(count, -1).astype(np.float64)
    spread = np.sqrt(np.einsum("kc,cd,kd->k", weight, covariance, weight, optimize=True).mean())
    return replace(
        filters,
        weight=(filters.weight / spread).astype(np.float32),
        bias=(filters.bias / spread).astype(np.float32),
        whitening=filters.whitening / spread,
    )


def _chosen(
    patches: np.ndarray,
    covariance: np.ndarray,
    shape: tuple[int, int, int],
    count: int,
    whitening: float,
    generator: np.random.Generator,
    *,
    contrast: float = CONTRAST,
    centred: bool = True,
) -> PatchFilters:
    """Some of the normalised patches ``(n, C·p·p)``, whitened by a covariance, of length 1, as filters."""
    mean = patches.mean(0)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    whiten = (vectors / np.sqrt(eigenvalues.clip(0) + whitening)) @ vectors.T
    chosen = (patches[generator.permutation(len(patches))[:count]] - mean) @ whiten
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
    weight = chosen @ whiten
    bias = -weight @ mean
    if centred:
        weight -= weight.mean(1, keepdims=True)  # normalised patches have mean 0: no response changes
    return PatchFilters(
        weight=weight.reshape(count, *shape).astype(np.float32),
        bias=bias.astype(np.float32),
        whitening=whiten,
        mean=mean,
        contrast=contrast,
        centred=centred,
    )


def normalized(patches: np.ndarray, contrast: float, *, centred: bool = True) -> np.ndarray:
    """Each row ``(n, C·p·p)`` less its mean, divided by the root of its variance and ``contrast``; not ``centred``, the mean stays and
    the variance is the one around 0."""
    if centred:
        patches = patches - patches.mean(1, keepdims=True)
        return patches / np.sqrt(patches.var(1, ddof=1, keepdims=True) + contrast)
    squares = np.square(patches).sum(1, keepdims=True) / (patches.shape[1] - 1)
    return patches / np.sqrt(squares + contrast)


def _random_patches(images: np.ndarray, size: int, number: int, generator: np.random.Generator) -> np.ndarray:
    count, channels, height, width = images.shape
    image = generator.integers(count, size=number)
    top, left = (generator.integers(side - size + 1, size=number) for side in (height, width))
    patches = np.empty((number, channels, size, size))
    for y in range(size):
        for x in range(size):
            patches[:, :, y, x] = images[image, :, top + y, left + x]
    return patches.reshape(number, -1)
