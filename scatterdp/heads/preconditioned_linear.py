r"""A linear layer on preconditioned inputs: ``W A x + b`` with a fixed symmetric A.

It computes :math:`(W A) x`, so that forward and backward pass multiply W by A, not every example. The gradient at W is that of a linear layer on A x,
which is what per-example norms and sums are taken of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.heads.normalizers import Precondition


class PreconditionedLinear(nn.Module):
    """``(b, in_features) -> (b, out_features)``; weights start at zero, A as the identity.

    Args:
        in_features, out_features: as of ``nn.Linear``.
        directions: how many A scales; they are filled in later.

    Raises:
        ValueError: inputs of another shape.
    """

    def __init__(self, in_features: int, out_features: int, *, directions: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.precondition = Precondition(torch.zeros(in_features, directions), torch.ones(directions))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise ValueError(f"inputs {tuple(x.shape)}: expected (b, {self.in_features})")
        # Not through its hooks: W A is no activation.
        return F.linear(x, self.precondition.forward(self.weight), self.bias)
