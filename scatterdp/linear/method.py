"""What a private linear method is: public facts and a noise multiplier in, weights and ledger entries out.

A method is a frozen dataclass of everything that it may choose, all of it public. It knows its event for every noise multiplier before it touches
data, so a budget is solved first. The rows that it gets are at most one long (:func:`unit_blocks` makes sure again, after rounding),
which is all that bounds what one example can change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import dp_accounting
import torch
from torch import Tensor

from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import ADJACENCY
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.rows import FeatureRows

#: The most features of a method that holds and factors a matrix of their products.
MOST_FEATURES = 2048
_BLOCK = 8192
_ROUNDING = 1e-5  # squares summed in single precision are that exact for any dimension of use


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is public about the private rows.

    Args:
        num_examples: N.
        num_features: D.
        num_classes: C.
    """

    num_examples: int
    num_features: int
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A private linear classifier of the rows.

    Args:
        weight: ``(C, D)`` float32.
        bias: ``(C,)`` float32.
        entries: what was released, for the ledger.
        sampler: what the certificate says of batches.
    """

    weight: Tensor
    bias: Tensor
    entries: list[LedgerEntry]
    sampler: dict[str, Any]


class Method(Protocol):
    """A way to fit a linear classifier with differential privacy."""

    @property
    def name(self) -> str: ...

    @property
    def problem(self) -> Problem: ...

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Everything that :meth:`solve` releases at this noise multiplier; less private for a smaller one."""
        ...

    def solve(
        self, rows: FeatureRows, *, noise_multiplier: float, key: RandomKey, processes: Processes = ONE
    ) -> Solution:
        """Fit; the same solution on all processes.

        Args:
            rows: the private rows, each at most one long, and their labels.
            noise_multiplier: σ > 0.
            key: of this fit and no other.
            processes: which hold all rows together, ``rows`` being this one's.
        """
        ...


def unit_blocks(rows: FeatureRows, *, constant: float = 0.0) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows ``(b, D)`` float32, none longer than one, and their labels, in blocks.

    Args:
        rows: each example once.
        constant: when > 0, rows get one more entry, this number, and the others shrink so that the length stays at most one.
    """
    shrink = (1 - constant**2) ** 0.5
    for x, y, squares in zip(rows.x.split(_BLOCK), rows.y.split(_BLOCK), rows.squared_norms.split(_BLOCK), strict=True):
        z = x.float() * (shrink / (squares.sqrt() * (1 + _ROUNDING)).clamp(min=1))[:, None]
        if constant:
            z = torch.cat([z, z.new_full((len(z), 1), constant)], 1)
        yield z, y


def store(x: Tensor, squared_norms: Tensor, start: int, values: Tensor) -> None:
    """Put rows at ``start``, in the precision of ``x``, and their squared lengths as they are stored."""
    part = x[start : start + len(values)].copy_(values)
    squared_norms[start : start + len(values)] = part.float().square().sum(1)


def every_row(num_examples: int) -> dict[str, Any]:
    """What the certificate says of the batches of a method that reads every example and draws none."""
    return {"kind": "none", "num_examples": num_examples, "adjacency": ADJACENCY}


def gaussian_entry(
    name: str, noise_multiplier: float, sensitivity: float, *, steps: int | None = None, **details: Any
) -> LedgerEntry:
    """A ledger entry of one sum with Gaussian noise, or of so many."""
    facts = {
        "noise_multiplier": noise_multiplier,
        "sensitivity": sensitivity,
        "noise_standard_deviation": noise_multiplier * sensitivity,
    }
    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
    if steps is not None:
        event = dp_accounting.SelfComposedDpEvent(event, steps)
        facts["steps"] = steps
    return LedgerEntry(name, event, facts | details)


def check_matrix_size(head: str, size: int) -> None:
    """Raise ConfigError when a matrix of so many rows and columns is too large for a head."""
    if size > MOST_FEATURES:
        raise ConfigError(f"head={head}: takes at most {MOST_FEATURES} features, these are {size}; take another head")
