"""Plain gradients, for training that is not private: the sum over examples, no clipping, no bound.

It answers like an engine, so that the loop is the same, but is none: a plan takes it only without noise, and its certificate says "not private".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scatterdp.engines import ClippedSum, Clipping, PerExampleLoss


def unclipped_sum(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    max_grad_norm: float,
    clipping: Clipping = "flat",
    squared_norms: Tensor | None = None,
    copies: int = 1,
) -> ClippedSum:
    """The sum of the examples' gradients, each the mean of its copies'; bounds are ignored and no norms are computed."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        total = loss(model(x), y).sum() / copies
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return ClippedSum(dict(zip(parameters, gradients, strict=True)), torch.zeros(0))
