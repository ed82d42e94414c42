"""Clipping from one backward pass, without per-example gradients where they are the dearer way.

The forward pass notes each layer's inputs; one backward pass gives the gradients at each layer's *outputs* and at nothing else (no
weight gradient is computed and thrown away). From the two each layer gives its norms, and after clipping its weighted sum: no
second backward pass (Bu et al. 2022, arXiv 2210.00038, "book-keeping").

A layer's norms are computed the moment its output gradient arrives, and only what its weighted sum needs stays until the last norm is
known: the layer's per-example gradients where there are any, otherwise its inputs and output gradient. The rest of the backward pass
frees as it goes, as an ordinary one does. On a processor the engines work through a large batch in pieces
(:mod:`scatterdp.engines.pieces`).

| engine | norms of a layer |
|---|---|
| ``ghost`` | always without its per-example gradients |
| ``mixed_ghost`` | whichever needs fewer numbers (Bu et al. 2022, arXiv 2205.10683), by the shapes that it meets |

Per-example gradients, once there, also give the weighted sum. Those of biases and normalisations are small, and kept in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from scatterdp.engines.arrival import nodes_of, notes_on, visit_gradients
from scatterdp.engines.clipping import Clipping, layer_factors
from scatterdp.engines.contract import ClippedSum, Engine, PerExampleLoss, check_copies
from scatterdp.engines.modules import (
    GENERAL,
    Versions,
    check_private,
    check_unchanged,
    full_name,
    layers_of,
    own_parameters,
    versions_of,
)
from scatterdp.engines.pieces import in_pieces
from scatterdp.engines.precision import full_precision, in_single_precision
from scatterdp.engines.rules import RULES, Rule, rule_for
from scatterdp.errors import UserError


@dataclass(frozen=True)
class Decision:
    """How one layer's norms are computed; printable."""

    layer: str
    kind: str
    ghost: bool

    def __str__(self) -> str:
        return f"{self.layer or '(model)'} ({self.kind}): {'ghost norm' if self.ghost else 'per-example gradients'}"


def everywhere(rule: Rule) -> bool:
    """Norms without per-example gradients, always."""
    return True


def by_the_shapes(rule: Rule) -> bool:
    """Norms without per-example gradients where that needs fewer numbers."""
    return rule.prefers_ghost()


def decisions(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor, *, copies: int = 1) -> list[Decision]:
    """What ``mixed_ghost`` does for each layer on inputs of this shape."""
    return [
        Decision(name, type(rule.module).__name__, rule.prefers_ghost())
        for name, rule in backward(model, loss, x, y, copies=copies)
    ]


def per_example_gradients(model: nn.Module, loss: PerExampleLoss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Per-example gradients ``(b, *shape)`` by parameter name, from one backward pass."""
    rules = backward(model, loss, x, y)
    with full_precision(x.device):
        return {
            full_name(name, parameter): values
            for name, rule in rules
            for parameter, values in rule.per_example().items()
        }


def engine_on(rules_of: Callable[..., list[tuple[str, Rule]]]) -> Engine:
    """The engine contract by the measured rules of ``rules_of(model, loss, x, y, copies=…)``; ``squared_norms`` is ignored.

    The engine raises UserError for a layer of another kind, used twice, or one that cannot be private.
    """

    def engine(
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
        rules = rules_of(model, loss, x, y, copies=copies)
        clipped = clip(rules, len(x) // copies, max_grad_norm=max_grad_norm, clipping=clipping)
        return ClippedSum(clipped.gradients, clipped.norms.to(x.device, torch.promote_types(x.dtype, torch.float32)))

    return engine


def clip(
    rules: list[tuple[str, Rule]],
    examples: int,
    *,
    max_grad_norm: float,
    clipping: Clipping,
) -> ClippedSum:
    """Clipped gradient sums of measured rules by parameter name, and norms ``(b,)`` before clipping in double precision."""
    squares = [rule.squares for _, rule in rules]
    stacked = torch.stack(squares) if squares else torch.zeros(0, examples, dtype=torch.float64)
    with full_precision(stacked.device):
        factors, norms = layer_factors(stacked, max_grad_norm, clipping)
        finite = norms.isfinite()
        sums = {
            full_name(name, parameter): value
            for (name, rule), layer in zip(rules, factors, strict=True)
            for parameter, value in rule.clipped_sum(layer, finite).items()
        }
    return ClippedSum(sums, norms)


def backward(
    model: nn.Module,
    loss: PerExampleLoss,
    x: Tensor,
    y: Tensor,
    *,
    copies: int = 1,
    use_ghost: Callable[[Rule], bool] | None = None,
) -> list[tuple[str, Rule]]:
    """One forward and one backward pass: a rule for each layer, as :meth:`Recorder.rules` gives them."""
    with Recorder(model) as recorder:
        if len(x) == 0:
            return recorder.rules_of_nothing()
        with torch.enable_grad():
            losses = loss(model(x), y)
        return recorder.rules(losses, copies=copies, use_ghost=use_ghost)


@dataclass(frozen=True)
class _Call:
    """One layer in one forward pass."""

    label: str
    module: Any
    inputs: Tensor
    input_version: int
    edge: GradientEdge
    source: Node | None  # what the inputs come from
    output_shape: torch.Size

    def check_rows(self, losses: Tensor) -> None:
        if len(self.inputs) != len(losses) or self.output_shape[:1] != losses.shape:
            raise UserError(
                f"{self.label}: has {len(self.inputs)} input and {self.output_shape[0]} output rows for {len(losses)} examples; "
                "the first axis must be the example's"
            )

    def rule(self, gradient: Tensor, copies: int) -> Rule:
        if self.inputs._version != self.input_version:
            raise UserError(f"{self.label}: its input is changed in place after it was read; take inplace=False")
        rule = rule_for(self.module)
        assert rule is not None, self.label
        gradient = in_single_precision(gradient.detach()).reshape(self.output_shape)
        return rule.of(self.module, in_single_precision(self.inputs), gradient, copies)


class Recorder:
    """Notes every layer's inputs and outputs while a model computes; a context manager.

    Args:
        model: checked by :func:`scatterdp.engines.modules.check_private`. Each forward pass of it begins a new record.

    Raises:
        UserError: a layer of a kind without a rule, or one that cannot be private; later, a layer that is used twice in one pass, or a pass, with
            gradients on or not, that writes to the model: from then on it is refused.
    """

    def __init__(self, model: nn.Module) -> None:
        check_private(model)
        self.layers = layers_of(model)
        for name, module in self.layers:
            kind = type(module)
            if rule_for(module) is None:
                known = ", ".join(sorted(known.__name__ for known in RULES))
                own = ", ".join(parameter for parameter, _ in own_parameters(module))
                raise UserError(
                    f"module {name or kind.__name__!r} ({kind.__name__}): no rule for per-example gradients of its {own} (there are rules "
                    f"for {known}); freeze that with requires_grad_(False), or {GENERAL}"
                )
            odd = [parameter for parameter, _ in own_parameters(module) if parameter not in ("weight", "bias")]
            if odd or vars(module).get("forward") is not None:
                raise UserError(
                    f"module {name or kind.__name__!r} ({kind.__name__}): has {', '.join(odd) or 'a forward'} of its own; "
                    f"{GENERAL}"
                )
        self._model = model
        self._versions = versions_of(model)
        self._calls: dict[str, _Call] = {}
        self._begun = False
        self._passes = 0
        self._mark = object()  # under which the layers' places in a backward pass say which pass they are of
        self._before: Versions | None = None  # the model's state when the pass that is under way began
        self._written: UserError | None = None  # what has come into the model from a pass, for good
        # Functions, which a deep copy of the model shares without copying the recorder; the copy's passes are not looked at.
        self._handles = [
            model.register_forward_pre_hook(lambda module, _: self._begin() if module is model else None, prepend=True),
            model.register_forward_hook(lambda module, *_: self._end() if module is model else None, always_call=True),
        ]
        self._handles += [
            module.register_forward_hook(self._noting(name, module), with_kwargs=True) for name, module in self.layers
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._calls = {}

    def rules(
        self, losses: Tensor, *, copies: int = 1, use_ghost: Callable[[Rule], bool] | None = None
    ) -> list[tuple[str, Rule]]:
        """A rule for every layer, from the last forward pass and its losses ``(b · copies,)``; an example's is its copies' mean.

        Args:
            losses: of every row.
            copies: rows in succession that belong to one example.
            use_ghost: how each rule is measured, the moment its output gradient is there; None: not measured, all of them keep their
                inputs and output gradients.

        Raises:
            UserError: a layer whose first axis is not the examples', or whose input or gradient is not what it was when the layer read it; losses
            that are not of the last forward pass.
        """
        if not self._begun:
            raise UserError(
                "model: was not called since the last step with gradients on; call the model itself, not its parts or its forward"
            )
        check_unchanged(self._model, self._versions)
        if losses.ndim != 1:
            raise UserError(f"loss of shape {tuple(losses.shape)}: expected one number an example, reduction='none'")
        if not losses.requires_grad and self.layers:
            raise UserError(
                "loss: has no gradient (detached, or of whole numbers); give it as the loss function computes it"
            )
        self._check_ways(losses)
        self._begun = False
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.check_rows(losses)
        found: dict[str, Rule] = {}
        held: list[tuple[str, Tensor, int]] = []

        def arrived(name: str, gradient: Tensor | None) -> None:
            call = calls.pop(name)  # what the rule does not need may go
            if gradient is None:
                return
            with torch.no_grad(), full_precision(gradient.device):
                found[name] = call.rule(gradient, copies)
                if use_ghost is not None:
                    found[name].measure(ghost=use_ghost(found[name]))
                held.extend((call.label, tensor, tensor._version) for tensor in found[name].held())

        visit_gradients(losses, {name: call.edge for name, call in calls.items()}, arrived, weight=1 / copies)
        if self.layers and not found:
            raise _of_another_pass()
        for label, tensor, version in held:
            if tensor._version != version:  # the sum would be of other values than the norm
                raise UserError(
                    f"{label}: its input or its output's gradient is changed in place in the backward pass; change a copy"
                )
        return [
            (name, found[name] if name in found else _Unused(module, losses.detach(), losses.detach(), copies))
            for name, module in self.layers
        ]

    def _check_ways(self, losses: Tensor) -> None:
        """Do the losses come from the last pass alone, and from weights only by way of their layers?"""
        trainable = {
            id(parameter): name for name, parameter in self._model.named_parameters() if parameter.requires_grad
        }
        for node in nodes_of(losses, {call.edge.node: call.source for call in self._calls.values()}):
            if notes_on(node).get(self._mark, self._passes) != self._passes:
                raise _of_another_pass()
            name = trainable.get(id(getattr(node, "variable", None)))
            if name is not None:
                raise UserError(
                    f"{name}: the loss depends on it otherwise than by one call of its layer (a penalty, a weight that is used a second time), and that "
                    f"part has no gradient here; leave it out, decay weights by the optimizer's weight_decay, or {GENERAL}"
                )

    def rules_of_nothing(self) -> list[tuple[str, Rule]]:
        """The rules of an empty batch."""
        return [(name, _Unused(module, torch.zeros(0), torch.zeros(0))) for name, module in self.layers]

    def _begin(self) -> None:
        if self._written is not None:
            raise self._written
        self._before = versions_of(self._model)
        if torch.is_grad_enabled():  # an evaluation between forward and backward pass leaves the record as it is
            self._calls, self._versions, self._begun = {}, self._before, True
            self._passes += 1

    def _end(self) -> None:
        before, self._before = self._before, None
        try:
            if before is not None:
                check_unchanged(self._model, before)
        except UserError as error:
            self._written = UserError(f"{error}; this model has it already: begin with a new one")
            raise

    def _noting(
        self, name: str, own: nn.Module
    ) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
            if module is not own or not torch.is_grad_enabled():
                return
            given, label = [*inputs, *named.values()], f"module {name!r} ({type(module).__name__})"
            if len(given) != 1:
                raise UserError(f"{label}: takes {len(given)} inputs; {GENERAL}")
            if name in self._calls:
                raise UserError(f"{label}: is used twice; {GENERAL}")
            if not output.requires_grad:
                return  # its parameters have been frozen since
            # The edge, not the tensor: an activation in place would make the tensor another function's output.
            edge = get_gradient_edge(_before_reshape(output))
            notes_on(edge.node)[self._mark] = self._passes
            self._calls[name] = _Call(
                label=label,
                module=module,
                inputs=given[0].detach(),
                input_version=given[0]._version,
                edge=edge,
                source=given[0].grad_fn,
                output_shape=output.shape,
            )

        return note


def _of_another_pass() -> UserError:
    return UserError(
        "loss: does not come from the model's last forward pass with gradients on, and from that alone; compute it from one pass, and put "
        "torch.no_grad() around others"
    )


def _before_reshape(output: Tensor) -> Tensor:
    """What the output is a reshape of (a linear layer's, of a sequence): an activation in place leads gradients past the reshape."""
    base = output._base
    if base is None or base.numel() != output.numel() or not (base.is_contiguous() and output.is_contiguous()):
        return output
    return base


class _Unused(Rule):
    """A layer that the batch never met."""

    def __init__(self, module: Any, inputs: Tensor, gradients: Tensor, copies: int = 1) -> None:
        super().__init__(module, inputs, gradients, copies)
        self.squares = torch.zeros(len(inputs) // copies, dtype=torch.float64, device=inputs.device)

    def per_row(self) -> dict[str, Tensor]:
        return {name: p.new_zeros(len(self.inputs), *p.shape) for name, p in own_parameters(self.module)}

    def clipped_sum(self, factors: Tensor, finite: Tensor) -> dict[str, Tensor]:
        return self.weighted_sum(factors)

    def weighted_sum(self, factors: Tensor) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p) for name, p in own_parameters(self.module)}


ghost_engine = in_pieces(engine_on(partial(backward, use_ghost=everywhere)))
mixed_ghost_engine = in_pieces(engine_on(partial(backward, use_ghost=by_the_shapes)))
