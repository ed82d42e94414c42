"""The training loop: sample, clip, sum, add noise, divide by the expected batch size, step.

One loop for every head and engine. It runs exactly the steps that the plan's event counts, on the batches that the
plan's sampler draws. All randomness is a function of the run's key, the step number and, for noise, the exact sums, so a loop that continues from
a saved :class:`TrainingState` ends with the same weights, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from scatterdp.engines import Engine, PerExampleLoss
from scatterdp.privacy.certificate import TRAINING
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes, bits_of, check_same, part_of
from scatterdp.training.ema import MovingAverage
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.rows import Rows
from scatterdp.training.schedules import lr_factor


def per_example_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """``(b, classes), (b,) -> (b,)``."""
    return F.cross_entropy(outputs, labels, reduction="none")


@dataclass
class TrainingState:
    """All that changes while training: the model, the optimizer's memory, the average, the number of steps done."""

    model: nn.Module
    optimizer: Optimizer
    average: MovingAverage
    step: int = 0

    @classmethod
    def begin(cls, model: nn.Module, plan: TrainingPlan) -> TrainingState:
        """A fresh state with the plan's optimizer."""
        return cls(model, make_optimizer(model, plan), MovingAverage(model))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.average,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.average = {name: value.clone() for name, value in state["average"].items()}
        self.step = state["step"]


def check_same_weights(processes: Processes, state: TrainingState) -> None:
    """Stop all processes unless they have the same weights, to the bit: other weights are another sum's, with the same noise.

    Raises:
        UserError: they do not.
    """
    if processes.size == 1:
        return
    check_same(
        processes,
        bits_of([*state.model.state_dict().values(), *state.average.average.values()]),
        "the processes came to different weights, so their machines compute differently; run on machines that are alike",
    )


def make_optimizer(model: nn.Module, plan: TrainingPlan) -> Optimizer:
    """The plan's torch optimizer over the model's trainable parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    parameters: list[Any] = trained
    if plan.weight_decay:
        weights = [p for p in trained if p.ndim > 1]
        rest = [p for p in trained if p.ndim <= 1]
        parameters = [{"params": weights, "weight_decay": plan.weight_decay}, {"params": rest}]
    if plan.optimizer == "Adam":
        return torch.optim.Adam(parameters, lr=plan.lr)
    return torch.optim.SGD(parameters, lr=plan.lr, momentum=plan.momentum, nesterov=plan.nesterov)


def private_gradient(
    model: nn.Module,
    rows: Rows,
    plan: TrainingPlan,
    *,
    step: int,
    key: RandomKey,
    engine: Engine,
    loss: PerExampleLoss = per_example_cross_entropy,
    processes: Processes = ONE,
) -> dict[str, Tensor]:
    """The noisy mean gradient of step ``step`` by parameter name.

    **Formal guarantee.** The sum of clipped per-example gradients has L2 sensitivity C = ``plan.max_grad_norm`` over
    all parameters together; each coordinate gets independent noise of standard deviation σ·C, so the step is one
    Gaussian mechanism of noise multiplier σ on the sampled batch. An empty batch is a valid step: noise only. The
    divisor is the expected batch size, a constant. With several processes the sum is that of all of them, and the noise is
    added to it once (:mod:`scatterdp.training.distributed`).

    Args:
        rows: the private examples; with several processes this one's part (:func:`scatterdp.training.distributed.part_of`), asked for by
            the numbers of the whole.
        key: of the batch and, bound to the sums, of the noise.
        processes: which hold all rows together.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Of pieces: scatterdp.engines.precision says why not in the parameters' own.
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    first, stop = part_of(plan.num_examples, processes.rank, processes.size)
    for piece in rows.pieces(plan.selection().indices(step, key, first=first, stop=stop), step=step):
        clipped = engine(
            model,
            loss,
            piece.x,
            piece.y,
            max_grad_norm=plan.max_grad_norm,
            clipping=plan.clipping,
            squared_norms=piece.squared_norms,
            copies=plan.augmentation_multiplicity,
        )
        for name, gradient in clipped.gradients.items():
            sums[name] += gradient
    processes.add_up(list(sums.values()))
    noise_key = bound_to_sums(key, *sums.values())
    gradients = {}
    for name in parameters:
        total = sums.pop(name)
        total += gaussian_noise(
            tuple(total.shape),
            noise_multiplier=plan.sigma,
            sensitivity=plan.max_grad_norm,
            key=noise_key,
            purpose=f"gradient of {name}",
            counter=step,
            dtype=total.dtype,
            device=total.device,
        )
        # Rounded with its noise: the result is a function of the Gaussian mechanism's.
        gradients[name] = (total / plan.batch_size).to(parameters[name].dtype)
    return gradients


def train(
    state: TrainingState,
    rows: Rows,
    plan: TrainingPlan,
    *,
    key: RandomKey,
    engine: Engine,
    after_epoch: Callable[[TrainingState], bool | None] = lambda state: None,
    stopped: bool = False,
    processes: Processes = ONE,
) -> LedgerEntry:
    """Run the plan's remaining steps; returns what all its steps cost.

    Args:
        state: changed in place.
        rows: the private examples.
        plan: calibrated.
        key: the run's key, the same for the run's whole life.
        engine: clips per example.
        after_epoch: called after every epoch's last step and after the last step; true ends the training. What is spent stays
            what the plan counts.
        stopped: ``after_epoch`` has ended it already, before the checkpoint that this goes on from.
        processes: see :func:`private_gradient`.
    """
    parameters = dict(state.model.named_parameters())
    selection = plan.selection()
    while state.step < selection.steps and not stopped:
        gradients = private_gradient(
            state.model, rows, plan, step=state.step, key=key, engine=engine, processes=processes
        )
        for name, gradient in gradients.items():
            parameters[name].grad = gradient
        for group in state.optimizer.param_groups:
            group["lr"] = plan.lr * lr_factor(plan.schedule, state.step, plan.steps, warmup=plan.warmup_steps)
        state.optimizer.step()
        state.average.update(state.model, state.step)
        state.step += 1
        if (state.step % plan.steps_per_epoch == 0 or state.step == selection.steps) and after_epoch(state):
            break
    details = {
        "sampler": selection.describe(),
        "noise_multiplier": plan.sigma,
        "max_grad_norm": plan.max_grad_norm,
        "clipping": plan.clipping,
        "noise_standard_deviation": plan.sigma * plan.max_grad_norm,
    }
    return LedgerEntry(TRAINING, selection.event(plan.sigma), details)
