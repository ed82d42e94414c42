"""The precision of norms and clipped sums, whatever the model computes in.

An example's share of a sum is bounded only where the sum rounds by far less than the bound. In bfloat16 (autocast, or products of float32
that torch may compute in it) one example was seen to move the sum of 3000 by 3.7 times the bound. So the model may compute as it likes,
for a gradient that is rounded in the forward or backward pass is bounded all the same; from the gradients on, everything
is float32 or float64, without TensorFloat-32.

Sums of pieces are added up in double precision and rounded once (:class:`RunningSums`): in single precision one example, chosen to, decides
whether the many small pieces after it count, and was seen to move the sum of 32 thousand by 1.25 times the bound.

**Limit.** Float32 rounds the sum of a piece too, by some 1e-7 of itself: where 3000 examples all point one way, one of them was seen to move their sum
by 0.9997 to 1.0001 times the bound, depending on the engine, and examples chosen for it to 1.001 in one matrix product of 32 thousand rows. And libraries choose how to multiply by a matrix's size, so the few examples that share its last,
smaller piece may be rounded in another way, by some 1e-5 of themselves, when the piece has one more.

Where an example's own terms cancel, half of them may be far larger than its gradient, and beside them those of other examples vanish: one of them
was seen to move a sum of 600 by 7.7 times the bound. Book-keeping sums such examples apart in double precision
(:class:`scatterdp.engines.rules.MatrixRule`); below the threshold 1.002 times the bound was the most that was seen, of 16 thousand chosen for it.
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

    def rounded(self) -> dict[str, Tensor]:
        """The sums in the precision of what was added first; of a single value, the value itself."""
        return {name: total.to(self._precisions[name]) for name, total in self._sums.items()}


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
