"""Grey figures on black, brought upright and to the middle before their features are computed.

Handwriting leans this way and that, and the slant says nothing about the letter. The slant of an image is the regression of
columns on rows, weighted by brightness: :math:`a = \\mathrm{Cov}(x, y) / \\mathrm{Var}(y)`. A shear by -a undoes it, a shift brings the
centre of mass to the middle of the image (LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III,
"deslanted"). It is a fixed function of one image, so it costs no privacy, like a mirror image's features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.wrapper import Wrapper

_PIXEL_VARIANCE = 1 / 12  # of a position within its pixel: a line one pixel high has a slant of 0, not 0 / 0
_STEEPEST = 1.0
_ALGORITHM = 1


@dataclass(frozen=True, kw_only=True)
class DeskewConfig:
    """What sees the upright images: an extractor and its configuration."""

    extractor: str
    config: Any


class Deskew(Wrapper):
    """Another extractor's features of upright images; see :class:`~scatterdp.extractors.base.Extractor`.

    Args:
        extractor: takes grey images.

    Raises:
        ConfigError: it takes images in colour, whose background need not be dark.
    """

    name = "deskew"

    def __init__(self, extractor: Extractor) -> None:
        if extractor.input_shape[0] != 1:
            raise ConfigError(
                f"deskew: takes grey images, bright figures on black; these have {extractor.input_shape[0]} channels, leave it out"
            )
        super().__init__(extractor, DeskewConfig, preprocessing={"steepest": _STEEPEST}, algorithm=_ALGORITHM)

    def _features(self, images: Tensor) -> Tensor:
        """The extractor's features of :func:`deskewed` images."""
        return self.extractor(deskewed(images))


def deskewed(images: Tensor) -> Tensor:
    """Images without slant, their centres of mass in the middle; between pixels values are interpolated, outside is black.

    Args:
        images: ``(B, 1, H, W)`` float in [0, 1]; a black image stays as it is.

    Returns:
        The same shape, in [0, 1].
    """
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device, dtype=torch.float64)
    x = torch.arange(width, device=images.device, dtype=torch.float64)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    weight = images[:, 0].double()
    total = weight.sum((1, 2))
    weight = weight / total.clamp(min=1e-9)[:, None, None]
    rows = weight.sum(2)
    x_of_rows = weight @ x
    y_mean, x_mean = rows @ y, x_of_rows.sum(1)
    variance = rows @ y.square() - y_mean.square() + _PIXEL_VARIANCE
    slant = ((x_of_rows @ y - x_mean * y_mean) / variance).clamp(-_STEEPEST, _STEEPEST)
    # Where each new pixel comes from, in units of half the image: -1 and 1 are its edges.
    from_x = (x_mean[:, None, None] + x + slant[:, None, None] * y[:, None]) * (2 / width)
    from_y = (y_mean[:, None, None] + y[:, None]).expand_as(from_x) * (2 / height)
    places = torch.stack([from_x, from_y], -1).to(images.dtype)
    return F.grid_sample(images, places, mode="bilinear", padding_mode="zeros", align_corners=False).clamp(0, 1)
