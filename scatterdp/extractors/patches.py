r"""Patch features: how much each image region resembles each of many whitened synthetic patches.

With x a patch made mean 0 and contrast 1, and filters :math:`w_k, b_k` of :mod:`scatterdp.extractors.patch_filters`, the response is
:math:`r_k = w_k \cdot x + b_k`. Responses become features by an assignment and are averaged over the cells of a grid:

| ``assignment`` | features of a patch | source |
|---|---|---|
| ``soft`` | max(r - t, 0) and max(-r - t, 0) | Coates & Ng 2011, section 3.3 |
| ``abs`` | max(abs(r) - t, 0) | one-sided form of it |
| ``triangle`` | max(0, mean_k d_k - d_k), d_k the distance of whitened patch and filter | Coates, Lee & Ng 2011, section 3.2 |
| ``hard`` | 1 for the filter of the largest response, else 0 | the same |

With ``mirror=True`` features are averaged with those of the mirror image, by filters and cells mirrored: a free invariance.

Patches and filters are rounded to bfloat16, sums are single precision, on every device. On a CPU ``soft`` and ``abs`` are
:mod:`scatterdp.extractors.patch_kernel` where a C++ compiler is found.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import check_images, fingerprint
from scatterdp.extractors.compilation import KernelUnavailableError
from scatterdp.extractors.patch_filters import CONTRAST, IMAGES, PATCHES, SOURCES, make_patch_filters
from scatterdp.extractors.patch_kernel import PatchKernel
from scatterdp.extractors.pooling import grid_pooling

logger = logging.getLogger(__name__)

Assignment = Literal["soft", "abs", "triangle", "hard"]
_ALGORITHM = 1  # of filters and features: another number is another fingerprint
_MOST_VALUES = 1024  # of a patch: its covariance is inverted
_MULTIPLE = 32  # of filters, for the kernel's blocks
_RESPONSES = 1 << 25  # in memory at once, without the kernel
_TOLERANCE = 2e-3  # a response beside a rounding boundary moves by one part in 256 of one value


@dataclass(frozen=True, kw_only=True)
class PatchesConfig:
    """What patch features compute.

    Args:
        patches: K, the number of filters, a multiple of 32.
        size: side of a patch in pixels.
        threshold: t, for ``soft`` and ``abs``.
        whitening: added to the eigenvalues of the patches' covariance; larger whitens less.
        grid: pooling cells a side.
        mirror: average with the mirror image's features.
        assignment: see the module.
        source: the synthetic images that filters are patches of.
        seed: of those images and patches.

    Raises:
        ConfigError: a value out of range.
    """

    patches: int = 512
    size: int = 6
    threshold: float = 0.8
    whitening: float = 0.1
    grid: int = 3
    mirror: bool = True
    assignment: Assignment = "soft"
    source: str = "dead_leaves"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("patches", _MULTIPLE), ("size", 2), ("grid", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name}={value!r}: expected an integer ≥ {least}")
        if self.patches % _MULTIPLE or self.patches > PATCHES:
            raise ConfigError(f"patches={self.patches}: expected a multiple of {_MULTIPLE}, at most {PATCHES}")
        for name in ("threshold", "whitening"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}: expected a number")
        if not 0 <= self.threshold < 100:
            raise ConfigError(f"threshold={self.threshold}: expected a number from 0 to 100")
        if not 1e-6 <= self.whitening <= 1e6:
            raise ConfigError(f"whitening={self.whitening}: expected a number from 1e-6 to 1e6")
        if type(self.mirror) is not bool:
            raise ConfigError(f"mirror={self.mirror!r}: expected True or False")
        if self.assignment not in get_args(Assignment):
            raise ConfigError(f"assignment={self.assignment!r}: expected one of {', '.join(get_args(Assignment))}")
        if self.source not in SOURCES:
            raise ConfigError(f"source={self.source!r}: expected one of {', '.join(SOURCES)}")


def default_config(input_shape: tuple[int, int, int], **changes: Any) -> PatchesConfig:
    """Colour images are mirrored, grey ones not: the mirror image of a letter is another sign.

    Args:
        input_shape: ``(C, H, W)``.
        changes: fields of :class:`PatchesConfig` to set otherwise.
    """
    return PatchesConfig(**{"mirror": input_shape[0] == 3, **changes})


class Patches:
    """Pooled patch features; see :class:`~scatterdp.extractors.base.Extractor`.

    Args:
        config: what to compute.
        input_shape: ``(C, H, W)``; ``soft`` gives ``(2K, grid, grid)``, the positive parts first, the others ``(K, grid, grid)``.

    Raises:
        ConfigError: images smaller than a patch, or a grid finer than the positions.
    """

    name = "patches"

    def __init__(self, config: PatchesConfig, input_shape: tuple[int, int, int]) -> None:
        channels, height, width = input_shape
        if channels < 1 or min(height, width) < config.size:
            raise ConfigError(
                f"size={config.size}: the images are {'×'.join(map(str, input_shape))}, take smaller patches"
            )
        if channels * config.size**2 > _MOST_VALUES:
            raise ConfigError(
                f"size={config.size}: a patch has {channels * config.size**2} values, expected at most {_MOST_VALUES}"
            )
        self.config, self.input_shape = config, input_shape
        self._pooling = grid_pooling(height - config.size + 1, width - config.size + 1, config.grid)
        two_sided = config.assignment == "soft"
        self.output_shape = (config.patches * (2 if two_sided else 1), config.grid, config.grid)
        self.fingerprint = fingerprint(
            type(self).__name__,
            config,
            input_shape,
            preprocessing={"contrast": CONTRAST, "images": IMAGES, "patches": PATCHES},
            versions={"algorithm": str(_ALGORITHM)},
        )
        self._device = torch.device("cpu")

    @cached_property
    def _filters(self) -> dict[str, Tensor]:
        """Made when first needed: what is cached needs none."""
        config = self.config
        filters = make_patch_filters(
            self.input_shape,
            count=config.patches,
            size=config.size,
            whitening=config.whitening,
            source=config.source,
            seed=config.seed,
        )
        weight, bias = torch.from_numpy(filters.weight).bfloat16().float(), torch.from_numpy(filters.bias)
        if config.mirror:
            weight, bias = torch.cat([weight, weight.flip(3)]), torch.cat([bias, bias])
        cells = F.one_hot(torch.from_numpy(self._pooling.cells)).float()
        return {
            "weight": weight,
            "bias": bias,
            "whitening": torch.from_numpy(filters.whitening).float(),
            "mean": torch.from_numpy(filters.mean).float(),
            "cells": cells / cells.sum(0),
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, channels, grid, grid)`` of ``(B, C, H, W)`` images in [0, 1]; float32, on this device.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        images = images.to(self._device, torch.float32).contiguous()
        if self._device.type == "cpu" and self._kernel is not None:
            features = self._kernel(images)
        else:
            features = self._without_kernel(images)
        return features.view(len(images), *self.output_shape)

    def to(self, device: torch.device | str) -> Self:
        """Choose the device, in place."""
        self._device = torch.device(device)
        return self

    @cached_property
    def _kernel(self) -> PatchKernel | None:
        config = self.config
        if config.assignment not in ("soft", "abs"):
            return None
        try:
            kernel = PatchKernel(
                self.input_shape,
                self._filters["weight"],
                self._filters["bias"],
                outputs=config.patches,
                pooling=self._pooling,
                threshold=config.threshold,
                two_sided=config.assignment == "soft",
                contrast=CONTRAST,
            )
            images = torch.rand(2, *self.input_shape, generator=torch.Generator().manual_seed(0))
            difference = (kernel(images) - self._without_kernel(images)).abs().max().item()
            if not difference <= _TOLERANCE:
                raise KernelUnavailableError(f"the compiled kernel differs from torch by {difference:g}")
        except (KernelUnavailableError, MemoryError) as error:
            logger.warning("patches: %s; torch takes its place, many times slower", error)
            return None
        return kernel

    def _without_kernel(self, images: Tensor) -> Tensor:
        constants = {name: value.to(self._device) for name, value in self._filters.items()}
        positions = len(self._pooling.cells)
        size = max(1, _RESPONSES // (len(constants["weight"]) * positions))
        pieces = [self._of_patches(self._patches(piece), constants) for piece in images.split(size)]
        return torch.cat(pieces) if pieces else images.new_empty(0, *self.output_shape).flatten(2)

    def _patches(self, images: Tensor) -> Tensor:
        """Normalised patches ``(b, C·p·p, positions)``, in bfloat16's precision."""
        patches = F.unfold(images, self.config.size)
        patches = patches - patches.mean(1, keepdim=True)
        variance = patches.square().sum(1, keepdim=True) / (patches.shape[1] - 1)
        return (patches * (variance + CONTRAST).rsqrt()).bfloat16().float()

    def _of_patches(self, patches: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Pooled features ``(b, channels, cells)``."""
        responses = constants["weight"].flatten(1) @ patches + constants["bias"][:, None]
        parts = responses.split(self.config.patches, dim=1)
        pooled = [
            self._assigned(part, patches, constants, mirrored=i > 0) @ constants["cells"]
            for i, part in enumerate(parts)
        ]
        if len(pooled) == 1:
            return pooled[0]
        return (pooled[0] + pooled[1][:, :, torch.from_numpy(self._pooling.mirrored)]) / 2

    def _assigned(self, responses: Tensor, patches: Tensor, constants: dict[str, Tensor], *, mirrored: bool) -> Tensor:
        threshold = self.config.threshold
        match self.config.assignment:
            case "soft":
                return torch.cat([(responses - threshold).clamp(min=0), (-responses - threshold).clamp(min=0)], 1)
            case "abs":
                return (responses.abs() - threshold).clamp(min=0)
            case "hard":
                return F.one_hot(responses.argmax(1), self.config.patches).movedim(2, 1).float()
            case "triangle":
                if mirrored:
                    shape = (self.input_shape[0], self.config.size, self.config.size)
                    patches = patches.unflatten(1, shape).flip(3).flatten(1, 3)
                whitened = constants["whitening"] @ (patches - constants["mean"][:, None])
                # Filters have length 1: ‖x - f‖² = ‖x‖² + 1 - 2 r.
                distances = (whitened.square().sum(1, keepdim=True) + 1 - 2 * responses).clamp(min=0).sqrt()
                return (distances.mean(1, keepdim=True) - distances).clamp(min=0)
