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

from collections.abc import Iterator
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scatterdp.engines import check_by_example
from scatterdp.engines.bookkeeping import Recorder, by_the_shapes, clip, everywhere
from scatterdp.engines.clipping import Clipping
from scatterdp.engines.precision import in_single_precision
from scatterdp.errors import ConfigError, UserError
from scatterdp.privacy.accounting import Accountant
from scatterdp.privacy.certificate import TRAINING
from scatterdp.privacy.ledger import Ledger, LedgerEntry
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.ranks import several
from scatterdp.training.plan import TrainingPlan

BookKeeping = Literal["mixed_ghost", "ghost"]


class PrivacyEngine:
    """Clips every example's gradient, adds noise once a step, and counts what is spent.

    Batches are drawn by :meth:`batches`, for the accounting holds for that sampling only: each example independently with probability
    ``batch_size / sample_size`` (Poisson), or all of them when the two are equal. A logical batch may come in several pieces:
    ``virtual_step`` takes all but the last, ``step`` the last; noise is added once, and each piece counts at most once. Forward passes may
    run under ``torch.autocast``; norms and sums are float32 in any case.

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
        seed: reproducible noise, void against anyone who knows it; 256 bits from the system without.

    Raises:
        ConfigError: values out of range, or both or neither of ``target_epsilon`` and ``noise_multiplier``.
        BudgetError: no noise meets the target.
        UserError: several processes (``torchrun``); a layer that cannot be private; says which and the way out. At the first forward pass: a model that mixes examples.
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
        if engine not in ("mixed_ghost", "ghost"):
            raise ConfigError(f"engine={engine!r}: expected mixed_ghost or ghost")
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
        self._key = RandomKey.make(seed).bound_to(repr(self.plan))
        self._check = model.register_forward_pre_hook(self._check_first)
        self._checked: set[bool] = set()  # values of model.training
        self._recorder = Recorder(model)
        self._sums: dict[str, Tensor] = {}
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
        if physical_batch_size < 1:
            raise ConfigError(f"physical_batch_size={physical_batch_size}: expected a whole number ≥ 1")
        this = self._latest = object()
        self._sums, self._expected, self._counted = {}, None, True
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

        Each entry of a loss must depend on its own example alone, as ``reduction="none"`` gives it: that is not checked.

        Raises:
            UserError: the optimizer holds trainable parameters that the model does not, or the other way round.
        """
        ours = {id(p) for p in self.model.parameters() if p.requires_grad}
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        if ours != theirs:
            raise UserError(
                "optimizer: does not hold exactly the model's trainable parameters; make it from model.parameters()"
            )
        update = optimizer.step

        def step(_: Optimizer, *, loss: Tensor) -> None:
            self._check_steps_left()
            self._accumulate(loss, last=True)
            self._release()
            update()

        def virtual_step(_: Optimizer, *, loss: Tensor) -> None:
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
            **{name: getattr(self.plan, name) for name in ("noise_multiplier", "max_grad_norm", "clipping")},
        }
        return Ledger([LedgerEntry(TRAINING, selection.event(self.plan.sigma), details)])

    def detach(self) -> None:
        """Take the hooks off the model."""
        self._check.remove()
        self._recorder.close()

    def _check_first(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Before the first batch in training mode, and out of it, on made-up inputs of its shape: does the model keep examples apart?"""
        mode = model.training
        if mode in self._checked or not torch.is_grad_enabled():
            return
        self._checked.add(mode)
        try:
            self._check_apart(model, inputs)
        except BaseException:
            self._checked.discard(mode)
            raise

    def _check_apart(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            shape = (2, *inputs[0].shape[1:])
            made_up = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=inputs[0].dtype)
            made_up = made_up.to(inputs[0].device)
            # Under autocast the inputs may be of half precision where the model is not; the check is made without autocast.
            check_by_example(
                model, in_single_precision(made_up) if torch.is_autocast_enabled(made_up.device.type) else made_up
            )

    def _check_steps_left(self) -> None:
        if self.steps_taken >= self.plan.steps:
            raise UserError(f"optimizer.step: all {self.plan.steps} steps that the noise was made for are taken")

    def _accumulate(self, losses: Tensor, *, last: bool) -> None:
        if losses.ndim != 1:
            raise UserError(f"loss of shape {tuple(losses.shape)}: expected one number an example, reduction='none'")
        if self._expected != (len(losses), last):
            said = (
                "none is out"
                if self._expected is None
                else "{} rows, {}".format(
                    self._expected[0], "its last: step" if self._expected[1] else "not its last: virtual_step"
                )
            )
            raise UserError(
                f"loss of {len(losses)} examples in {'step' if last else 'virtual_step'}: the piece that batches() gave is another "
                f"({said}); the accounting holds for its batches only"
            )
        # The piece is taken before it is added: interrupted half-way, it can neither be given again nor be left out.
        self._counted, self._expected = False, None
        use_ghost = by_the_shapes if self.plan.engine == "mixed_ghost" else everywhere
        rules = self._recorder.rules(losses, use_ghost=use_ghost) if len(losses) else self._recorder.rules_of_nothing()
        clipped = clip(rules, len(losses), max_grad_norm=self.plan.max_grad_norm, clipping=self.plan.clipping)
        self._sums = {
            name: self._sums[name] + value if name in self._sums else value for name, value in clipped.gradients.items()
        }
        self._counted = True

    @torch.no_grad()
    def _release(self) -> None:
        self._check_steps_left()
        # Spent before anything is released: interrupted half-way, the step is counted and cannot be taken again.
        step, sums = self.steps_taken, self._sums
        self._sums, self.steps_taken = {}, step + 1  # in this order: sums that stayed would be in the next step again
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
                dtype=parameter.dtype,
                device=parameter.device,
            )
            parameter.grad = (sums[name] + noise) / self.plan.batch_size
