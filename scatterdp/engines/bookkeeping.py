"""Clipping from one backward pass, without per-example gradients where they are the dearer way.

The forward pass notes each layer's inputs; one backward pass gives the gradients at each layer's *outputs* and at nothing else (no
weight gradient is computed and thrown away). From the two each layer gives its norms, and after clipping its weighted sum: no
second backward pass (Bu et al. 2022, arXiv 2210.00038, "book-keeping").

| engine | norms of a layer |
|---|---|
| ``ghost`` | always without its per-example gradients |
| ``mixed_ghost`` | whichever needs fewer numbers (Bu et al. 2022, arXiv 2205.10683), by the shapes that it meets |

Per-example gradients, once there, also give the weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scatterdp.engines.clipping import Clipping, layer_factors
from scatterdp.engines.contract import ClippedSum, PerExampleLoss
from scatterdp.engines.modules import check_private, full_name, layers_of, own_parameters
from scatterdp.engines.rules import RULES, Rule
from scatterdp.errors import UserError


@dataclass(frozen=True)
class Decision:
    """How one layer's norms are computed, and the numbers a choice is made from: printable."""

    layer: str
    kind: str
    ghost: bool

    def __str__(self) -> str:
        return f"{self.layer or '(model)'} ({self.kind}): {'ghost norm' if self.ghost else 'per-example gradients'}"


def ghost_engine(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    max_grad_norm: float,
    clipping: Clipping = "flat",
    squared_norms: Tensor | None = None,
) -> ClippedSum:
    """The engine contract for the layers of :data:`scatterdp.engines.rules.RULES`; ``squared_norms`` is ignored.

    Raises:
        UserError: a layer of another kind, used twice, or one that cannot be private.
    """
    return _clipped_sum(model, loss, x, y, max_grad_norm, clipping, lambda rule: True)


def mixed_ghost_engine(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    max_grad_norm: float,
    clipping: Clipping = "flat",
    squared_norms: Tensor | None = None,
) -> ClippedSum:
    """The engine contract for the layers of :data:`scatterdp.engines.rules.RULES`; ``squared_norms`` is ignored.

    Raises:
        UserError: a layer of another kind, used twice, or one that cannot be private.
    """
    return _clipped_sum(model, loss, x, y, max_grad_norm, clipping, Rule.prefers_ghost)


def decisions(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor) -> list[Decision]:
    """What ``mixed_ghost`` does for each layer on inputs of this shape."""
    return [
        Decision(name, type(rule.module).__name__, rule.prefers_ghost()) for name, rule in backward(model, loss, x, y)
    ]


def per_example_gradients(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Per-example gradients ``(b, *shape)`` by parameter name, from one backward pass."""
    return {
        full_name(name, parameter): values
        for name, rule in backward(model, loss, x, y)
        for parameter, values in rule.per_example().items()
    }


def _clipped_sum(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    max_grad_norm: float,
    clipping: Clipping,
    use_ghost: Callable[[Rule], bool],
) -> ClippedSum:
    rules = backward(model, loss, x, y)
    squares = [rule.squared_norms(ghost=use_ghost(rule)) for _, rule in rules]
    stacked = torch.stack([square.double() for square in squares]) if squares else x.new_zeros(0, len(x))
    factors, norms = layer_factors(stacked, max_grad_norm, clipping)
    finite = norms.isfinite()
    sums = {
        full_name(name, parameter): value
        for (name, rule), layer in zip(rules, factors, strict=True)
        for parameter, value in rule.clipped_sum(layer, finite).items()
    }
    return ClippedSum(sums, norms.to(x.dtype if x.is_floating_point() else torch.float32))


def backward(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor) -> list[tuple[str, Rule]]:
    """One forward and one backward pass: a rule for each layer, with its inputs and output gradients."""
    check_private(model)
    if len(x) == 0:
        return [(name, _Unused(module, x, x)) for name, module in layers_of(model)]
    calls: list[tuple[str, Any, Tensor, Tensor]] = []
    handles = []
    for name, module in layers_of(model):
        kind = type(module)
        if kind not in RULES:
            known = ", ".join(sorted(known.__name__ for known in RULES))
            raise UserError(
                f"module {name or kind.__name__!r} ({kind.__name__}): no rule for its per-example gradients (there are rules for "
                f"{known}); take engine='vmap', or freeze it with requires_grad_(False)"
            )

        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            if any(name == earlier for earlier, *_ in calls):
                raise UserError(f"module {name!r} ({type(module).__name__}): is used twice; take engine='vmap'")
            calls.append((name, module, inputs[0].detach(), output))

        handles.append(module.register_forward_hook(note))
    try:
        with torch.enable_grad():
            total = loss(model(x), y).sum()
            outputs = [output for *_, output in calls]
            gradients = torch.autograd.grad(total, outputs, allow_unused=True) if outputs else ()
    finally:
        for handle in handles:
            handle.remove()
    rules: list[tuple[str, Rule]] = []
    with torch.no_grad():
        for (name, module, inputs, output), gradient in zip(calls, gradients, strict=True):
            if len(output) != len(x):
                raise UserError(
                    f"module {name!r} ({type(module).__name__}): its outputs have {len(output)} rows for {len(x)} examples; "
                    "the first axis must be the example's"
                )
            gradient = torch.zeros_like(output) if gradient is None else gradient
            rules.append((name, RULES[type(module)](module, inputs, gradient.detach())))
    missing = {name for name, _ in layers_of(model)} - {name for name, _ in rules}
    for name in sorted(missing):  # never called: its gradient is zero
        module = model.get_submodule(name)
        rules.append((name, _Unused(module, x, x)))
    return rules


class _Unused(Rule):
    """A layer that the batch never met."""

    def per_example(self) -> dict[str, Tensor]:
        return {name: p.new_zeros(len(self.inputs), *p.shape) for name, p in own_parameters(self.module)}

    def ghost_squared_norms(self) -> Tensor:
        return torch.zeros(len(self.inputs), device=self.inputs.device)

    def weighted_sum(self, factors: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in own_parameters(self.module)}
