"""The linear head: normalise, flatten, one linear layer."""

from __future__ import annotations

import math

from torch import Tensor, nn


class LinearHead(nn.Module):
    """``(B, K, h, w) -> (B, num_classes)`` logits.

    Args:
        normalizer: fixed map of features (no trainable parameter).
        input_shape: ``(K, h, w)``.
        num_classes: outputs. The linear layer starts at zero: nothing random, and every class equally likely.
    """

    def __init__(self, normalizer: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.classifier = nn.Linear(math.prod(input_shape), num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.normalizer(x).flatten(1))
