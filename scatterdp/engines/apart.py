"""Does a model keep examples apart? Tried on made-up inputs before private ones pass through it.

**What is found.** Outputs of five different rows against those of each row alone, and so their per-example gradients, with a loss that is not linear in the
outputs, as the book-keeping engines compute them from one pass: operations that mix examples (batch means, rolls, attention over the wrong axis), whether or
not gradients pass through them, and weights that are used outside their layer. Then once more with one row a million times larger, and its loss as well, as
an attacker's might be. A billionth of the outputs, or of a gradient, is enough to be seen; a thousandth where the model itself computes in single precision.
Weights that are all zero, behind which nothing would be seen, are random in both. And a forward pass that writes to parameters or buffers.

**What is not.** Mixing

- that begins at more than five rows or at other numbers of rows than five, at certain values, in certain precisions or under autocast, or later (by attributes
  of the model's own, hooks that are added, or a gate that is zero in a buffer or in part of a parameter);
- by what the model is given besides tensors as long as the batch, and what of the examples is in that: another tensor, a tuple, an object;
- of inputs before the model (``model(x - x.mean(0))``), or of outputs after it;
- by chance: nn.Dropout, StochasticDepth and DropPath, by their names, are switched off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from scatterdp.engines.modules import GENERAL, check_private, check_unchanged, versions_of
from scatterdp.engines.precision import full_precision
from scatterdp.engines.strategies import per_example_gradients
from scatterdp.errors import UserError

ROWS = 5
# Of an output's, or a parameter's gradient's, largest number: rounding is far less, in double precision and in single.
_TOLERANCE = {True: 1e-9, False: 1e-3}
# Of all gradients' largest number: where a parameter's are smaller, the difference may be rounding alone.
_NEGLIGIBLE = 1e-4
_LEAST = 1e-6
_LARGE = 1e6
# Of somebody's forward pass.
_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BRANCH_DROPOUTS = (
    "StochasticDepth",
    "DropPath",
)  # torchvision's and timm's: each example goes without a branch, by chance


def check_by_example(model: nn.Module, *inputs: Any, **named: Any) -> None:
    """Refuse a model whose per-example gradients, all at once, are not those of its examples one by one.

    Args:
        model: tried on a copy in double precision; in its own where it computes in no other, and itself, weights as they are, where it cannot be copied.
            Dropout, of values or of whole branches, is left out, and so is autocast around it.
        inputs, named: what it is called with, made-up rows (:func:`made_up`): never private ones, for the answer is not accounted. Tensors of
            :data:`ROWS` rows are the examples', or where there are none those as long as the first.

    Raises:
        UserError: they differ, the model cannot compute one example alone or writes to its state, or its answer is not rows of numbers.
    """
    check_private(model)
    tried = _copy_without_zeros(model)
    if tried is not None:
        try:
            # Behind ReLU and normalisations single precision may be far off where the gradient is 0.
            _check(tried.double(), *tree_map(_in_double, (inputs, named)))
            return
        except _FAILURES:  # a precision written into the forward pass, a device without double precision
            tried = _copy_without_zeros(model)
    try:
        _check(model if tried is None else tried, inputs, named)
    except _FAILURES as error:
        raise UserError(
            f"model: fails on {ROWS} made-up rows of the shapes that it is called with ({error}), on which it is tried first; the first axis of "
            "tensors must be the examples'"
        ) from error


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


def _copy_without_zeros(model: nn.Module) -> nn.Module | None:
    """A copy whose weights that start at zero are random, where the model can be copied."""
    kept = (value for module in model.modules() for value in tree_leaves(list(vars(module).values())))
    # Activations that a model keeps cannot be copied with what they come from.
    activations = {id(value): value.detach() for value in kept if isinstance(value, Tensor) and not value.is_leaf}
    try:
        copied = copy.deepcopy(model, activations)
    except _FAILURES:
        return None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in copied.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape))
    return copied


def _in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _check(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    examples = len(_of_examples((inputs, named)))

    def with_a_large_one(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:1] != (examples,) or not value.is_floating_point():
            return value
        return torch.cat([_LARGE * value[:1], value[1:]])

    _compare(model, inputs, named, first=0)
    # Its own numbers may be anything; the others' may not change.
    _compare(model, *tree_map(with_a_large_one, (inputs, named)), first=1)


def _compare(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], *, first: int) -> None:
    """Refuse a model whose outputs or gradients of the rows from ``first`` on are not those of each alone."""
    given = _of_examples((inputs, named))
    rows = torch.arange(len(given), device=given.device)
    devices = [given.device] if given.is_cuda else []
    before = versions_of(model)
    with _of_rows(model, inputs, named), _without_dropout(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        with torch.no_grad():
            with _Precision() as precision:
                outputs = _flat(model(rows))
            if len(outputs) != len(rows):
                raise _no_rows(f"{len(outputs)} rows for {len(rows)} examples")
            one_by_one = torch.cat([_one(model, row) for row in rows.split(1)])
        check_unchanged(model, before)
        _check_alike("its outputs", outputs[first:], one_by_one[first:], exact=precision.is_double, least=0.0)
        with full_precision(outputs.device):
            weights = torch.randn(outputs.shape, dtype=outputs.dtype).to(outputs.device)
            weights[:first] *= _LARGE

            def loss(answer: Any, rows: Tensor) -> Tensor:
                projected = (_flat(answer) * weights[rows]).sum(1)
                return projected + projected.square()

            ours, alone = (
                per_example_gradients(model, loss, rows, rows, strategy=strategy) for strategy in ("unfold", "loop")
            )
    check_unchanged(model, before)
    least = max((gradient[first:].abs().max().item() for gradient in alone.values()), default=0.0)
    for name, gradient in alone.items():
        _check_alike(name, ours[name][first:], gradient[first:], exact=precision.is_double, least=_NEGLIGIBLE * least)


def _check_alike(what: str, together: Tensor, alone: Tensor, *, exact: bool, least: float) -> None:
    """Refuse a model that gives rows other numbers together than alone; ``least``: what numbers of less are taken for."""
    if not alone.numel():
        return
    difference = torch.where(together == alone, 0.0, (together - alone).abs())  # the same infinity is the same
    largest = torch.where(alone.isfinite(), alone.abs(), 0.0).max().item()
    if not difference.max().item() <= _TOLERANCE[exact] * max(largest, least, _LEAST):
        raise UserError(
            f"model: what it gives examples together is not what it gives them alone (seen at {what}): something mixes examples, draws at "
            "random otherwise than by nn.Dropout, or uses a weight outside its layer; keep examples apart, or "
            f"{GENERAL}"
        )


class _Precision(TorchDispatchMode):
    """Notes within it whether everything is computed in double precision."""

    is_double = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim and value.dtype != torch.float64:
                self.is_double = False
        return result


def _one(model: nn.Module, row: Tensor) -> Tensor:
    """The answer ``(1, …)`` for one row."""
    try:
        answer = model(row)
    except Exception as error:  # whatever somebody's forward pass raises: it is told, and refuses the model
        raise UserError(
            f"model: cannot compute one example alone ({error}); a gradient of each is what gets clipped, so let it take batches of one"
        ) from error
    return _flat(answer)


@contextmanager
def _of_rows(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Iterator[None]:
    """Within it the model is a function of row numbers, whatever it is called with."""
    examples = len(_of_examples((inputs, named)))

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
        raise _no_rows(shapes)
    return torch.cat([value.reshape(len(value), -1) for value in outputs], 1)


def _no_rows(answer: str) -> UserError:
    return UserError(
        f"model: answers {answer}, where rows of outputs were expected, one an example; let it give those, and compute losses "
        'outside, with reduction="none"'
    )


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    # Of the modules' own flags only: what a branch holds stays as it is.
    dropouts = [
        module
        for module in model.modules()
        if module.training and (type(module) in _DROPOUTS or type(module).__name__ in _BRANCH_DROPOUTS)
    ]
    for module in dropouts:
        module.training = False
    try:
        yield
    finally:
        for module in dropouts:
            module.training = True


def _of_examples(given: Any) -> Tensor:
    tensors = [value for value in tree_leaves(given) if isinstance(value, Tensor) and value.ndim]
    return next((value for value in tensors if len(value) == ROWS), tensors[0])
