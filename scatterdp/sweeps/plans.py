"""What each run of a sweep would release, before any of it does: noise multipliers, ε, and the runs whose budget cannot be met."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from scatterdp.config import DEFAULT_TARGET_EPSILON, BaselinesConfig, CnnsConfig
from scatterdp.datasets import Dataset
from scatterdp.errors import UserError
from scatterdp.experiment import plan_on
from scatterdp.sweeps.record import RunEntry
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.validation import held_out_rows


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run's config and what follows from it.

    Args:
        config: as the command gets it.
        plan: calibrated; None where ``error`` says why there is none.
        error: one sentence.
    """

    config: BaselinesConfig
    plan: TrainingPlan | None
    error: str | None = None

    @property
    def cost(self) -> TrainingPlan | None:
        """A plan whose events are what the run releases: logistic regression releases without noise."""
        if self.plan is None or self.config.optim != "LR":
            return self.plan
        return dataclasses.replace(self.plan, noise_multiplier=0.0)


def plan_runs(configs: Sequence[BaselinesConfig], dataset: Dataset) -> list[PlannedRun]:
    """The plan of each run. Noise is solved for once for each different budget.

    Args:
        configs: of runs on one data set with one validation split.
        dataset: theirs.

    Raises:
        ConfigError: a validation share that leaves nobody on one side.
    """
    planned: list[PlannedRun] = []
    share = configs[0].validation if configs else 0.0
    held_out = held_out_rows(dataset, share) if share else None
    for config in configs:
        try:
            plan = plan_on(config, dataset, held_out)
            planned.append(PlannedRun(config=config, plan=plan))
        except UserError as error:
            planned.append(PlannedRun(config=config, plan=None, error=str(error)))
    return planned


def arch_of(config: BaselinesConfig) -> str:
    """The name of a run's network in tables."""
    return config.head if isinstance(config, CnnsConfig) else "linear"


def describe(entry: RunEntry, planned: PlannedRun) -> None:
    """Write into a run's entry what is planned."""
    config, plan = planned.config, planned.plan
    entry.arch = arch_of(config)
    if config.noise_multiplier is None:
        entry.target_epsilon = DEFAULT_TARGET_EPSILON if config.target_epsilon is None else config.target_epsilon
    if plan is not None:
        entry.max_grad_norm, entry.lr, entry.epochs = plan.max_grad_norm, plan.lr, plan.epochs
        entry.noise_multiplier = plan.noise_multiplier
