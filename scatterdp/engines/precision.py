"""The precision of norms and clipped sums, whatever the model computes in.

An example's share of a sum is bounded only where the sum rounds by far less than the bound. In bfloat16 (autocast, or products of float32
that torch may compute in it) one example was seen to move the sum of 3000 by 3.7 times the bound. So the model may compute as it likes,
for a gradient that is rounded in the forward or backward pass is clipped all the same; from the gradients on, everything
is float32 or float64, without TensorFloat-32.

Sums over examples are float32 for 256 rows at most (:func:`sum_of_products`; of convolutions 256 positions, but at least 32 images), over those sums in double
precision (:class:`RunningSums`), and noise is added to them in double precision too. In single precision one example, chosen to, decides whether the many small ones after it count: it was seen to move a sum of 8096
rows by 1.98 times the bound, and the mere rounding of an aligned sum of a million by 0.1.

**Limit.** A sum of 256 rows is rounded by 0.002 bounds at most: each of 255 additions by 2⁻²⁴ of what is there, 129 bounds at most on average. So N rows are rounded by N · 2⁻¹⁷ bounds;
and as one example more shifts all later rows' places in these sums, it may move the whole by twice that beside its own share. Of sequences and images
each of T positions is rounded by 2⁻²⁴ of what is there: up to 25.5 bounds of the example's own, for its terms may cancel to a fiftieth, and those of the examples before, 16 bounds on
average of images. So they are moved by N · (2⁻¹⁶ + T · 2⁻¹⁷) at most. And libraries choose how to multiply by a matrix's size and a row's place in it, so that a row may be rounded otherwise where there is
one more: docs/clipping.md says what that can do, and where.

Where an example's own terms cancel, half of them may be far larger than its gradient, and beside them those of other examples vanish: one of them
was seen to move a sum of 600 by 7.7 times the bound. Book-keeping sums such examples apart in double precision
(:class:`scatterdp.engines.rules.MatrixRule`); below the threshold 1.002 times the bound was the most that was seen of 16 thousand images chosen for it, and 1.33 of 1357 sequences of 384 positions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: Trainable parameters, and sums over examples, are of one of these.
SUM_DTYPES = (torch.float32, torch.float64)
#: Rows that one product in single precision adds up.
ROWS_OF_A_SUM = 256

# What torch may compute float32 products with: TensorFloat-32 on CUDA, bfloat16 on the CPU.
_BACKENDS: Any = torch.backends
_PRODUCTS = (_BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.mkldnn.matmul, _BACKENDS.mkldnn.conv)
_FULL = ("ieee", "ieee", "ieee", "ieee")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within it autocast is off for the device, and products of float32 are float32's own; afterwards all is as it was."""
    with torch.autocast(device.type, enabled=False), _full_products:
        yield


class RunningSums:
    """Sums by parameter name, added up in double precision."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._precisions: dict[str, torch.dtype] = {}
        self._given: set[str] = set()  # sums that are still the first value itself

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add to each sum; the values are left as they are."""
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name], self._precisions[name] = value, value.dtype
                self._given.add(name)
                continue
            if name in self._given:
                self._sums[name] = self._sums[name].to(torch.float64, copy=True)
                self._given.remove(name)
            self._sums[name] += value

    def exact(self) -> dict[str, Tensor]:
        """The sums in double precision."""
        return {name: total.double() for name, total in self._sums.items()}

    def rounded(self) -> dict[str, Tensor]:
        """The sums in the precision of what was added first; of a single value, the value itself."""
        return {name: total.to(self._precisions[name]) for name, total in self._sums.items()}


def sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ · right`` of ``(rows, …)``, in the values' precision for some rows at a time and in double precision over these; rounded once.

    Args:
        left: ``(rows,)`` or ``(rows, p)``.
        right: ``(rows, d)``.
    """
    if len(right) <= ROWS_OF_A_SUM or right.dtype == torch.float64:
        return left.t() @ right
    sums = RunningSums()
    for some, others in zip(left.split(ROWS_OF_A_SUM), right.split(ROWS_OF_A_SUM), strict=True):
        sums.add({"": some.t() @ others})
    return sums.rounded()[""]


def in_single_precision(values: Tensor) -> Tensor:
    """Values of half precision as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _FullProducts:
    """The settings are the process's, so of several threads the first sets them and the last puts them back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before: tuple[str, ...] = _FULL

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = tuple(product.fp32_precision for product in _PRODUCTS)
                _set(_FULL)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _set(self._before)


def _set(precisions: tuple[str, ...]) -> None:
    for product, precision in zip(_PRODUCTS, precisions, strict=True):
        product.fp32_precision = precision


_full_products = _FullProducts()
