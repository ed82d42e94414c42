"""A private optimizer for any torch model, with few changed lines.

>>> from torch.nn import functional as F
>>> x, y = torch.randn(300, 1, 8, 8), torch.arange(300) % 3
>>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> engine = PrivacyEngine(model, batch_size=100, sample_size=300, epochs=2, max_grad_norm=1.0, target_epsilon=8)
>>> engine.attach(optimizer)
>>> for rows, last in engine.batches(physical_batch_size=64):
...     loss = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
...     if last:
...         optimizer.step(loss=loss)
...     else:
...         optimizer.virtual_step(loss=loss)
>>> engine.steps_taken, 7 < engine.epsilon() <= 8
(6, True)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from numbers import Real
from types import MethodType
from typing import Any, Literal, get_args
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from scatterdp.engines.apart import check_by_example, made_up
from scatterdp.engines.bookkeeping import Recorder, by_the_shapes, clip, everywhere
from scatterdp.engines.clipping import Clipping
from scatterdp.engines.precision import RunningSums, in_single_precision
from scatterdp.errors import ConfigError, UserError
from scatterdp.heads.weights import tensors_digest
from scatterdp.privacy.accounting import Accountant
from scatterdp.privacy.certificate import TRAINING
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.ranks import several
from scatterdp.training.plan import TrainingPlan

BookKeeping = Literal["mixed_ghost", "ghost"]
_FEW = 16
_FEW_NUMBERS = 4
_served: WeakSet[nn.Module] = WeakSet()  # layers that an engine looks at


class PrivacyEngine:
    """Clips every example's gradient, adds noise once a step, and counts what is spent.

    Batches are drawn by :meth:`batches`, for the accounting holds for that sampling only: each example independently with probability
    ``batch_size / sample_size`` (Poisson), or all of them when the two are equal. A logical batch may come in several pieces:
    ``virtual_step`` takes all but the last, ``step`` the last; noise is added once, and each piece counts at most once. Forward passes may
    run under ``torch.autocast``; norms and sums are float32 or float64 in any case.

    The forward pass is the user's: losses are of one call of the model itself, and may take nothing from its weights otherwise (a penalty), which
    is refused. Passes under ``torch.no_grad()`` may come in between. What the model is called with is tried on made-up rows of its shape first, again
    whenever modules change between training and evaluation, or arguments change in anything but the numbers of large tensors and examples (tensors as long as the
    batch are taken for examples', lists and arrays of that length are refused), and a model that mixes examples is refused. What no trial can find is listed
    in :mod:`scatterdp.engines.apart`: mixing of inputs before the model or of outputs after it, for one.

    Args:
        model: its trainable layers must be of :data:`scatterdp.engines.rules.RULES`.
        batch_size: expected logical batch size; clipped sums are divided by it.
        sample_size: N, the number of training examples, public.
        epochs: the steps are ⌊N / batch_size⌋ · epochs; no more can be taken.
        max_grad_norm: L2 bound of an example's gradient.
        target_epsilon: ε of all the steps, for which the noise multiplier is solved; or
        noise_multiplier: σ itself. One of the two.
        target_delta: δ.
        accountant: which ε counts.
        engine: how norms are computed.
        clipping: which clipping function.
        seed: reproducible batches and noise, void against anyone who knows it, and for one run only: a second one of the same plan from the same
            weights, as when learning rates are tried, draws the same batches, so that what the two spend does not add up to what both together
            have spent, which may be far more. Without: 256 bits from the system.

    Raises:
        ConfigError: values out of range, or both or neither of ``target_epsilon`` and ``noise_multiplier``.
        BudgetError: no noise meets the target.
        UserError: several processes (``torchrun``); a layer that cannot be private; says which and the way out; no trainable
            parameters; another engine on one of its layers. At a forward pass: a model that mixes examples. Later: parameters that are not
            those of the beginning.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_size: int,
        sample_size: int,
        epochs: int,
        max_grad_norm: float,
        target_epsilon: float | None = None,
        noise_multiplier: float | None = None,
        target_delta: float = 1e-5,
        accountant: Accountant = "pld",
        engine: BookKeeping = "mixed_ghost",
        clipping: Clipping = "flat",
        seed: int | None = None,
    ) -> None:
        if several():
            raise UserError(
                "PrivacyEngine: trains in one process, but torchrun started several, and each would spend the whole budget; start it without "
                "torchrun, or train with scatterdp.fit, which several processes can do together"
            )
        if (target_epsilon is None) == (noise_multiplier is None):
            raise ConfigError("target_epsilon, noise_multiplier: each determines the other, give one of them")
        for name, value, known in (
            ("engine", engine, BookKeeping),
            ("clipping", clipping, Clipping),
            ("accountant", accountant, Accountant),
        ):
            if value not in get_args(known):
                raise ConfigError(f"{name}={value!r}: expected {' or '.join(get_args(known))}")
        for name, value in (
            ("max_grad_norm", max_grad_norm),
            ("target_epsilon", target_epsilon),
            ("noise_multiplier", noise_multiplier),
            ("target_delta", target_delta),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise ConfigError(f"{name}={value!r}: expected a number")
        if not 0 < target_delta < 1:
            raise ConfigError(f"target_delta={target_delta}: expected a number between 0 and 1")
        for name, value in (("batch_size", batch_size), ("sample_size", sample_size), ("epochs", epochs)):
            if not _is_whole(value) or value < 1:
                raise ConfigError(f"{name}={value!r}: expected a whole number ≥ 1")
        if seed is not None and (not _is_whole(seed) or seed < 0):
            raise ConfigError(f"seed={seed!r}: expected a whole number ≥ 0, or None")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model={model!r}: expected a torch.nn.Module")
        if any(module in _served for module in model.modules()):
            raise UserError(
                "model: another PrivacyEngine is on it; call that one's detach() first, and add up what both spend"
            )
        plan = TrainingPlan(
            num_examples=sample_size,
            batch_size=batch_size,
            epochs=epochs,
            lr=0.0,
            max_grad_norm=max_grad_norm,
            noise_multiplier=noise_multiplier,
            input_norm="none",
            delta=target_delta,
            accountant=accountant,
            engine=engine,
            clipping=clipping,
        )
        self.model = model
        self.plan = plan if target_epsilon is None else plan.calibrated(target_epsilon=target_epsilon)
        self.steps_taken = 0
        self._detached = False
        self._checked: set[int] = set()  # manners of calling the model
        self._trying = False
        self._parameters = _trainable(model)
        if not self._parameters:
            raise UserError("model: has no trainable parameters; unfreeze some with requires_grad_(True)")
        self._recorder = Recorder(model)
        self._key = RandomKey.make(seed).bound_to(f"{self.plan!r} {tensors_digest(dict(model.named_parameters()))}")
        # Before the recorder's, and a function, which a deep copy of the model shares without copying the engine.
        self._check = model.register_forward_pre_hook(
            lambda module, given, named: self._check_first(module, given, named), with_kwargs=True, prepend=True
        )
        for _, layer in self._recorder.layers:
            _served.add(layer)
        self._sums = RunningSums()
        self._expected: tuple[int, bool] | None = None  # rows of the piece that is out, and whether it is the last
        self._counted = True  # false while a piece is being added, and for good if that fails half-way
        self._latest: object = None  # what the latest call of batches() is known by

    @property
    def noise_multiplier(self) -> float:
        """σ of every step."""
        return self.plan.sigma

    def batches(self, physical_batch_size: int = 256) -> Iterator[tuple[Tensor, bool]]:
        """Row numbers ``(b,)`` of the remaining steps' batches in pieces, and whether a piece is its batch's last.

        A batch that happens to be empty is one piece without rows: its step adds noise only. Called again in the middle of a step, it
        begins that step anew: nothing of it was released, so what was summed is dropped. Batches of an earlier call are then void.

        Raises:
            UserError: the piece before was not given to ``step`` or ``virtual_step``, or that failed; or a later call has begun.
        """
        if not _is_whole(physical_batch_size) or physical_batch_size < 1:
            raise ConfigError(f"physical_batch_size={physical_batch_size}: expected a whole number ≥ 1")
        this = self._latest = object()
        self._sums, self._expected, self._counted = RunningSums(), None, True
        selection = self.plan.selection()
        for step in range(self.steps_taken, selection.steps):
            pieces = torch.from_numpy(selection.indices(step, self._key)).split(physical_batch_size)
            for number, rows in enumerate(pieces):
                if self._latest is not this:
                    raise UserError(
                        "batches: called again since, which began the step anew; go on with the later call's"
                    )
                if self._expected is not None or not self._counted or step != self.steps_taken:
                    raise UserError(
                        "batches: the piece before was not given to optimizer.step or optimizer.virtual_step, or that failed; call "
                        "engine.batches() again, which begins the step anew"
                    )
                self._expected = (len(rows), number == len(pieces) - 1)
                yield rows, self._expected[1]

    def attach(self, optimizer: Optimizer) -> None:
        """Give the optimizer ``step(loss=…)`` and ``virtual_step(loss=…)``; both take per-example losses ``(b,)``.

        Each entry of a loss must depend on its own example alone, as ``reduction="none"`` gives it, not on the number of rows either (a
        division by ``len(rows)``): that is not checked.

        Raises:
            UserError: the optimizer holds trainable parameters that the model does not, or the other way round, or gradients of others; it has been
                given to an engine before; it wants to compute losses itself (LBFGS), or sparse gradients.
        """
        if not isinstance(optimizer, Optimizer):
            raise UserError(f"optimizer: is of type {type(optimizer).__name__}; expected a torch.optim.Optimizer")
        kind, update = type(optimizer).__name__, optimizer.step
        if hasattr(optimizer, "virtual_step"):
            raise UserError("optimizer: has been given to a PrivacyEngine before; make a new one")
        closure = inspect.signature(update).parameters.get("closure")
        if (closure is not None and closure.default is inspect.Parameter.empty) or kind == "SparseAdam":
            raise UserError(
                f"optimizer: {kind} takes no gradient as it is given; take SGD, Adam or another first-order one"
            )
        self._check_attached()
        self._check_optimizer(optimizer)

        def step(_: Optimizer, loss: Tensor | None = None) -> None:
            self._check_attached()
            self._check_steps_left()
            self._check_optimizer(optimizer)
            self._accumulate(loss, last=True)
            self._release()
            update()

        def virtual_step(_: Optimizer, loss: Tensor | None = None) -> None:
            self._check_attached()
            self._accumulate(loss, last=False)

        # Methods, for schedulers of the learning rate look for their functions.
        optimizer.step = MethodType(step, optimizer)  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.virtual_step = MethodType(virtual_step, optimizer)  # pyright: ignore[reportAttributeAccessIssue]

    def epsilon(self) -> float:
        """ε of the steps taken so far at ``target_delta``."""
        return self.ledger().epsilon(delta=self.plan.delta, accountant=self.plan.accountant)

    def ledger(self) -> Ledger:
        """What the steps taken so far have released."""
        if self.steps_taken == 0:
            return Ledger()
        selection = self.plan.selection(self.steps_taken)
        details: dict[str, Any] = {
            "sampler": selection.describe(),
            "noise_source": self._key.describe(),
            **{name: getattr(self.plan, name) for name in ("noise_multiplier", "max_grad_norm", "clipping")},
        }
        return Ledger([LedgerEntry(TRAINING, selection.event(self.plan.sigma), details)])

    def detach(self) -> None:
        """Take the hooks off the model, which is then an ordinary one (and can be pickled); the optimizer takes no further step."""
        self._detached = True
        self._check.remove()
        self._recorder.close()
        for _, layer in self._recorder.layers:
            _served.discard(layer)

    def _check_attached(self) -> None:
        if self._detached:
            raise UserError(
                "PrivacyEngine: has been detached from the model; make a new engine and optimizer to train on"
            )

    def _check_parameters(self) -> None:
        if _trainable(self.model) != self._parameters:
            raise UserError(
                "model: its trainable parameters are not those that PrivacyEngine was made for (frozen, unfrozen, replaced or of another precision since); "
                "make a new engine and optimizer, and add up what both engines spend"
            )

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        """What it will update: the model's trainable parameters, and nothing by a gradient that is not from here."""
        self._check_parameters()
        theirs = [p for group in optimizer.param_groups for p in group["params"]]
        if {id(p) for p in theirs if p.requires_grad} != {tensor for tensor, _ in self._parameters.values()}:
            raise UserError(
                "optimizer: does not hold exactly the model's trainable parameters; make it from model.parameters()"
            )
        if any(p.grad is not None for p in theirs if not p.requires_grad):
            raise UserError(
                "optimizer: a frozen parameter has a gradient, which would be applied without clipping and noise; call optimizer.zero_grad()"
            )

    def _check_first(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before the first batch that the model is called with in this manner, on made-up inputs of its shape: does the model keep examples apart?"""
        if self._trying or model is not self.model or not torch.is_grad_enabled():
            return
        values, structure = tree_flatten((inputs, named))
        rows = self._rows_of(values)
        _check_no_list_of_examples((inputs, named), rows)
        arguments = (_as_seen(value, rows) for value in values)
        manner = hash((str(structure), *arguments, *(module.training for module in model.modules())))
        if manner in self._checked:
            return
        self._trying = True
        try:
            self._check_apart(model, rows, inputs, named)
        finally:
            self._trying = False
        self._checked.add(manner)

    def _rows_of(self, values: list[Any]) -> int:
        """Of the batch: those of the piece that is out, where a tensor has as many, or else the first tensor's."""
        lengths = [len(value) for value in values if isinstance(value, Tensor) and value.ndim]
        if not lengths:
            raise UserError(
                "model: is called without a tensor of examples, so that what it does with them cannot be tried"
            )
        return self._expected[0] if self._expected is not None and self._expected[0] in lengths else lengths[0]

    def _check_apart(self, model: nn.Module, rows: int, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs, named = made_up(model, (inputs, named), rows)
        device = next(
            value.device for value in tree_leaves((inputs, named)) if isinstance(value, Tensor) and value.ndim
        )
        if torch.is_autocast_enabled(device.type):
            # Inputs may be of half precision where the model is not; the check is made without autocast.
            inputs, named = tree_map(lambda v: in_single_precision(v) if isinstance(v, Tensor) else v, (inputs, named))
        check_by_example(model, *inputs, **named)

    def _check_steps_left(self) -> None:
        if self.steps_taken >= self.plan.steps:
            raise UserError(f"optimizer.step: all {self.plan.steps} steps that the noise was made for are taken")

    def _accumulate(self, losses: Tensor | None, *, last: bool) -> None:
        if not isinstance(losses, Tensor):
            raise UserError(
                f"optimizer.{'step' if last else 'virtual_step'}: expected the losses of the piece, one an example, as loss="
            )
        self._check_parameters()
        if losses.ndim != 1:
            raise UserError(f"loss of shape {tuple(losses.shape)}: expected one number an example, reduction='none'")
        if self._expected != (len(losses), last):
            if self._expected is None:
                wanted = "batches() has given no piece since the last one was taken"
            else:
                rows, is_last = self._expected
                wanted = f"the piece that batches() gave is another, of {rows} rows for {'step' if is_last else 'virtual_step'}"
            raise UserError(
                f"loss of {len(losses)} examples given to {'step' if last else 'virtual_step'}: {wanted}; give each piece's losses, one an example, "
                "to the one or the other, for the accounting holds for those batches only"
            )
        # The piece is taken before it is added: interrupted half-way, it can neither be given again nor be left out.
        self._counted, self._expected = False, None
        use_ghost = by_the_shapes if self.plan.engine == "mixed_ghost" else everywhere
        rules = self._recorder.rules(losses, use_ghost=use_ghost) if len(losses) else self._recorder.rules_of_nothing()
        clipped = clip(rules, len(losses), max_grad_norm=self.plan.max_grad_norm, clipping=self.plan.clipping)
        self._sums.add(clipped.gradients)
        self._counted = True

    @torch.no_grad()
    def _release(self) -> None:
        self._check_steps_left()
        # Spent before anything is released: interrupted half-way, the step is counted and cannot be taken again.
        step, sums = self.steps_taken, self._sums.exact()
        self._sums, self.steps_taken = (
            RunningSums(),
            step + 1,
        )  # in this order: sums that stayed would be in the next step again
        key = bound_to_sums(self._key, *(sums[name] for name in sorted(sums)))
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = gaussian_noise(
                tuple(parameter.shape),
                noise_multiplier=self.plan.sigma,
                sensitivity=self.plan.max_grad_norm,
                key=key,
                purpose=f"gradient of {name}",
                counter=step,
                dtype=torch.float64,
                device=parameter.device,
            )
            # Rounded with its noise: the result is a function of the Gaussian mechanism's.
            parameter.grad = ((sums.pop(name) + noise) / self.plan.batch_size).to(parameter.dtype)


def _check_no_list_of_examples(given: Any, rows: int) -> None:
    """Refuse lists and arrays as long as the batch: nothing is made up for those, so they would be tried as what all examples share."""
    for value in tree_leaves(given, is_leaf=lambda value: isinstance(value, list)):
        if isinstance(value, list):
            # Sides and strides are lists of numbers, too, of up to four.
            of_examples = len(value) == rows > _FEW_NUMBERS and all(isinstance(entry, Real) for entry in value)
        else:
            of_examples = isinstance(value, np.ndarray) and value.shape[:1] == (rows,)
        if of_examples:
            raise UserError(
                f"model: is called with {'a list' if isinstance(value, list) else 'an array'} of {rows}, as many as the batch has examples, and what "
                "it does with examples in those cannot be tried; give it a tensor"
            )


def _as_seen(value: Any, rows: int) -> tuple[Any, ...]:
    """What a model may decide by, of one argument: all but the numbers of examples and of large tensors."""
    if not isinstance(value, Tensor):
        return (repr(value),)
    if value.shape[:1] == (rows,):
        return (value.dtype, value.shape[1:])
    return (value.dtype, value.shape, tuple(value.flatten().tolist()) if value.numel() <= _FEW else ())


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _trainable(model: nn.Module) -> dict[str, tuple[int, torch.dtype]]:
    """Which tensor each trainable parameter is, and its precision."""
    return {name: (id(p), p.dtype) for name, p in model.named_parameters() if p.requires_grad}
