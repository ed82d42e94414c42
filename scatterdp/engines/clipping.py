r"""Clipping functions: from an example's gradient norms to the factors that its gradient is multiplied with.

With :math:`n_l` the norm of the example's gradient of layer l (a module's own parameters), :math:`n^2 = \sum_l n_l^2` and m layers:

| name | factor of layer l | source |
|---|---|---|
| ``flat`` | min(1, C / n) | Abadi et al. 2016, algorithm 1 |
| ``per_layer`` | min(1, C / (√m · n_l)) | McMahan et al. 2018, arXiv 1710.06963, section 3 |
| ``automatic`` | C / (n + 0.01) | Bu et al. 2022, arXiv 2206.07136 |

**Formal guarantee.** Each maps every example's gradient to one of L2 norm at most C over all layers together: for ``flat`` by
definition; for ``per_layer`` each of m layers has norm at most C/√m; for ``automatic`` C · n / (n + 0.01) < C. So a sum over examples
has L2 sensitivity C for adding or removing one.

An example with a norm that is NaN or infinite in any layer gets the factor 0 in all of them.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Clipping = Literal["flat", "per_layer", "automatic"]
_STABILITY = 0.01
SMALLEST_BOUND = 1e-15  # of numbers below 3e-23 the squares vanish in single precision, and there may be millions


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """``min(1, C / norm)`` for each example; 0 where the norm is NaN or infinite."""
    check_bound(max_grad_norm)
    factors = torch.where(norms <= max_grad_norm, torch.ones_like(norms), max_grad_norm / norms)
    return torch.where(norms.isfinite(), factors, torch.zeros_like(norms))


def layer_factors(squared_norms: Tensor, max_grad_norm: float, clipping: Clipping = "flat") -> tuple[Tensor, Tensor]:
    """The factors of every layer and example.

    Args:
        squared_norms: ``(layers, b)``, squared norms of each example's gradient of each layer.
        max_grad_norm: C > 0.
        clipping: which function.

    Returns:
        factors ``(layers, b)`` and the norms over all layers ``(b,)``, both float64.

    Raises:
        ValueError: C is below 1e-15, or an unknown function.
    """
    check_bound(max_grad_norm)
    if clipping not in get_args(Clipping):
        raise ValueError(f"clipping={clipping!r}: expected one of {', '.join(get_args(Clipping))}")
    squared_norms = squared_norms.double()
    norms = squared_norms.sum(0).sqrt()
    if clipping == "flat":
        factors = clip_factors(norms, max_grad_norm).expand_as(squared_norms)
    elif clipping == "per_layer":
        factors = clip_factors(squared_norms.sqrt(), max_grad_norm / math.sqrt(max(1, len(squared_norms))))
        factors = torch.where(norms.isfinite(), factors, torch.zeros_like(factors))
    else:
        if math.isinf(max_grad_norm):
            raise ValueError("max_grad_norm=inf: automatic clipping scales to the bound, give a finite one")
        factors = max_grad_norm / (norms + _STABILITY)
        factors = torch.where(norms.isfinite(), factors, torch.zeros_like(factors)).expand_as(squared_norms)
    return factors, norms


def check_bound(max_grad_norm: float) -> None:
    """Raise ValueError unless the bound is a number ≥ 1e-15."""
    if not max_grad_norm >= SMALLEST_BOUND:
        raise ValueError(f"max_grad_norm={max_grad_norm}: expected a number ≥ {SMALLEST_BOUND}")
