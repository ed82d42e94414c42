"""Noisy gradient descent on the cross entropy of a linear classifier: Poisson batches (DP-SGD) or full batches.

With full batches every step is a plain Gaussian mechanism and its accounting is exact; with Poisson batches a step reads a part of the
rows, and the sampling amplifies. Both run the loop of :mod:`scatterdp.training.loop` (Abadi et al. 2016, arXiv 1607.00133).
"""

from __future__ import annotations

from dataclasses import dataclass

import dp_accounting
import torch

from scatterdp.config import Schedule
from scatterdp.engines import ENGINES
from scatterdp.heads import make_classifier
from scatterdp.linear.method import Problem, Solution
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes, RowsOfProcess, part_of
from scatterdp.training.loop import TrainingState, check_same_weights, train
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.rows import FeatureRows


@dataclass(frozen=True, kw_only=True)
class GradientDescent:
    """DP-SGD or, with ``batch_size`` = N, full-batch gradient descent.

    **Formal guarantee.** That of :func:`scatterdp.training.loop.train`: the event is the sampler's own.

    Args:
        problem: public facts.
        batch_size: expected rows a step, 1 … N.
        epochs: an epoch is ⌊N / batch_size⌋ steps.
        lr, momentum, schedule: of the optimizer, no privacy meaning.
        max_grad_norm: bound of each example's gradient.
    """

    problem: Problem
    batch_size: int
    epochs: int
    lr: float
    momentum: float = 0.9
    max_grad_norm: float = 0.5
    schedule: Schedule = "constant"

    @property
    def name(self) -> str:
        return "gradient descent" if self.batch_size == self.problem.num_examples else "DP-SGD"

    def plan(self, noise_multiplier: float) -> TrainingPlan:
        """The same as the training loop takes it."""
        return TrainingPlan(
            num_examples=self.problem.num_examples,
            batch_size=self.batch_size,
            epochs=self.epochs,
            lr=self.lr,
            momentum=self.momentum,
            max_grad_norm=self.max_grad_norm,
            noise_multiplier=noise_multiplier,
            input_norm="none",
            schedule=self.schedule,
        )

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        """Of all steps."""
        return self.plan(noise_multiplier).selection().event(noise_multiplier)

    def solve(
        self, rows: FeatureRows, *, noise_multiplier: float, key: RandomKey, processes: Processes = ONE
    ) -> Solution:
        """Start at zero, train, return the averaged weights (post-processing of all weights, so free)."""
        plan = self.plan(noise_multiplier)
        classifier = make_classifier("linear", (self.problem.num_features, 1, 1), self.problem.num_classes)
        state = TrainingState.begin(classifier.to(rows.x.device), plan)
        held = rows
        if processes.size > 1:
            first, stop = part_of(self.problem.num_examples, processes.rank, processes.size)
            held = RowsOfProcess(rows, first, stop, begin=first)

        def after_epoch(state: TrainingState) -> None:
            check_same_weights(processes, state)

        entry = train(
            state, held, plan, key=key, engine=ENGINES["linear"], after_epoch=after_epoch, processes=processes
        )
        average = state.average.average
        return Solution(
            weight=average["weight"].to(torch.float32),
            bias=average["bias"].to(torch.float32),
            entries=[entry],
            sampler=plan.selection().describe(),
        )
