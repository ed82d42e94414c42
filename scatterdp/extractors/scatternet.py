"""ScatterNet: the wavelet scattering transform, a fixed two-layer convolutional network without training.

    S₀x = x ⋆ φ,   S₁x = |x ⋆ ψ_{j₁θ₁}| ⋆ φ,   S₂x = ||x ⋆ ψ_{j₁θ₁}| ⋆ ψ_{j₂θ₂}| ⋆ φ   (j₁ < j₂)

subsampled by 2^J, each colour channel on its own (Bruna & Mallat 2013; Oyallon & Mallat 2015; under differential
privacy Tramèr & Boneh 2021). Filters and transform are Kymatio's (Andreux et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, Self, get_args

import torch

# Not kymatio.torch: that imports the 3D transform too, which needs a function SciPy 1.17 has dropped.
from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import check_images, fingerprint

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Normalize = Literal["imagenet", "none"]


@dataclass(frozen=True, kw_only=True)
class ScatterNetConfig:
    """What a ScatterNet computes.

    Args:
        J: the scale; features average over about 2^J × 2^J pixels and the output is 2^J times smaller a side.
        L: number of wavelet orientations over half a turn.
        max_order: 1, or 2 for second-order coefficients too.
        normalize: ``"imagenet"`` subtracts ImageNet's public mean colour and divides by its standard deviation
            (RGB only); ``"none"`` leaves [0, 1] as it is.

    Raises:
        ConfigError: a value out of range.

    >>> ScatterNetConfig(J=0)
    Traceback (most recent call last):
        ...
    scatterdp.errors.ConfigError: J=0: expected an integer ≥ 1
    """

    J: int = 2
    L: int = 8
    max_order: int = 2
    normalize: Normalize = "none"

    def __post_init__(self) -> None:
        for name in ("J", "L"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name}={value!r}: expected an integer ≥ 1")
        if type(self.max_order) is not int or self.max_order not in (1, 2):
            raise ConfigError(f"max_order={self.max_order!r}: expected 1 or 2")
        if self.normalize not in get_args(Normalize):
            raise ConfigError(f"normalize={self.normalize!r}: expected 'imagenet' (RGB images) or 'none'")


def default_config(input_shape: tuple[int, int, int], **changes: Any) -> ScatterNetConfig:
    """The published configuration for images of this shape: RGB is normalised, grey is not.

    Args:
        input_shape: ``(C, H, W)``.
        changes: fields of :class:`ScatterNetConfig` to set otherwise.

    >>> default_config((3, 32, 32)).normalize, default_config((1, 28, 28)).normalize
    ('imagenet', 'none')
    """
    return ScatterNetConfig(**{"normalize": "imagenet" if input_shape[0] == 3 else "none", **changes})


class ScatterNet:
    """The scattering transform of grey or RGB images; see :class:`~scatterdp.extractors.base.Extractor`.

    Channels are grouped by colour, and within a colour ordered as Kymatio orders them: order 0; order 1 by scale
    then orientation; order 2 by the first wavelet then the second. J=2, L=8 gives 1 + 16 + 64 = 81 a colour.

    Args:
        config: what to compute.
        input_shape: ``(C, H, W)``; MNIST's (1, 28, 28) gives (81, 7, 7), CIFAR-10's (3, 32, 32) gives (243, 8, 8).

    Raises:
        ConfigError: images smaller than 2^J, or ImageNet normalisation of images that are not RGB.
    """

    name = "scatternet"

    def __init__(self, config: ScatterNetConfig, input_shape: tuple[int, int, int]) -> None:
        channels, height, width = input_shape
        if channels < 1:
            raise ConfigError(f"input_shape={input_shape}: expected (C, H, W) with C ≥ 1")
        if min(height, width) < 2**config.J:
            raise ConfigError(
                f"J={config.J}: expected images of at least 2^J = {2**config.J} pixels a side, "
                f"these have {height}×{width}; take a smaller J"
            )
        if config.normalize == "imagenet" and channels != 3:
            raise ConfigError(
                f"normalize='imagenet': expected RGB images (3 channels), these have {channels}; take normalize='none'"
            )
        self.config = config
        self.input_shape = (channels, height, width)
        self._scattering = ScatteringTorch2D(config.J, (height, width), L=config.L, max_order=config.max_order)
        self.output_shape = (len(self.channel_orders), height // 2**config.J, width // 2**config.J)
        rgb_constants = config.normalize == "imagenet"
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if rgb_constants else ((0.0,) * channels, (1.0,) * channels)
        self.fingerprint = fingerprint(
            type(self).__name__,
            config,
            self.input_shape,
            preprocessing={"mean": mean, "std": std},
            versions={"kymatio": version("kymatio")},
        )
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._std = torch.tensor(std).view(-1, 1, 1)

    @cached_property
    def channel_orders(self) -> tuple[int, ...]:
        """Scattering order (0, 1 or 2) of each of the K output channels."""
        J, L = self.config.J, self.config.L
        one_colour = (0,) + (1,) * (J * L) + (2,) * (L * L * J * (J - 1) // 2 if self.config.max_order == 2 else 0)
        return one_colour * self.input_shape[0]

    @torch.no_grad()  # not inference_mode: its tensors could not be fed to a head that trains
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scattering coefficients ``(B, K, h, w)`` of ``(B, C, H, W)`` images in [0, 1]; float32, on this device.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        images = images.to(self._mean.device, torch.float32)
        if len(images) == 0:  # some FFT libraries refuse it
            return images.new_empty((0, *self.output_shape))
        normalised = ((images - self._mean) / self._std).contiguous()
        return self._scattering(normalised).reshape(len(images), *self.output_shape)

    def to(self, device: torch.device | str) -> Self:
        """Move filters and constants to a device, in place."""
        self._scattering.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self
