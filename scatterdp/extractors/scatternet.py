"""ScatterNet: the wavelet scattering transform, a fixed two-layer convolutional network without training.

    S₀x = x ⋆ φ,   S₁x = |x ⋆ ψ_{j₁θ₁}| ⋆ φ,   S₂x = ||x ⋆ ψ_{j₁θ₁}| ⋆ ψ_{j₂θ₂}| ⋆ φ   (j₁ < j₂)

subsampled by 2^J, each colour channel on its own (Bruna & Mallat 2013; Oyallon & Mallat 2015; under differential
privacy Tramèr & Boneh 2021). Filters are Kymatio's (Andreux et al. 2020). On a CPU
the transform is :mod:`scatterdp.extractors.scattering_kernel` where a C++ compiler is found, else Kymatio's; on CUDA it is
Kymatio's. The numbers agree to 1e-5.

**Mirror folding** (``mirror=True``). Scattering nearly commutes with mirroring: orientation θ becomes -θ and column i of the
grid becomes column w - i. (Grid point i sits at pixel 2^J·i, so the mirror image's point sits one pixel beside it; column 0
has no partner.) The map that swaps both is an involution G; the features x and Gx of an image are those of its mirror image
and back, up to that pixel. Folding keeps the coordinates of the projection (x + Gx)/√2 … on the G-symmetric subspace, which
is all that a classifier blind to mirroring can use: half the dimensions, so half the memory, half the work and less noise in
a private gradient of the same signal. It is a fixed function of one image.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal, Self, get_args

import torch

# Not kymatio.torch: that imports the 3D transform too, which needs a function SciPy 1.17 has dropped.
from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import check_images, fingerprint
from scatterdp.extractors.scattering_kernel import KernelUnavailableError, ScatteringKernel

logger = logging.getLogger(__name__)

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
        mirror: fold the features with those of the mirror image; the width w becomes ⌊w/2⌋ + 1.

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
    mirror: bool = False

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
        grid = (height // 2**config.J, width // 2**config.J)
        self._fold = _MirrorFold(config, channels, *grid) if config.mirror else None
        self.output_shape = (len(self.channel_orders), *grid) if self._fold is None else self._fold.shape
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
        if self._mean.device.type == "cpu" and self._kernel is not None:
            coefficients = self._kernel(normalised.flatten(0, 1)).unflatten(0, images.shape[:2])
        else:
            coefficients = self._scattering(normalised)
        features = coefficients.flatten(1, 2)
        return features if self._fold is None else self._fold(features)

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


class _MirrorFold:
    """Coordinates of the projection on features that are equal to their mirrored selves: a weighted sum of two gathers."""

    def __init__(self, config: ScatterNetConfig, colours: int, height: int, width: int) -> None:
        turned = [_mirrored_orientation(theta, config.L) for theta in range(config.L)]
        one_colour = torch.tensor(_mirrored_channels(config, turned))
        channels = torch.cat([colour * len(one_colour) + one_colour for colour in range(colours)])
        columns = torch.arange(width // 2 + 1)
        partners = torch.where(columns == 0, 0, width - columns)
        # Two columns become one: √½ keeps lengths. A column that is its own partner stays, once for a channel and once for
        # the channel's mirror. Column 0 has no partner on the grid and stays as it is.
        own = torch.where(columns == 0, 1.0, torch.where(columns == partners, 0.5, 0.5**0.5))
        self.shape = (len(channels), height, len(columns))
        position = torch.arange(len(channels) * height * width).view(len(channels), height, width)
        self._own = position[:, :, columns].flatten()
        self._mirrored = position[channels][:, :, partners].flatten()
        self._own_weight = own.expand(self.shape).flatten()
        self._mirrored_weight = torch.where(columns == 0, 0.0, own).expand(self.shape).flatten()

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, K, h, w) -> (B, K, h, ⌊w/2⌋ + 1)``."""
        flat = features.flatten(1)
        folded = flat.index_select(1, self._own).mul_(self._own_weight)
        folded.addcmul_(flat.index_select(1, self._mirrored), self._mirrored_weight)
        return folded.unflatten(1, self.shape)

    def to(self, device: torch.device | str) -> None:
        for name in ("_own", "_mirrored", "_own_weight", "_mirrored_weight"):
            setattr(self, name, getattr(self, name).to(device))


def _mirrored_orientation(theta: int, L: int) -> int:
    """The orientation index of ψ_θ's mirror image: Kymatio's angle of index θ is (⌊L/2⌋ - 1 - θ)·π/L for even L."""
    return (2 * int(L - L / 2 - 1) - theta) % L


def _mirrored_channels(config: ScatterNetConfig, turned: list[int]) -> list[int]:
    """For each channel of one colour the channel that mirroring the image moves it to."""
    L = config.L
    channels = [0]
    channels += [1 + j * L + t for j in range(config.J) for t in turned]
    if config.max_order == 2:
        # Kymatio's order: for the first wavelet (j1, θ1), the second's scale j2 > j1, then its orientation θ2.
        first = len(channels)
        index = {}
        for j1 in range(config.J):
            for theta1 in range(L):
                for j2 in range(j1 + 1, config.J):
                    for theta2 in range(L):
                        index[j1, theta1, j2, theta2] = first + len(index)
        channels += [index[j1, turned[theta1], j2, turned[theta2]] for j1, theta1, j2, theta2 in index]
    return channels
