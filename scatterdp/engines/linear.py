r"""Closed-form clipping for a linear layer: no per-example gradient ever exists.

For logits :math:`z = Wx + b` and any per-example loss, let :math:`r = \partial\ell/\partial z` (softmax minus one-hot
for cross entropy). The gradient is :math:`(r x^\top, r)`, of norm
:math:`\lVert r\rVert \sqrt{\lVert x\rVert^2 + 1}` (Goodfellow 2015, arXiv 1510.01799), so with clip factors c the
clipped sum is :math:`((c \odot R)^\top X, (c \odot R)^\top 1)`: the flops of one ordinary backward pass. A frozen weight or bias
leaves its part out of both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines.clipping import Clipping, layer_factors
from scatterdp.engines.contract import ClippedSum, PerExampleLoss
from scatterdp.engines.modules import check_private
from scatterdp.engines.precision import ROWS_OF_A_SUM, full_precision, in_single_precision, sum_of_products
from scatterdp.engines.rules import lengths, scaled


def linear_engine(
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
    """The engine contract for ``nn.Linear`` on inputs ``(b, D)``.

    Raises:
        TypeError: another kind of module.
        ValueError: more than one copy of an example.
        UserError: parameters of half precision.
    """
    if copies != 1:
        raise ValueError(f"copies={copies}: engine 'linear' takes one row an example; take 'mixed_ghost'")
    if not isinstance(model, nn.Linear):
        raise TypeError(f"engine 'linear': expected torch.nn.Linear, got {type(model).__name__}")
    check_private(model)
    weight, bias = model.weight.detach(), model.bias
    logits = _products(x, weight)
    if bias is not None:
        logits = logits + bias.detach()
    residuals, x = in_single_precision(_loss_gradient(loss, logits, y)), in_single_precision(x)
    with full_precision(x.device):
        return _clipped_sum(model, residuals, x, max_grad_norm, clipping, squared_norms)


def _clipped_sum(
    model: nn.Linear,
    residuals: Tensor,
    x: Tensor,
    max_grad_norm: float,
    clipping: Clipping,
    squared_norms: Tensor | None,
) -> ClippedSum:
    """Of loss gradients at the logits ``(b, classes)`` and inputs ``(b, D)``."""
    # Double precision: squares of tiny residuals must not vanish beside huge inputs.
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    of_inputs = torch.full((len(x),), float("bias" in trainable), dtype=torch.float64, device=x.device)
    if "weight" in trainable:
        of_inputs = torch.hypot(of_inputs, lengths(x) if squared_norms is None else squared_norms.double().sqrt())
    squares = (lengths(residuals) * of_inputs).square()
    (factors,), norms = layer_factors(squares[None], max_grad_norm, clipping)
    if not torch.isfinite(norms).all():
        # 0 · NaN is NaN: rows that may not count are replaced, not multiplied away.
        kept = norms.isfinite()[:, None]
        residuals, x = torch.where(kept, residuals, 0.0), torch.where(kept, x, 0.0)
    weighted = scaled(residuals, factors)
    gradients = {}
    if "weight" in trainable:
        gradients["weight"] = sum_of_products(weighted, x)
    if "bias" in trainable:
        gradients["bias"] = weighted.sum(0, dtype=torch.float64).to(weighted.dtype)
    return ClippedSum(gradients, norms.to(residuals.dtype))


def _products(x: Tensor, weight: Tensor) -> Tensor:
    """``(b, classes)``, of the same number of rows at a time, the last ones filled up with zeros.

    Eleven rows are multiplied otherwise than twelve. Where logits cancel, rounding is all that is left of them, and an example more would turn the gradients of
    all others: eleven rows were seen to move by eleven bounds.
    """
    products = []
    for part in x.contiguous().split(ROWS_OF_A_SUM):
        missing = ROWS_OF_A_SUM - len(part)
        filled = F.pad(part, (0, 0, 0, missing)) if missing else part
        # This way round: few rows times many is half as fast the other way.
        products.append((weight @ filled.t()).t()[: len(part)])
    return products[0] if len(products) == 1 else torch.cat(products)


def _loss_gradient(loss: PerExampleLoss, logits: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        logits = logits.requires_grad_()
        return torch.autograd.grad(loss(logits, y).sum(), logits)[0]
