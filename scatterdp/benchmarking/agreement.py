"""Do all contenders give the same gradient? Each is compared with ``loop``, one example at a time through autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scatterdp.benchmarking.contenders import CONTENDERS, losses
from scatterdp.benchmarking.networks import make_batch, make_network
from scatterdp.engines import loop_engine
from scatterdp.errors import UserError

_NO_BOUND = 1e9


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far a contender's average gradient is from ``loop``'s.

    Args:
        network, contender: names.
        batch: number of the batch, from 0.
        max_grad_norm: the bound, or None where it is too large to clip anything.
        absolute: largest difference of an entry.
        relative: the same ÷ the parameter's largest entry, the largest over parameters.
        reason: why the contender gives no gradient, or None.
    """

    network: str
    contender: str
    batch: int
    max_grad_norm: float | None
    absolute: float = 0.0
    relative: float = 0.0
    reason: str | None = None


def differences(
    network: str, contenders: Sequence[str], *, batch_size: int, batches: int, device: torch.device
) -> Iterator[Difference]:
    """Compare on several batches, each without an active bound and with the median norm of its examples as the bound.

    In double precision: where an activation is 0, or two of a pool are the largest, but for rounding, single precision goes one way in a batch and
    another way row by row, both rightly, and gradients differ by far more than rounding. Contenders that do not clip are compared without a bound only.
    """
    model = make_network(network, device).double()
    for batch in range(batches):
        x, y = make_batch(network, batch_size, device, seed=batch)
        x = x.double()
        plain = loop_engine(model, losses, x, y, max_grad_norm=_NO_BOUND)
        median = plain.norms.median().item()
        clipped = loop_engine(model, losses, x, y, max_grad_norm=median)
        for bound, expected in ((None, plain.gradients), (median, clipped.gradients)):
            for name in contenders:
                contender = CONTENDERS[name]
                if bound is not None and not contender.clips:
                    continue
                try:
                    gradients = contender.prepare(model, x, y, _NO_BOUND if bound is None else bound)()
                except (UserError, NotImplementedError) as error:
                    reason = f"{error}"
                    yield Difference(network=network, contender=name, batch=batch, max_grad_norm=bound, reason=reason)
                    continue
                divisor = batch_size if contender.clips else 1
                absolute, relative = compare({k: g / divisor for k, g in gradients.items()}, expected, batch_size)
                yield Difference(
                    network=network,
                    contender=name,
                    batch=batch,
                    max_grad_norm=bound,
                    absolute=absolute,
                    relative=relative,
                )


def compare(averages: dict[str, Tensor], sums: dict[str, Tensor], batch_size: int) -> tuple[float, float]:
    """Largest absolute and relative difference of averages and sums ÷ ``batch_size``; infinite where a parameter is missing."""
    if averages.keys() != sums.keys():
        return float("inf"), float("inf")
    absolute, relative = 0.0, 0.0
    for name, total in sums.items():
        expected = total / batch_size
        difference = (averages[name] - expected).abs().max().nan_to_num(nan=float("inf")).item()
        absolute = max(absolute, difference)
        relative = max(relative, difference / max(expected.abs().max().item(), 1e-30))
    return absolute, relative
