r"""The scattering transform as a compiled kernel: Kymatio's numbers, tens of times faster on a CPU.

**Mathematics.** With :math:`\hat\cdot` the discrete Fourier transform of the padded :math:`M \times N` image, a path is

.. math:: |x \star \psi| (2^k u) = \bigl|\mathcal F^{-1}\bigl[\operatorname{fold}_k(\hat x\,\hat\psi)\bigr](u)\bigr|,

where folding (averaging the :math:`4^k` aliases) is subsampling. Four identities carry the speed:

1. Morlet filters are real in frequency, and the modulus does not see conjugation:
   :math:`|\mathcal F^{-1} z| = |\mathcal F \bar z| / MN`. Every transform is a forward one; conjugates are stored.
2. Maps that are transformed again are real: two of their columns make one complex transform, and half of the rows suffices
   (:math:`\hat x(-\omega) = \overline{\hat x(\omega)}`).
3. The low-pass is a Gaussian, so its transform has rank 1: low-pass, subsampling and cropping together are one small real
   matrix on each side of a map. It is applied to each column while that column is in registers.
4. An image is a *vector lane*: 16 (AVX-512), 8 or 4 images go through the same instructions, so no transform of a few dozen
   points ever shuffles lanes. Sizes are compile-time constants and butterflies (2, 3, 4, 5, 8) are written out.

A path of a group of lanes lives in the level-2 cache from product to output. ``scattering.cpp`` is compiled for one image
shape when that shape is first met (seconds).

**Trust.** A freshly loaded kernel is compared with Kymatio on random planes; a difference above 1e-5 makes it unavailable.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from scatterdp.extractors.compilation import KernelUnavailableError, compiled

if TYPE_CHECKING:
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

SOURCE = Path(__file__).with_name("scattering.cpp")
TOLERANCE = 1e-5
# Below this part of a filter's largest value a coefficient is left out; float32 carries seven digits.
_NEGLIGIBLE = 1e-8


class ScatteringKernel:
    """The scattering transform of planes ``(P, H, W)`` float32 → ``(P, channels, h, w)`` on the CPU.

    Args:
        scattering: Kymatio's transform, whose filters are used.

    Raises:
        KernelUnavailableError: see there.
    """

    def __init__(self, scattering: ScatteringTorch2D) -> None:
        J, (height, width) = scattering.J, scattering.shape
        rows, columns = int(scattering._M_padded), int(scattering._N_padded)
        second_order = scattering.L**2 * J * (J - 1) // 2 if scattering.max_order == 2 else 0
        channels = 1 + J * scattering.L + second_order
        self._input = (rows, columns) if scattering.pre_pad else (height, width)
        self._output = (channels, height >> J, width >> J)
        self._arrays: list[np.ndarray] = []  # what the constants point to
        self._constants = self._make_constants(scattering, rows, columns)
        macros = {"M": rows, "N": columns, "J": J, "L": scattering.L, "ORDER": scattering.max_order}
        macros |= {"H": self._input[0], "W": self._input[1], "OUT_H": height >> J, "OUT_W": width >> J}
        self._scatter = ctypes.CDLL(str(compiled(SOURCE, macros))).scatter
        self._check(scattering)

    def __call__(self, planes: torch.Tensor) -> torch.Tensor:
        """Scattering coefficients of contiguous float32 planes, on ``torch.get_num_threads()`` threads."""
        assert planes.is_contiguous()
        assert planes.dtype == torch.float32
        assert planes.shape[1:] == self._input
        out = torch.empty(len(planes), *self._output)
        failed = self._scatter(
            ctypes.c_void_p(planes.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_long(len(planes)),
            ctypes.c_int(torch.get_num_threads()),
            ctypes.byref(self._constants),
        )
        if failed:
            raise MemoryError("scattering: no memory for a group of images")
        return out

    def _make_constants(self, scattering: ScatteringTorch2D, rows: int, columns: int) -> ctypes.Structure:
        J, L = scattering.J, scattering.L

        class Constants(ctypes.Structure):
            _fields_ = (
                ("psi", ctypes.c_void_p * (J * J)),
                ("band", ctypes.c_void_p * (J * J)),
                ("low_rows", ctypes.c_void_p * J),
                ("low_columns", ctypes.c_void_p * J),
                ("pad_rows", ctypes.c_void_p),
                ("pad_columns", ctypes.c_void_p),
            )

        constants = Constants()
        for j in range(J):
            wavelets = [psi for psi in scattering.psi if psi["j"] == j]
            for resolution in range(len(wavelets[0]["levels"])):
                filters = np.stack([_as_array(psi["levels"][resolution]) for psi in wavelets])
                where = j * J + resolution
                # The inverse transform's 1/size, and the average over aliases, go into the filter.
                constants.psi[where] = self._pointer(filters / filters[0].size, np.float32)
                constants.band[where] = self._pointer(_bands(filters), np.int32)
        assert len(scattering.psi) == J * L
        for resolution in range(J):
            low_rows, low_columns = _separate(_as_array(scattering.phi["levels"][resolution]))
            stride = 2 ** (J - resolution)
            constants.low_rows[resolution] = self._pointer(_low_pass_matrix(low_rows, stride), np.float32)
            constants.low_columns[resolution] = self._pointer(_low_pass_matrix(low_columns, stride), np.float32)
        height, width = self._input
        constants.pad_rows = self._pointer(_reflection(height, rows), np.int32)
        constants.pad_columns = self._pointer(_reflection(width, columns), np.int32)
        return constants

    def _pointer(self, values: np.ndarray, dtype: type) -> int:
        self._arrays.append(np.ascontiguousarray(values, dtype))
        return self._arrays[-1].ctypes.data

    def _check(self, scattering: ScatteringTorch2D) -> None:
        planes = torch.from_numpy(np.random.Generator(np.random.Philox(0)).random((2, *self._input), dtype=np.float32))
        difference = (self(planes) - scattering(planes)).abs().max().item()
        if not difference <= TOLERANCE:
            raise KernelUnavailableError(f"the compiled kernel differs from Kymatio by {difference:g}")


def _as_array(level: Sequence[float] | np.ndarray | torch.Tensor) -> np.ndarray:
    return np.squeeze(np.asarray(level, dtype=np.float64))


def _bands(filters: np.ndarray) -> np.ndarray:
    """``(L, rows, 2)``: for each row of each filter the columns [first, last) beyond which it is negligible."""
    kept = np.abs(filters) > _NEGLIGIBLE * np.abs(filters).max((1, 2), keepdims=True)
    some = kept.any(2)
    first = np.where(some, kept.argmax(2), 0)
    last = np.where(some, kept.shape[2] - kept[:, :, ::-1].argmax(2), 0)
    return np.stack([first, last], axis=2)


def _separate(low_pass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of a rank-1 frequency response.

    Raises:
        KernelUnavailableError: it is not of rank 1.
    """
    root = np.sqrt(low_pass[0, 0])
    rows, columns = low_pass[:, 0] / root, low_pass[0] / root
    if not np.abs(np.outer(rows, columns) - low_pass).max() < 1e-6:
        raise KernelUnavailableError("the low-pass filter is not separable")
    return rows, columns


def _low_pass_matrix(response: np.ndarray, stride: int) -> np.ndarray:
    """Circular convolution, then every ``stride``-th point, then without the first and last: ``(points, length)``."""
    convolution = np.fft.ifft(response[:, None] * np.fft.fft(np.eye(len(response)), axis=0), axis=0).real
    return convolution[::stride][1:-1]


def _reflection(length: int, padded: int) -> np.ndarray:
    """For each index of the padded axis the input index it mirrors; the smaller half of the padding comes first."""
    period = 2 * (length - 1)
    index = np.abs(np.arange(padded) - (padded - length) // 2) % period
    return np.where(index >= length, period - index, index)
