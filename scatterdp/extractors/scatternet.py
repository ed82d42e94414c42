"""ScatterNet: the wavelet scattering transform, a fixed two-layer convolutional network without training.

    S₀x = x ⋆ φ,   S₁x = |x ⋆ ψ_{j₁θ₁}| ⋆ φ,   S₂x = ||x ⋆ ψ_{j₁θ₁}| ⋆ ψ_{j₂θ₂}| ⋆ φ   (j₁ < j₂)

subsampled by 2^J, each colour channel on its own (Bruna & Mallat 2013; Oyallon & Mallat 2015; under differential
privacy Tramèr & Boneh 2021). Filters are Kymatio's (Andreux et al. 2020). On a CPU
the transform is :mod:`scatterdp.extractors.scattering_kernel` where a C++ compiler is found, else Kymatio's; on CUDA it is
Kymatio's. The numbers agree to 1e-5.

With ``mirror=True`` features are folded with those of the mirror image: :mod:`scatterdp.extractors.mirror`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, Self, get_args

import numpy as np
import torch

# Not kymatio.torch: that imports the 3D transform too, which needs a function SciPy 1.17 has dropped.
from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import check_images, fingerprint
from scatterdp.extractors.compilation import KernelUnavailableError
from scatterdp.extractors.mirror import MirrorFold
from scatterdp.extractors.scattering_channels import Channel, scattering_channels, scattering_paths
from scatterdp.extractors.scattering_kernel import ScatteringKernel

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Normalize = Literal["imagenet", "none"]


@dataclass(frozen=True, kw_only=True)
class ScatterNetConfig:
    """What a ScatterNet computes.

    Args:
        J: the scale; features average over about 2^J × 2^J pixels and the output is 2^J times smaller a side. At most 12.
        L: number of wavelet orientations over half a turn. At most 64.
        max_order: 1, or 2 for second-order coefficients too.
        normalize: ``"imagenet"`` subtracts ImageNet's public mean colour and divides by its standard deviation
            (RGB only); ``"none"`` leaves [0, 1] as it is.
        pre_pad: the images are padded already, by at least 2^J pixels a side; their sides are multiples of 2^J, and the
            outermost 2^J pixels give no output of their own.
        mirror: fold the features with those of the mirror image; the width w becomes ⌊w/2⌋ + 1.

    Raises:
        ConfigError: a value out of range.

    >>> ScatterNetConfig(J=0)
    Traceback (most recent call last):
        ...
    scatterdp.errors.ConfigError: J=0: expected an integer from 1 to 12
    """

    J: int = 2
    L: int = 8
    max_order: int = 2
    normalize: Normalize = "none"
    mirror: bool = False
    pre_pad: bool = False

    def __post_init__(self) -> None:
        for name, most in (("J", 12), ("L", 64)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(f"{name}={value!r}: expected an integer from 1 to {most}")
        for name in ("mirror", "pre_pad"):
            value = getattr(self, name)
            if type(value) is not bool:
                raise ConfigError(f"{name}={value!r}: expected True or False")
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
        if config.pre_pad:
            if height % 2**config.J or width % 2**config.J or min(height, width) < 3 * 2**config.J:
                raise ConfigError(
                    f"pre_pad=True: expected images whose sides are multiples of 2^J = {2**config.J}, at least three of them, "
                    f"these have {height}×{width}; pad them, or leave pre_pad out"
                )
            height, width = height - 2 * 2**config.J, width - 2 * 2**config.J
        self.config = config
        self.input_shape = input_shape
        self._scattering = ScatteringTorch2D(
            config.J, (height, width), L=config.L, max_order=config.max_order, pre_pad=config.pre_pad
        )
        paths = scattering_paths(J=config.J, L=config.L, max_order=config.max_order)
        h, w = height // 2**config.J, width // 2**config.J
        self._fold = MirrorFold(paths, L=config.L, colours=channels, height=h, width=w) if config.mirror else None
        self.output_shape = (channels * len(paths), h, w) if self._fold is None else self._fold.shape
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
    def channels(self) -> tuple[Channel, ...]:
        """What each of the K output channels is; with ``mirror``, the channel that its mirror image was folded into."""
        config = self.config
        return scattering_channels(J=config.J, L=config.L, max_order=config.max_order, colours=self.input_shape[0])

    def wavelet(self, j: int, theta: int) -> np.ndarray:
        """The frequency response ``(M, N)`` of a wavelet on the padded grid; real."""
        psi = next(psi for psi in self._scattering.psi if (psi["j"], psi["theta"]) == (j, theta))
        return np.squeeze(np.asarray(psi["levels"][0]))

    @torch.no_grad()  # not inference_mode: its tensors could not be fed to a head that trains
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scattering coefficients ``(B, K, h, w)`` of ``(B, C, H, W)`` images in [0, 1]; float32, on this device.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        features = self.unfolded(images)
        return features if self._fold is None else self._fold(features)

    def unfolded(self, images: torch.Tensor) -> torch.Tensor:
        """The coefficients without mirror folding, a map for each of :attr:`channels`."""
        check_images(images, self.input_shape)
        images = images.to(self._mean.device, torch.float32)
        if len(images) == 0:  # some FFT libraries refuse it
            grid = self._scattering.shape[0] >> self.config.J, self._scattering.shape[1] >> self.config.J
            return images.new_empty((0, len(self.channels), *grid))
        normalised = ((images - self._mean) / self._std).contiguous()
        if self._mean.device.type == "cpu" and self._kernel is not None:
            coefficients = self._kernel(normalised.flatten(0, 1)).unflatten(0, images.shape[:2])
        else:
            coefficients = self._scattering(normalised)
        return coefficients.flatten(1, 2)

    @cached_property
    def _kernel(self) -> ScatteringKernel | None:
        try:
            return ScatteringKernel(self._scattering)
        except KernelUnavailableError as error:
            logger.warning("scatternet: %s; Kymatio's own transform takes its place, many times slower", error)
            return None

    def to(self, device: torch.device | str) -> Self:
        """Move filters and constants to a device, in place."""
        self._scattering.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        if self._fold is not None:
            self._fold.to(device)
        return self
