"""No features at all: the pixels, centred by public constants; what an end-to-end network reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from scatterdp.extractors.base import check_images, fingerprint
from scatterdp.extractors.scatternet import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class PixelsConfig:
    """Nothing to choose."""


class Pixels:
    """``(B, C, H, W)`` in [0, 1] to the same shape: RGB by ImageNet's public mean and deviation, else (x - 0.5) / 0.5.

    Args:
        config: nothing to choose.
        input_shape: ``(C, H, W)``.
    """

    name = "pixels"

    def __init__(self, config: PixelsConfig, input_shape: tuple[int, int, int]) -> None:
        self.config = config
        self.input_shape = self.output_shape = input_shape
        channels = input_shape[0]
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        self.fingerprint = fingerprint(
            type(self).__name__, config, input_shape, preprocessing={"mean": mean, "std": std}, versions={}
        )
        self._mean, self._std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The pixels, centred; float32, on this device.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        return (images.to(self._mean.device, torch.float32) - self._mean) / self._std

    def to(self, device: torch.device | str) -> Self:
        """Move the constants to a device, in place."""
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self
