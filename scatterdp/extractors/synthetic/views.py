"""Random views of images: what may change in a picture while it stays a picture of the same thing.

A view is a crop of 70 to 100 % of a side at a random place, turned by up to 10 degrees, in another light: brightness and contrast by up to 30 %,
saturation by up to 60 %, each colour shifted by up to 0.09. Differences between views of one image say which changes of
features carry no meaning; contrastive learning rests on the same idea (Chen et al. 2020, "A Simple Framework for Contrastive Learning of
Visual Representations", arXiv 2002.05709).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST_SIDE = 0.7
_DEGREES = 10.0
_LIGHT = 0.3
_SATURATION = 0.6
_SHIFT = 0.09


def random_views(images: Tensor, *, seed: int) -> Tensor:
    """One view of each image.

    Args:
        images: ``(B, C, H, W)`` float32 in [0, 1]; grey ones change brightness and contrast only.
        seed: another one gives other views.

    Returns:
        The same shape, in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(images), *shape, generator=generator) * (high - low) + low

    side, angle = uniform(_LEAST_SIDE, 1.0), uniform(-_DEGREES, _DEGREES) * (math.pi / 180)
    right, down = (uniform(-1, 1) * (1 - side) for _ in range(2))
    views = crop(images, side=side, angle=angle, right=right, down=down)

    views = views * uniform(1 - _LIGHT, 1 + _LIGHT, 1, 1, 1)
    views = _further_from(views.mean((1, 2, 3), keepdim=True), views, uniform(1 - _LIGHT, 1 + _LIGHT, 1, 1, 1))
    grey = views.mean(1, keepdim=True)
    views = _further_from(grey, views, uniform(1 - _SATURATION, 1 + _SATURATION, 1, 1, 1))
    views = views + uniform(-_SHIFT, _SHIFT, images.shape[1], 1, 1)
    return views.clamp(0, 1)


def crop(images: Tensor, *, side: Tensor, angle: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """A rectangle of each image, turned, at the image's own size; between pixels values are interpolated, outside the image is its reflection.

    Args:
        images: ``(B, C, H, W)`` floating point.
        side: ``(B,)`` of the rectangle, in sides of the image.
        angle: ``(B,)`` in radians.
        right, down: ``(B,)`` its middle from the image's, in halves of the image's sides.
    """
    cosine, sine = side * angle.cos(), side * angle.sin()
    maps = torch.stack([cosine, -sine, right, sine, cosine, down], 1).view(-1, 2, 3)
    places = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="reflection", align_corners=False)


def _further_from(centre: Tensor, images: Tensor, times: Tensor) -> Tensor:
    return centre + times * (images - centre)
