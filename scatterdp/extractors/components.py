"""Maps reduced to the principal components of their channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Components(NamedTuple):
    """Reduced maps are ``vectors · maps + bias``."""

    vectors: Tensor
    """``(components, channels)`` float32."""
    bias: Tensor
    """``(components, 1)`` float32."""


def principal_components(maps: Iterable[Tensor], count: int) -> Components:
    """The largest principal components of the channels of maps ``(b, channels, places)``, over all places."""
    total, products, places = np.zeros(()), np.zeros(()), 0
    for piece in maps:
        rows = piece.movedim(1, 2).flatten(0, 1).cpu().double().numpy()
        total, products, places = total + rows.sum(0), products + rows.T @ rows, places + len(rows)
    mean = total / places
    _, vectors = np.linalg.eigh(products / places - np.outer(mean, mean))
    vectors = vectors[:, ::-1][:, :count].T
    return Components(
        *(torch.from_numpy(np.ascontiguousarray(part)).float() for part in (vectors, -vectors @ mean[:, None]))
    )


def reduced(maps: Tensor, components: Components) -> Tensor:
    """``(b, channels, places) -> (b, components, places)``; image by image, so that a row is the same in every batch."""
    if not len(maps):
        return maps.new_empty(0, len(components.vectors), maps.shape[2])
    return torch.stack([torch.addmm(components.bias, components.vectors, each) for each in maps])
