"""Factors worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from scatterdp.engines.clipping import layer_factors

# Squared norms of two layers (rows) and four examples: of norm 5, 0, 0.05, not finite.
SQUARES = torch.tensor([[9.0, 0.0, 0.0009, math.inf], [16.0, 0.0, 0.0016, 1.0]], dtype=torch.float64)
BOUND = 0.5


@pytest.mark.parametrize(
    ("clipping", "expected"),
    [
        ("flat", [[0.1, 1, 1, 0], [0.1, 1, 1, 0]]),
        ("per_layer", [[0.5 / math.sqrt(2) / 3, 1, 1, 0], [0.5 / math.sqrt(2) / 4, 1, 1, 0]]),
        ("automatic", [[0.5 / 5.01, 0.5 / 0.01, 0.5 / 0.06, 0]] * 2),
    ],
)
def test_factors(clipping, expected):
    factors, norms = layer_factors(SQUARES, BOUND, clipping)
    assert factors.tolist() == pytest.approx([pytest.approx(row, rel=1e-12) for row in expected])
    assert norms.tolist() == pytest.approx([5, 0, 0.05, math.inf])


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_no_example_keeps_more_than_the_bound(clipping):
    factors, _ = layer_factors(SQUARES, BOUND, clipping)
    kept = (factors.square() * torch.where(SQUARES.isfinite(), SQUARES, 0)).sum(0).sqrt()
    assert kept.max() <= BOUND * (1 + 1e-12)
    assert kept[1] == 0
    assert factors.isfinite().all()
