"""Accuracy and loss of a classifier on rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.rows import LabelledRows


@torch.no_grad()
def evaluate(
    classifier: nn.Module,
    rows: LabelledRows,
    weights: dict[str, Tensor] | None = None,
    *,
    processes: Processes = ONE,
) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross entropy (nats) of all rows.

    Args:
        classifier: maps ``(b, D)`` to logits.
        rows: examples.
        weights: used in place of the classifier's own, by name.
        processes: each of which has a part of all rows.
    """
    correct, loss = 0, 0.0
    for piece in rows.pieces(np.arange(len(rows.y)), step=0):
        logits = functional_call(classifier, weights or {}, (piece.x,))
        correct += int((logits.argmax(1) == piece.y).sum())
        loss += float(nn.functional.cross_entropy(logits, piece.y, reduction="sum"))
    found = processes.gather((correct, loss, len(rows.y)))
    correct, loss, count = (sum(of_each) for of_each in zip(*found, strict=True))
    return correct / count, loss / count


@torch.no_grad()
def predicted_classes(classifier: nn.Module, rows: LabelledRows, *, processes: Processes = ONE) -> np.ndarray:
    """``(N,)`` int64: the class of the largest logit of every row, in order; pieces are those of :func:`evaluate`."""
    pieces = rows.pieces(np.arange(len(rows.y)), step=0)
    predicted = [classifier(piece.x).argmax(1).cpu().numpy() for piece in pieces]
    return np.concatenate([part for of_one in processes.gather(predicted) for part in of_one])
