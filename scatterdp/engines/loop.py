"""One example at a time through autograd: slow, for any model, the witness that every other engine is tested against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scatterdp.engines.contract import ClippedSum, PerExampleLoss, check_bound, clip_factors


def loop_engine(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    max_grad_norm: float,
    squared_norms: Tensor | None = None,
) -> ClippedSum:
    """The engine contract, by definition. ``squared_norms`` is ignored."""
    check_bound(max_grad_norm)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    norms = []
    for i in range(len(x)):
        with torch.enable_grad():
            total = loss(model(x[i : i + 1]), y[i : i + 1]).sum()
            gradients = torch.autograd.grad(total, list(parameters.values()))
        norm = torch.stack([g.norm() for g in gradients]).norm()
        norms.append(norm)
        factor = clip_factors(norm, max_grad_norm)
        if factor > 0:
            for name, gradient in zip(sums, gradients, strict=True):
                sums[name] += factor * gradient
    return ClippedSum(sums, torch.stack(norms) if norms else x.new_zeros(0))
