"""Accuracy and loss of a classifier on rows in memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from scatterdp.training.rows import LabelledRows


@torch.no_grad()
def evaluate(
    classifier: nn.Module, rows: LabelledRows, weights: dict[str, Tensor] | None = None
) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross entropy (nats) of all rows.

    Args:
        classifier: maps ``(b, D)`` to logits.
        rows: examples.
        weights: used in place of the classifier's own, by name.
    """
    correct, loss = 0, 0.0
    for piece in rows.pieces(np.arange(len(rows.y)), step=0):
        logits = functional_call(classifier, weights or {}, (piece.x,))
        correct += int((logits.argmax(1) == piece.y).sum())
        loss += float(nn.functional.cross_entropy(logits, piece.y, reduction="sum"))
    return correct / len(rows.y), loss / len(rows.y)


@torch.no_grad()
def predicted_classes(classifier: nn.Module, rows: LabelledRows) -> np.ndarray:
    """``(N,)`` int64: the class of the largest logit of every row, in order; pieces are those of :func:`evaluate`."""
    pieces = rows.pieces(np.arange(len(rows.y)), step=0)
    return torch.cat([classifier(piece.x).argmax(1) for piece in pieces]).cpu().numpy()
