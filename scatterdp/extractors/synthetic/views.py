"""Random views of images: what may change in a picture while it stays a picture of the same thing.

A view is a crop, turned a little, in another light: brightness and contrast by up to 30 %, saturation by more, each colour shifted by up to 0.09.
:data:`ANYWHERE` crops 70 to 100 % of a side at a random place; in :data:`ALIGNED` views every place of the image stays about where it is. Differences
between views of one image say which changes of features carry no meaning; contrastive learning rests on the same idea (Chen et al. 2020, "A
Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_LIGHT = 0.3
_SHIFT = 0.09
_BATCH = 128  # computed at a time, which saves memory


@dataclass(frozen=True)
class Changes:
    """How much a view may differ.

    Args:
        sides: least and most of a crop, in sides of the image.
        move: how far its middle may be from the image's, in halves of a side; None: as far as the crop stays inside.
        degrees: it may be turned by, to either side.
        saturation: it may gain or lose, as a part of what it is.
    """

    sides: tuple[float, float]
    move: float | None
    degrees: float
    saturation: float


ANYWHERE = Changes(sides=(0.7, 1.0), move=None, degrees=10, saturation=0.6)
ALIGNED = Changes(sides=(0.88, 1.06), move=0.08, degrees=8, saturation=0.7)


def random_views(images: Tensor, *, seed: int, changes: Changes = ANYWHERE) -> Tensor:
    """One view of each image.

    Args:
        images: ``(B, C, H, W)`` float32 in [0, 1]; grey ones change brightness and contrast only.
        seed: another one gives other views.
        changes: how much they may differ.

    Returns:
        The same shape, in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(images), *shape, generator=generator) * (high - low) + low

    side, angle = uniform(*changes.sides), uniform(-changes.degrees, changes.degrees) * (math.pi / 180)
    right, down = (uniform(-1, 1) * (1 - side if changes.move is None else changes.move) for _ in range(2))
    brightness, contrast = (uniform(1 - _LIGHT, 1 + _LIGHT, 1, 1, 1) for _ in range(2))
    saturation = uniform(1 - changes.saturation, 1 + changes.saturation, 1, 1, 1)
    shift = uniform(-_SHIFT, _SHIFT, images.shape[1], 1, 1)
    views = torch.empty_like(images)
    drawn = (side, angle, right, down, brightness, contrast, saturation, shift)
    for view, *batch in zip(*(every.split(_BATCH) for every in (views, images, *drawn)), strict=True):
        view.copy_(_view(*batch))
    return views


def _view(
    images: Tensor,
    side: Tensor,
    angle: Tensor,
    right: Tensor,
    down: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    shift: Tensor,
) -> Tensor:
    views = crop(images, side=side, angle=angle, right=right, down=down) * brightness
    views = _further_from(views.mean((1, 2, 3), keepdim=True), views, contrast)
    views = _further_from(views.mean(1, keepdim=True), views, saturation)
    return (views + shift).clamp(0, 1)


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
