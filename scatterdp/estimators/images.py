"""Rows of features that are computed from images when they are asked for, so that nothing but the images and the result is held."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from scatterdp.datasets.images import to_channels_first_float
from scatterdp.estimators.inputs import image_shape
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Extractor, blocks_of
from scatterdp.extractors.reference import reference_features
from scatterdp.heads import Standardize
from scatterdp.linear import Matrix

_IMAGES_AT_ONCE = 256
_HALF_ABOVE = 2**30  # bytes of the training rows in single precision


@functools.lru_cache(maxsize=4)
def extractor_for(specification: str, shape: tuple[int, int, int]) -> Extractor:
    """The extractor of a specification for images ``(C, H, W)``; made once."""
    return make_extractor(specification, shape)


class ImageRows:
    """``(N, D)`` features of ``(N, H, W[, 3])`` uint8 images, by slices; what :func:`scatterdp.linear.fit_linear` reads once.

    Rows are float16 where all of them would take more than 1 GiB as float32: a matter of N and D, which are public.
    """

    def __init__(self, images: Matrix, extractor: Extractor, scale: Standardize) -> None:
        self.images, self.extractor, self.scale = images, extractor, scale
        self.shape = (images.shape[0], int(np.prod(extractor.output_shape)))
        self.dtype = np.dtype(np.float16 if 4 * self.shape[0] * self.shape[1] > _HALF_ABOVE else np.float32)

    def __getitem__(self, rows: slice) -> np.ndarray:
        block = np.asarray(self.images[rows])
        out = np.empty((len(block), self.shape[1]), self.dtype)
        for start in range(0, len(block), _IMAGES_AT_ONCE):
            part = block[start : start + _IMAGES_AT_ONCE]
            features = features_of(self.extractor, part)
            out[start : start + len(part)] = self.scale(features).flatten(1).numpy()
        return out


def features_of(extractor: Extractor, images: np.ndarray) -> Tensor:
    """``(B, K, h, w)`` float32 features of ``(B, H, W[, 3])`` uint8 images."""
    assert image_shape(images) == extractor.input_shape
    return extractor(torch.from_numpy(to_channels_first_float(images)))


def public_scale(extractor: Extractor) -> Standardize:
    """Every channel to mean 0 and standard deviation 1 (its block's scale) on synthetic images: no private number is in it."""
    reference = reference_features(extractor).flatten(1)
    means, scales = [], []
    blocks = blocks_of(extractor)
    parts = reference.split([int(np.prod(block.shape)) for block in blocks], 1)
    for block, part in zip(blocks, parts, strict=True):
        channels, height, width = block.shape
        values = part.unflatten(1, (channels, -1)).transpose(0, 1).flatten(1).double()
        deviation = values.std(1)
        deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.ones_like(deviation))
        repeats = 1 if block.shape == extractor.output_shape else height * width
        means.append(values.mean(1).repeat_interleave(repeats))
        scales.append((block.scale / deviation).repeat_interleave(repeats))
    return Standardize(torch.cat(means), torch.cat(scales))


def channels_of(extractor: Extractor) -> int | None:
    """K of ``(K, h, w)`` where there are several places, else None."""
    channels, height, width = extractor.output_shape
    return channels if height * width > 1 else None
