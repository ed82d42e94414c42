"""An exponential moving average of the weights: post-processing of what was released, so free."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage:
    """``average ← d·average + (1-d)·weights`` after each step t, with ``d = min(decay, (2+t)/(10+t))``.

    The short memory of the first steps forgets the initial weights.
    """

    def __init__(self, model: nn.Module, decay: float = 0.95) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step ``step`` (from 0)."""
        decay = min(self.decay, (2 + step) / (10 + step))
        for name, value in model.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
