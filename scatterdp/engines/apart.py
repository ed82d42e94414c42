"""Does a model keep examples apart? Tried on made-up inputs before private ones pass through it.

**What is found.** Per-example gradients of five different rows, with a loss that is not linear in the outputs, as the book-keeping engines compute them from
one pass, against those of each row alone: operations that mix examples (batch means, rolls, attention over the wrong axis), whether or not gradients pass
through them, and weights that are used outside their layer.

**What is not.** Mixing that begins at more than five rows or at certain values, and what is done to outputs after the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from scatterdp.engines.modules import GENERAL
from scatterdp.engines.precision import full_precision
from scatterdp.engines.strategies import per_example_gradients
from scatterdp.errors import UserError

ROWS = 5
_TOLERANCE = 1e-3  # of a parameter's largest gradient
_BRANCH_DROPOUTS = (
    "StochasticDepth",
    "DropPath",
)  # torchvision's and timm's: each example goes without a branch, by chance


def check_by_example(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """Refuse a model whose per-example gradients, all at once, are not those of its examples one by one.

    Args:
        model: tried on a copy in double precision, or as it is where it cannot be. Dropout, of values or of whole branches, is left out, and so
            is autocast around it.
        inputs, named: what it is called with, made-up rows (:func:`made_up`): never private ones, for the answer is not accounted. Tensors as long as the
            first are the examples'.

    Raises:
        UserError: they differ, or the model's answer is not rows of numbers.
    """
    try:
        # Behind ReLU and normalisations single precision may be far off where the gradient is 0.
        _check(copy.deepcopy(model).double(), *tree_map(_in_double, (inputs, named)))
    except (RuntimeError, TypeError):  # a precision written into the forward pass, a device without double precision
        _check(model, inputs, named)


def made_up(model: nn.Module, given: Any, rows: int) -> Any:
    """What was given with :data:`ROWS` random rows in place of the examples'.

    Args:
        model: its smallest embedding says which whole numbers can be looked up.
        given: tuples, lists and dictionaries of anything; tensors of ``rows`` rows are the examples'.
        rows: of the batch that was given.
    """
    generator = torch.Generator().manual_seed(0)
    entries = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]

    def alike(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:1] != (rows,):
            return value
        shape = (ROWS, *value.shape[1:])
        if value.is_floating_point() or value.is_complex():
            return torch.randn(shape, generator=generator, dtype=value.dtype).to(value.device)
        most = 2 if value.dtype == torch.bool else min(entries, default=128 if value.dtype == torch.uint8 else 2)
        return torch.randint(most, shape, generator=generator).to(value.device, value.dtype)

    return tree_map(alike, given)


def _in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _check(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    first = _first_tensor((inputs, named))
    rows = torch.arange(len(first), device=first.device)
    devices = [first.device] if first.is_cuda else []
    with _of_rows(model, inputs, named), _without_dropout(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs = _flat(model(rows))
        with full_precision(outputs.device):
            weights = torch.randn(outputs.shape, dtype=outputs.dtype).to(outputs.device)

            def loss(answer: Any, rows: Tensor) -> Tensor:
                projected = (_flat(answer) * weights[rows]).sum(1)
                return projected + projected.square()

            ours, alone = (
                per_example_gradients(model, loss, rows, rows, strategy=strategy) for strategy in ("unfold", "loop")
            )
    for name, gradient in alone.items():
        largest = max(gradient.abs().max().item(), 1e-6)
        if not (ours[name] - gradient).abs().max().item() <= _TOLERANCE * largest:
            raise UserError(
                f"model: its per-example gradients are not those of its examples alone (seen at {name}): something mixes examples, or "
                f"a weight is used outside its layer; keep examples apart, or {GENERAL}"
            )


@contextmanager
def _of_rows(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Iterator[None]:
    """Within it the model is a function of row numbers, whatever it is called with."""
    examples = len(_first_tensor((inputs, named)))

    def taken(_: nn.Module, given: tuple[Tensor], __: dict[str, Any]) -> tuple[Any, Any]:
        return tree_map(
            lambda value: value[given[0]] if isinstance(value, Tensor) and value.shape[:1] == (examples,) else value,
            (inputs, named),
        )

    handle = model.register_forward_pre_hook(taken, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def _flat(answer: Any) -> Tensor:
    """All numbers of an answer, ``(b, …)``."""
    outputs = [value for value in tree_leaves(answer) if isinstance(value, Tensor) and value.is_floating_point()]
    if not outputs or len({value.shape[:1] for value in outputs}) > 1 or outputs[0].ndim == 0:
        shapes = ", ".join(str(tuple(value.shape)) for value in outputs) or "no numbers"
        raise UserError(
            f"model: answers {shapes}, where rows of outputs were expected, one an example; let it give those, and compute losses "
            'outside, with reduction="none"'
        )
    return torch.cat([value.reshape(len(value), -1) for value in outputs], 1)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    dropouts = [
        module
        for module in model.modules()
        if module.training
        and (isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _BRANCH_DROPOUTS)
    ]
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        for module in dropouts:
            module.train()


def _first_tensor(given: Any) -> Tensor:
    return next(value for value in tree_leaves(given) if isinstance(value, Tensor) and value.ndim)
