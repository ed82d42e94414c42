"""From an image of any size to what a pre-trained network was trained to see: crop, resize, centre. Each image by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scatterdp.errors import ConfigError
from scatterdp.extractors.scatternet import IMAGENET_MEAN, IMAGENET_STD

Triple = tuple[float, float, float]
Normalization = Literal["imagenet", "cifar", "none"]

#: Means and standard deviations of colours in [0, 1]; constants of public data sets, as trainers publish them.
NORMALIZATIONS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to an image in [0, 1] before the network.

    Args:
        size: side of the square that the network takes; None: images stay as they are.
        crop: the share of the shorter side that a central square keeps, before resizing.
        resize: ``bicubic`` and ``bilinear`` with smoothing where images shrink (as Pillow does); ``corner_bicubic`` without, from pixels'
            corners (as TensorFlow 1 does).
        mean, std: of each colour, subtracted and divided by.
        rgb: grey images become three equal colours.
    """

    size: int | None = 224
    crop: float = 0.875
    resize: Literal["bicubic", "bilinear", "corner_bicubic"] = "bicubic"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    rgb: bool = True

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ConfigError(f"image_size={self.size}: expected a whole number ≥ 1")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop={self.crop}: expected a share of the image, above 0 and at most 1")

    def __call__(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` in [0, 1] to ``(B, 3 or C, size, size)``, centred."""
        if self.rgb and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.size is not None and (self.crop < 1 or tuple(images.shape[2:]) != (self.size, self.size)):
            images = self._resized(self._cropped(images), self.size)
        if self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0):
            return images
        mean, std = (
            torch.tensor(v, dtype=images.dtype, device=images.device).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        return (images - mean) / std

    def _cropped(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        side = max(1, round(self.crop * min(height, width)))
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        return images[:, :, top : top + side, left : left + side]

    def _resized(self, images: Tensor, size: int) -> Tensor:
        if self.resize != "corner_bicubic":
            resized = F.interpolate(images, (size, size), mode=self.resize, antialias=True, align_corners=False)
            return resized.clamp(0, 1)
        side = images.shape[2]
        places = torch.arange(size, dtype=images.dtype, device=images.device) * (side / size)
        places = places * (2 / max(1, side - 1)) - 1  # -1 and 1 are the first and last pixels' middles
        grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=True).clamp(0, 1)
