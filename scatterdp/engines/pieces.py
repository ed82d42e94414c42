"""A physical batch in pieces whose activations stay near a processor's caches.

**Why the answer is the same.** An example's factor depends on its own norms only, whatever the clipping function
(:mod:`scatterdp.engines.clipping`), and the model keeps examples apart: the clipped sum of a batch is the sum of its pieces' clipped sums,
but for the rounding of sums. All copies of an example are in one piece. Dropout draws other numbers than for the batch as a whole.

**What it is for.** Book-keeping has to keep something of every layer until the last norm is known, which an ordinary backward pass has not;
in pieces that is something of a few examples. It is also faster where activations of the whole batch do not fit the caches. An ordinary
gradient could be computed in pieces just as well. On a graphics card a batch is worked through as a whole, to keep it busy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scatterdp.engines.clipping import Clipping
from scatterdp.engines.contract import ClippedSum, Engine, PerExampleLoss, check_copies
from scatterdp.engines.modules import check_private, check_unchanged, versions_of
from scatterdp.engines.precision import RunningSums
from scatterdp.engines.rules import even

# By measurement: networks from 22 thousand to a million activations a row, one and two threads.
_NUMBERS = 1 << 22
_FEWEST = 32


def in_pieces(engine: Engine) -> Engine:
    """The engine, on a processor for some examples at a time."""

    def engine_in_pieces(
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
        check_copies(x, copies)
        whole = x.device.type != "cpu" or len(x) <= _FEWEST
        size = max(1, len(x)) if whole else copies * examples_of_piece(model, x, copies)
        parts = [
            engine(model, loss, *rows, max_grad_norm=max_grad_norm, clipping=clipping, copies=copies)
            for rows in zip(x.split(size), y.split(size), strict=True)
        ]
        return parts[0] if len(parts) == 1 else added(parts)

    return engine_in_pieces


def added(parts: list[ClippedSum]) -> ClippedSum:
    """The clipped sum of all the parts' examples."""
    sums = RunningSums()
    for part in parts:
        sums.add(part.gradients)
    return ClippedSum(sums.rounded(), torch.cat([part.norms for part in parts]))


def examples_of_piece(model: nn.Module, x: Tensor, copies: int) -> int:
    """How many examples at a time: all, or pieces of one size, as far as that goes."""
    check_private(model)  # before anything passes through it
    examples = len(x) // copies
    # Not few beside the model's own, which are read again for each piece.
    numbers = max(_NUMBERS, sum(tensor.numel() for tensor in model.state_dict().values()) // 2)
    most = max(math.ceil(_FEWEST / copies), numbers // (copies * numbers_of_row(model, x)))
    return even(examples, most)


def numbers_of_row(model: nn.Module, x: Tensor) -> int:
    """How many numbers a row's activations are: the outputs of all modules without children, from a forward pass of zeros.

    Raises:
        UserError: the forward pass writes to the model.
    """
    counts = [1]
    handles = [
        module.register_forward_hook(lambda *call: counts.append(call[2].numel() if isinstance(call[2], Tensor) else 0))
        for module in model.modules()
        if not any(True for _ in module.children())
    ]
    before = versions_of(model)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            model(torch.zeros_like(x[:1]))
        check_unchanged(model, before)
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)
