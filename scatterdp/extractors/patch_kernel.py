r"""Patch features as a compiled kernel: one pass over an image, responses never leave the processor's caches.

Responses of 32 patches to 32 filters are one small matrix product of bfloat16 numbers with single-precision sums; they are thresholded and added
to their pooling cell at once. A map of 2048 responses at 729 positions, which a convolution would write out, never exists.

Where the processor has matrix tiles (AMX) a product of two 16 × 32 tiles is one instruction, and thresholding costs about as much as
the products; elsewhere the same numbers come from vector instructions, several times slower. The limit of the tiles is
1024 multiply-adds a cycle.

``patches.cpp`` is compiled for one image shape and patch size when that is first met (seconds).

**Trust.** A freshly loaded kernel is compared with torch's result on random images; a difference makes it unavailable.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scatterdp.extractors.compilation import compiled
from scatterdp.extractors.pooling import Pooling

SOURCE = Path(__file__).with_name("patches.cpp")


class _Constants(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tiles", "columns", "bias", "order", "first", "mirrored")),
        *((name, ctypes.c_int32) for name in ("filters", "outputs", "cells", "two_sided", "centred")),
        *((name, ctypes.c_float) for name in ("threshold", "contrast")),
    )


class PatchKernel:
    """Pooled, thresholded responses ``(B, C, H, W)`` float32 → ``(B, channels, cells)`` on the CPU.

    Args:
        input_shape: ``(C, H, W)``.
        weight: ``(F, C, p, p)`` float32 that bfloat16 represents; the last F - outputs filters are mirror images.
        bias: ``(F,)`` float32.
        outputs: a multiple of 32; F is once or twice that.
        pooling: of the positions.
        threshold: subtracted from the response's magnitude.
        two_sided: positive and negative part apart, channel ``outputs + k`` the negative one of k; else their sum.
        contrast: added to a patch's variance.
        centred: whether a patch's mean is taken from it.

    Raises:
        KernelUnavailableError: no compiler, or it failed.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        weight: Tensor,
        bias: Tensor,
        *,
        outputs: int,
        pooling: Pooling,
        threshold: float,
        two_sided: bool,
        contrast: float,
        centred: bool,
    ) -> None:
        channels, height, width = input_shape
        filters, size = len(weight), weight.shape[2]
        values = channels * size * size
        depth = -(-values // 32) * 32
        rows = torch.zeros(filters, depth)
        rows[:, :values] = weight.permute(0, 2, 3, 1).flatten(1)  # y, x, channel: as images lie in memory there
        # A tile holds 16 pairs of successive values of 16 filters.
        tiles = rows.bfloat16().view(torch.int16).numpy().reshape(filters // 16, 16, depth // 32, 16, 2)
        columns = rows.numpy().reshape(filters // 16, 16, depth)
        self._arrays = [
            np.ascontiguousarray(array)
            for array in (
                tiles.transpose(0, 2, 3, 1, 4),
                columns.transpose(0, 2, 1),
                bias.numpy(),
                np.argsort(pooling.cells, kind="stable").astype(np.int32),
                np.concatenate([[0], np.cumsum(pooling.counts)]).astype(np.int32),
                pooling.mirrored.astype(np.int32),
            )
        ]
        self._constants = _Constants(
            *(array.ctypes.data for array in self._arrays),
            *(filters, outputs, len(pooling.counts), two_sided, centred, threshold, contrast),
        )
        self._input_shape, self._channels = input_shape, outputs * (2 if two_sided else 1)
        macros = {"C": channels, "H": height, "W": width, "P": size}
        self._features = ctypes.CDLL(str(compiled(SOURCE, macros))).patch_features

    def __call__(self, images: Tensor) -> Tensor:
        """Features of contiguous float32 images, on ``torch.get_num_threads()`` threads.

        Raises:
            MemoryError: no memory for an image, or the system keeps its tiles from this process.
        """
        assert images.is_contiguous()
        assert images.dtype == torch.float32
        assert tuple(images.shape[1:]) == self._input_shape
        out = torch.empty(len(images), self._channels, self._constants.cells)
        failed = self._features(
            ctypes.c_void_p(images.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_long(len(images)),
            ctypes.c_int(torch.get_num_threads()),
            ctypes.byref(self._constants),
        )
        if failed:
            raise MemoryError("patches: no memory for an image, or no access to the processor's matrix tiles")
        return out
