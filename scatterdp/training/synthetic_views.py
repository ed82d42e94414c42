"""Features of pairs of views of synthetic images: they tell which changes of features carry no meaning.

The views are a data set like any other, so that their features can be cached like any other's and a second run finds them. They come from a seed, and no
private number enters.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from scatterdp.cache import FeatureCache, Split, extract_features
from scatterdp.datasets import Dataset
from scatterdp.datasets.images import to_channels_first_float
from scatterdp.errors import CacheError
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.synthetic import dead_leaves, photographic_leaves, random_views, wavelet_marginals

logger = logging.getLogger(__name__)

NUM_IMAGES = 4000
PAIRS = 2  # of views of an image
_BATCH = 128
_SAMPLE = 200  # images as they are
_SEED = 77
_KINDS = ("photographic leaves", "dead leaves", "wavelets")


def images_for(image_shape: tuple[int, int, int], count: int) -> Tensor:
    """``(count, C, H, W)`` synthetic images: half dead leaves in photographs' colours, a quarter in any, a quarter sparse wavelets.

    Args:
        image_shape: ``(C, H, W)``, C = 1 or 3.
        count: a multiple of four.
    """
    quarter = count // 4
    images = [
        photographic_leaves(2 * quarter, image_shape, seed=_SEED),
        dead_leaves(quarter, image_shape, seed=_SEED + 1),
        wavelet_marginals(quarter, image_shape, seed=_SEED + 2),
    ]
    return torch.from_numpy(np.concatenate(images))


def synthetic_views(image_shape: tuple[int, int, int]) -> Dataset:
    """The views as a data set. Of its training images the first half are one view of each pair and the second half the other, in the same order; the test
    images are some of the images as they are.

    Args:
        image_shape: ``(C, H, W)``, C = 1 or 3.
    """
    images = images_for(image_shape, NUM_IMAGES)
    kinds = np.repeat(np.arange(3), (NUM_IMAGES // 2, NUM_IMAGES // 4, NUM_IMAGES // 4))
    every = max(1, NUM_IMAGES // _SAMPLE)
    sample = _bytes(images[::every])
    views = np.empty((2 * PAIRS, NUM_IMAGES, *sample.shape[1:]), np.uint8)
    for number, (i, pair) in enumerate(itertools.product(range(2), range(PAIRS))):
        views[number] = _bytes(random_views(images, seed=2 * pair + i))
    return Dataset(
        name="synthetic-views",
        x_train=views.reshape(-1, *sample.shape[1:]),
        y_train=np.tile(kinds, 2 * PAIRS),
        x_test=sample,
        y_test=kinds[::every],
        class_names=_KINDS,
        public=True,
    )


def _bytes(images: Tensor) -> np.ndarray:
    """``(B, H, W)`` or ``(B, H, W, 3)`` uint8 of ``(B, C, H, W)`` in [0, 1]."""
    rounded = torch.cat([(batch * 255).round_().to(torch.uint8) for batch in images.split(_BATCH)])
    return rounded[:, 0].numpy() if rounded.shape[1] == 1 else rounded.movedim(1, 3).contiguous().numpy()


class SyntheticFeatures:
    """An extractor's features of :func:`synthetic_views`, computed each time that they are asked for; :meth:`cached` keeps them.

    Args:
        extractor: computes them.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self._cache: FeatureCache | None = None
        self._dtype = torch.float32  # that features are rounded to

    @contextmanager
    def cached(self, *, dtype: str = "float32", **how: Any) -> Iterator[Self]:
        """These features from a cache, which is made where it is missing; where it cannot be made, says so and computes the same numbers.

        Args:
            dtype: of the cache.
            how: the rest, as for :func:`scatterdp.cache.extract_features`.
        """
        with ExitStack() as stack:
            try:
                self._cache = stack.enter_context(extract_features(self._views, self.extractor, dtype=dtype, **how))
                del self._views  # as large as a small data set
            except CacheError as error:  # a folder that is full, locked or not to be written is no reason not to train
                logger.warning("features of synthetic images are computed and not kept: %s", error)
                self._dtype = getattr(torch, dtype)
            try:
                yield self
            finally:
                self._cache = None

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """``(b, K, h, w)`` float32 on the CPU, twice: of a view of each image, and of another view of the same images; PAIRS·NUM_IMAGES rows in all."""
        half = PAIRS * NUM_IMAGES
        return zip(self._rows("train", 0, half), self._rows("train", half, 2 * half), strict=True)

    def sample(self) -> Iterator[Tensor]:
        """``(b, K, h, w)`` of some images as they are."""
        return self._rows("test", 0, None)

    @cached_property
    def _views(self) -> Dataset:
        return synthetic_views(self.extractor.input_shape)

    def _rows(self, split: Split, first: int, stop: int | None) -> Iterator[Tensor]:
        if self._cache is not None:
            for _, rows in self._cache.iter_rows(split, _BATCH, first=first, stop=stop):
                yield torch.from_numpy(rows).float()
            return
        images = self._views.split(split)[0][first:stop]
        for start in range(0, len(images), _BATCH):
            batch = torch.from_numpy(to_channels_first_float(images[start : start + _BATCH]))
            yield self.extractor(batch).cpu().to(self._dtype).float()
