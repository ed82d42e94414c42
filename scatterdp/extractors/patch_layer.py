"""One layer of patch features: maps in, responses of their patches to filters, assigned and averaged over a grid, out.

Patches and filters are rounded to bfloat16, sums are single precision, on every device. On a CPU ``soft`` and ``abs`` are
:mod:`scatterdp.extractors.patch_kernel` where a C++ compiler is found. What is assigned how: :mod:`scatterdp.extractors.patches`.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from scatterdp.errors import ConfigError
from scatterdp.extractors.compilation import KernelUnavailableError
from scatterdp.extractors.patch_filters import PatchFilters
from scatterdp.extractors.patch_kernel import PatchKernel
from scatterdp.extractors.pooling import Pooling, grid_pooling

logger = logging.getLogger(__name__)

Assignment = Literal["soft", "abs", "triangle", "hard"]

_MOST_VALUES = 1280  # of a patch: its covariance is inverted
_RESPONSES = 1 << 25  # in memory at once, without the kernel
#: A response moves by one part in 256 of one value where that is beside a rounding boundary: less in the mean of many positions.
_TOLERANCE, _TOLERANCE_OF_ONE = 2e-3, 5e-2


def layer_pooling(shape: tuple[int, int, int], *, size: int, grid: int, what: str = "images") -> Pooling:
    """The pooling of all positions of a patch.

    Args:
        shape: ``(C, H, W)`` of the maps.
        size: p, the patch's side.
        grid: cells a side.
        what: the maps' name in messages.

    Raises:
        ConfigError: maps smaller than a patch, a patch of too many values, or a grid finer than the positions.
    """
    _, height, width = shape
    check_patch(shape, size=size, what=what)
    return grid_pooling(height - size + 1, width - size + 1, grid)


def check_patch(shape: tuple[int, int, int], *, size: int, what: str = "images") -> None:
    """Refuse patches that do not fit maps ``(C, H, W)``.

    Raises:
        ConfigError: maps smaller than a patch, or a patch of too many values.
    """
    channels, height, width = shape
    if channels < 1 or min(height, width) < size:
        raise ConfigError(f"size={size}: the {what} are {'×'.join(map(str, shape))}, take smaller patches")
    if channels * size**2 > _MOST_VALUES:
        raise ConfigError(f"size={size}: a patch has {channels * size**2} values, expected at most {_MOST_VALUES}")


def layer_channels(filters: int, assignment: Assignment) -> int:
    """How many channels so many filters give."""
    return 2 * filters if assignment == "soft" else filters


class PatchLayer:
    """``(B, C, H, W)`` float32 → ``(B, channels, cells)``; row i depends on map i alone, to the bit.

    Args:
        input_shape: ``(C, H, W)``.
        filters: K of them.
        pooling: of the positions, from :func:`layer_pooling`.
        threshold: t, for ``soft`` and ``abs``.
        assignment: how responses become features.
        mirror: average with the features of the mirrored maps.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        filters: PatchFilters,
        *,
        pooling: Pooling,
        threshold: float,
        assignment: Assignment,
        mirror: bool,
    ) -> None:
        self._input_shape, self._filters, self._pooling = input_shape, filters, pooling
        self._assignment: Assignment = assignment
        self._threshold = threshold
        self._outputs, self._size = len(filters.weight), filters.weight.shape[2]
        weight, bias = torch.from_numpy(filters.weight).bfloat16().float(), torch.from_numpy(filters.bias)
        if mirror:
            weight, bias = torch.cat([weight, weight.flip(3)]), torch.cat([bias, bias])
        cells = F.one_hot(torch.from_numpy(pooling.cells)).float()
        self._constants = {
            "weight": weight,
            "bias": bias,
            "whitening": torch.from_numpy(filters.whitening).float(),
            "mean": torch.from_numpy(filters.mean).float(),
            "cells": cells / cells.sum(0),
        }
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Choose the device, in place."""
        self._device = torch.device(device)
        return self

    def __call__(self, maps: Tensor) -> Tensor:
        """Features of contiguous float32 maps on this layer's device."""
        if self._device.type == "cpu" and self.kernel is not None:
            return self.kernel(maps)
        return self.without_kernel(maps)

    @cached_property
    def kernel(self) -> PatchKernel | None:
        """The compiled kernel, where there is one for this assignment and it computes what torch does."""
        if self._assignment not in ("soft", "abs"):
            return None
        try:
            kernel = PatchKernel(
                self._input_shape,
                self._constants["weight"],
                self._constants["bias"],
                outputs=self._outputs,
                pooling=self._pooling,
                threshold=self._threshold,
                two_sided=self._assignment == "soft",
                contrast=self._filters.contrast,
                centred=self._filters.centred,
            )
            maps = torch.rand(2, *self._input_shape, generator=torch.Generator().manual_seed(0))
            difference = (kernel(maps) - self.without_kernel(maps)).abs().max().item()
            if not difference <= max(_TOLERANCE, _TOLERANCE_OF_ONE / self._pooling.counts.min()):
                raise KernelUnavailableError(f"the compiled kernel differs from torch by {difference:g}")
        except (KernelUnavailableError, MemoryError) as error:
            logger.warning("patches: %s; torch takes its place, many times slower", error)
            return None
        return kernel

    def without_kernel(self, maps: Tensor) -> Tensor:
        """The same features from torch."""
        constants = {name: value.to(maps.device) for name, value in self._constants.items()}
        positions = len(self._pooling.cells)
        size = max(1, _RESPONSES // (len(constants["weight"]) * positions))
        pieces = [self._of_patches(self._patches(piece), constants) for piece in maps.split(size)]
        channels = layer_channels(self._outputs, self._assignment)
        return torch.cat(pieces) if pieces else maps.new_empty(0, channels, len(self._pooling.counts))

    def _patches(self, maps: Tensor) -> Tensor:
        """Normalised patches ``(b, C·p·p, positions)``, in bfloat16's precision."""
        patches = F.unfold(maps, self._size)
        if self._filters.centred:
            patches = patches - patches.mean(1, keepdim=True)
        variance = patches.square().sum(1, keepdim=True) / (patches.shape[1] - 1)
        return (patches * (variance + self._filters.contrast).rsqrt()).bfloat16().float()

    def _of_patches(self, patches: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Pooled features ``(b, channels, cells)``."""
        responses = constants["weight"].flatten(1) @ patches + constants["bias"][:, None]
        parts = responses.split(self._outputs, dim=1)
        pooled = [
            self._assigned(part, patches, constants, mirrored=i > 0) @ constants["cells"]
            for i, part in enumerate(parts)
        ]
        if len(pooled) == 1:
            return pooled[0]
        return (pooled[0] + pooled[1][:, :, torch.from_numpy(self._pooling.mirrored)]) / 2

    def _assigned(self, responses: Tensor, patches: Tensor, constants: dict[str, Tensor], *, mirrored: bool) -> Tensor:
        match self._assignment:
            case "soft":
                above, below = responses - self._threshold, -responses - self._threshold
                return torch.cat([above.clamp(min=0), below.clamp(min=0)], 1)
            case "abs":
                return (responses.abs() - self._threshold).clamp(min=0)
            case "hard":
                return F.one_hot(responses.argmax(1), self._outputs).movedim(2, 1).float()
            case "triangle":
                if mirrored:
                    shape = (self._input_shape[0], self._size, self._size)
                    patches = patches.unflatten(1, shape).flip(3).flatten(1, 3)
                whitened = constants["whitening"] @ (patches - constants["mean"][:, None])
                # Filters have length 1: ‖x - f‖² = ‖x‖² + 1 - 2 r.
                distances = (whitened.square().sum(1, keepdim=True) + 1 - 2 * responses).clamp(min=0).sqrt()
                return (distances.mean(1, keepdim=True) - distances).clamp(min=0)
