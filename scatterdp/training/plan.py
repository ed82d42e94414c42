"""A training plan: every number that decides what a run releases, resolved and frozen.

The plan knows its events before anything touches private data, so a budget is checked and solved first.

>>> plan = TrainingPlan(num_examples=50_000, batch_size=8192, epochs=60, lr=4.0, input_norm="BN")
>>> plan = plan.calibrated(target_epsilon=3.0)
>>> plan.noise_multiplier, round(plan.epsilon(), 3)
(4.5786, 3.0)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, Literal

import dp_accounting

from scatterdp.config import DEFAULT_TARGET_EPSILON, LARGEST, BaselinesConfig, CnnsConfig, Schedule, TrainingConfig
from scatterdp.engines.clipping import SMALLEST_BOUND, Clipping
from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import Accountant, epsilon_of
from scatterdp.privacy.calibration import calibrate_noise_multiplier, calibrate_steps
from scatterdp.privacy.sampling import BatchSelection, PoissonSelection, Sampling, make_selection
from scatterdp.privacy.statistics import statistics_event, statistics_selection
from scatterdp.recipes import Recipe, recipe_of

#: The ``engine`` of training that is not private.
UNCLIPPED = "unclipped"


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What is trained and what it costs.

    Args:
        num_examples: N, public.
        batch_size: expected batch size, 1 … N; N is full batch.
        epochs: an epoch is ⌊N / batch_size⌋ steps, or ⌊epoch_examples / batch_size⌋.
        epoch_examples: as many examples' worth of steps are called an epoch; None: N. It changes the number of steps, which sampler and
            accountant share, never who is sampled.
        statistics_examples: expected size of the Poisson sample whose statistics ``BN`` releases; None: all N.
        lr, optimizer, momentum, nesterov: of the optimizer; no privacy meaning.
        max_grad_norm: per-example gradient bound.
        noise_multiplier: σ of each step; None until :meth:`calibrated`.
        sampling: ``"poisson"`` or ``"shuffle"``.
        input_norm: ``"BN"`` releases statistics, ``"GroupNorm"``, ``"none"`` and ``"given"`` (public statistics) do not.
        num_groups: of GroupNorm.
        bn_noise_multiplier: σ of each statistics release.
        feature_clip_norm: public L2 bound of an example's features, which bounds the statistics; None: from synthetic images.
        delta: δ of the guarantee.
        accountant: which ε counts.
        max_steps: an upper limit on the steps, from a cap on ε; None for none.
        head: a key of :data:`scatterdp.heads.CLASSIFIERS`.
        engine: a key of :data:`scatterdp.engines.ENGINES`; ``"linear"`` serves the linear head only. :data:`UNCLIPPED`: gradients are not
            clipped; only without noise, and then nothing is private.
        clipping: which clipping function bounds each example's gradient; all have the same sensitivity.
        schedule: of the learning rate.
        precondition: number of principal directions, of differences between features of two views of a synthetic image, along which
            features are scaled down; 0 for none. For heads but the linear one, directions of the channels.
        precondition_power: by how much: 1 makes the differences equally long, 0 leaves them.
        augmentation_multiplicity: K augmented copies of an example share one clipped gradient; no privacy meaning.
        validation_noise_multiplier: σ of the number of right answers on examples kept out of training, released once; None: nothing is released.
        warmup_steps: of the learning rate, before the schedule.
        weight_decay: pulls weights (not biases or normalisations) towards zero, after the noise: no privacy meaning.
        early_stop: stop when test accuracy has not risen for five epochs. What is spent stays what was planned: the moment of
            stopping depends on what was released, and a budget that is planned covers every moment.

    Raises:
        ConfigError: a value out of range.
    """

    num_examples: int
    batch_size: int
    epochs: int
    lr: float
    optimizer: Literal["SGD", "Adam"] = "SGD"
    momentum: float = 0.9
    nesterov: bool = False
    max_grad_norm: float = 0.1
    noise_multiplier: float | None = None
    sampling: Sampling = "poisson"
    input_norm: Literal["BN", "GroupNorm", "none", "given"] = "GroupNorm"
    num_groups: int = 27
    bn_noise_multiplier: float = 8.0
    feature_clip_norm: float | None = None
    delta: float = 1e-5
    accountant: Accountant = "pld"
    max_steps: int | None = None
    head: str = "linear"
    engine: str = "linear"
    clipping: Clipping = "flat"
    schedule: Schedule = "constant"
    early_stop: bool = False
    augmentation_multiplicity: int = 1
    precondition: int = 0
    precondition_power: float = 1.0
    epoch_examples: int | None = None
    statistics_examples: int | None = None
    validation_noise_multiplier: float | None = None
    warmup_steps: int = 0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        make_selection(self.sampling, num_examples=self.num_examples, batch_size=self.batch_size, steps=1)
        for name in ("epoch_examples", "statistics_examples"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= self.num_examples:
                raise ConfigError(f"{name}={value}: expected 1 to {self.num_examples}, the number of training examples")
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"batch_size={self.batch_size}: expected at most {self.epoch_examples}, the examples of an epoch, which may be fewer than all"
            )
        for name in ("epochs", "augmentation_multiplicity"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.augmentation_multiplicity > 1 and self.engine == "linear":
            raise ConfigError(
                f"augmentation_multiplicity={self.augmentation_multiplicity}: engine 'linear' takes one copy; take engine='mixed_ghost'"
            )
        if self.engine == UNCLIPPED and self.noise_multiplier != 0:
            raise ConfigError(
                f"noise_multiplier={self.noise_multiplier}: engine 'unclipped' bounds nothing, so noise protects nothing; give 0"
            )
        if not 0 <= self.warmup_steps < max(1, self.steps):
            raise ConfigError(f"warmup_steps={self.warmup_steps}: expected 0 to {self.steps - 1}, fewer than the steps")
        if self.precondition < 0 or not 0 <= self.precondition_power <= 1:
            raise ConfigError(
                f"precondition={self.precondition}, precondition_power={self.precondition_power}: expected at least 0, and 0 to 1"
            )
        for name in (
            "noise_multiplier",
            "bn_noise_multiplier",
            "validation_noise_multiplier",
            "lr",
            "weight_decay",
            "max_grad_norm",
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value}: expected a finite number ≥ 0")
        if self.feature_clip_norm is not None and not (
            math.isfinite(self.feature_clip_norm) and self.feature_clip_norm > 0
        ):
            raise ConfigError(f"feature_clip_norm={self.feature_clip_norm}: expected a finite number > 0")
        if self.max_grad_norm < SMALLEST_BOUND:
            raise ConfigError(f"max_grad_norm={self.max_grad_norm}: expected a number ≥ {SMALLEST_BOUND}")
        if self.max_grad_norm > LARGEST:
            raise ConfigError(f"max_grad_norm={self.max_grad_norm}: expected at most {LARGEST:g}")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta={self.delta}: expected a number between 0 and 1")

    @property
    def steps_per_epoch(self) -> int:
        return (self.epoch_examples or self.num_examples) // self.batch_size

    @property
    def steps(self) -> int:
        """Optimizer updates of the whole run."""
        steps = self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def selection(self, steps: int | None = None) -> BatchSelection:
        """The sampler of the first ``steps`` steps (default: all)."""
        return make_selection(
            self.sampling,
            num_examples=self.num_examples,
            batch_size=self.batch_size,
            steps=self.steps if steps is None else steps,
        )

    def statistics_selection(self) -> PoissonSelection | None:
        """The sampler of the statistics; None for all examples."""
        return statistics_selection(self.num_examples, self.statistics_examples or self.num_examples)

    @property
    def prior(self) -> dp_accounting.DpEvent:
        """What is spent beside training.

        An example is trained on or validated on, never both; both are counted against everybody all the same, so that certificates of
        several runs compose without asking who was where.
        """
        released: list[dp_accounting.DpEvent] = []
        if self.input_norm == "BN":
            selection = self.statistics_selection()
            released.append(statistics_event(self.bn_noise_multiplier, selection.sample_rate if selection else 1.0))
        if self.validation_noise_multiplier is not None:
            released.append(dp_accounting.GaussianDpEvent(self.validation_noise_multiplier))
        if len(released) == 1:
            return released[0]
        return dp_accounting.ComposedDpEvent(released) if released else dp_accounting.NoOpDpEvent()

    def event(self, steps: int | None = None) -> dp_accounting.DpEvent:
        """Everything the run releases in its first ``steps`` steps (default: all).

        Raises:
            ConfigError: the plan has no noise multiplier yet.
        """
        return dp_accounting.ComposedDpEvent([self.prior, self.selection(steps).event(self.sigma)])

    @property
    def sigma(self) -> float:
        """The noise multiplier.

        Raises:
            ConfigError: not calibrated yet.
        """
        if self.noise_multiplier is None:
            raise ConfigError("noise_multiplier=None: give one, or call calibrated(target_epsilon=…)")
        return self.noise_multiplier

    def epsilon(self, steps: int | None = None, *, discretization: float = 1e-4) -> float:
        """ε at ``self.delta`` of :meth:`event`."""
        return epsilon_of(
            self.event(steps), delta=self.delta, accountant=self.accountant, discretization=discretization
        )

    def calibrated(self, *, target_epsilon: float) -> TrainingPlan:
        """The same plan with a noise multiplier whose total just stays within ``target_epsilon``.

        Raises:
            BudgetError: the statistics alone exceed it.
        """
        return dataclasses.replace(self, noise_multiplier=_calibrated_noise(self.cost_only, target_epsilon))

    @property
    def cost_only(self) -> TrainingPlan:
        """The plan that releases the same and says nothing else: equal for plans whose events are equal."""
        return TrainingPlan(lr=1.0, **{name: getattr(self, name) for name in _COSTS})

    def limited(self, *, max_epsilon: float) -> TrainingPlan:
        """The same plan with as many of its steps as fit ``max_epsilon``.

        Raises:
            BudgetError: not even one step fits.
        """
        steps = calibrate_steps(
            self.event, most=self.steps, max_epsilon=max_epsilon, delta=self.delta, accountant=self.accountant
        )
        return dataclasses.replace(self, max_steps=steps)


_COSTS = ("num_examples", "batch_size", "epochs", "noise_multiplier", "sampling", "input_norm", "bn_noise_multiplier",
          "validation_noise_multiplier", "delta", "accountant", "max_steps", "epoch_examples", "statistics_examples")  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _calibrated_noise(plan: TrainingPlan, target_epsilon: float) -> float:
    """Seconds of work that many runs of one sweep share: learning rates and clipping bounds do not change it."""
    return calibrate_noise_multiplier(
        plan.selection().event,
        target_epsilon=target_epsilon,
        target_delta=plan.delta,
        accountant=plan.accountant,
        prior=plan.prior,
    )


def _beyond_the_common(config: TrainingConfig, recipe: Recipe) -> dict[str, Any]:
    """What a config says of preconditioning, the network and how it is trained."""
    if not isinstance(config, BaselinesConfig):
        return {}
    precondition = recipe.precondition if config.precondition is None else config.precondition
    said: dict[str, Any] = {
        "precondition": 0 if config.optim == "LR" else precondition,
        "precondition_power": config.precondition_power,
        "validation_noise_multiplier": config.validation_noise_multiplier,
    }
    if not isinstance(config, CnnsConfig):
        return said
    return said | {
        "head": config.head,
        "engine": "linear" if config.head == "linear" else config.engine,
        "clipping": config.clipping,
        "early_stop": config.early_stop,
        "augmentation_multiplicity": config.augmentation_multiplicity,
    }


def plan_from_config(
    config: BaselinesConfig, *, dataset_name: str, num_examples: int, epoch_examples: int | None = None
) -> TrainingPlan:
    """:func:`plan_from_recipe` with the data set's recipe, which goes by the number of examples of an epoch."""
    recipe = recipe_of(config, dataset_name, epoch_examples or num_examples)
    return plan_from_recipe(config, recipe, num_examples=num_examples, epoch_examples=epoch_examples)


def plan_from_recipe(
    config: TrainingConfig,
    recipe: Recipe,
    *,
    num_examples: int,
    epoch_examples: int | None = None,
    public_statistics: bool = False,
    feature_clip_norm: float | None = None,
) -> TrainingPlan:
    """Resolve flags and recipe into a plan whose noise multiplier is known (not for optim=LR, which needs none).

    Args:
        config: the flags.
        recipe: fills what they leave out.
        num_examples: N.
        epoch_examples: as in :class:`TrainingPlan`; statistics are of a sample of as many.
        public_statistics: statistics are given, and serve when the flags name no other normalisation.
        feature_clip_norm: as in :class:`TrainingPlan`.

    Raises:
        ConfigError: flags that do not fit the data set or each other.
        BudgetError: the budget cannot be met.
    """

    def given(name: str):
        value = getattr(config, name)
        return getattr(recipe, name) if value is None else value

    input_norm = "given" if public_statistics and config.input_norm is None else given("input_norm")
    input_norm = "GroupNorm" if input_norm == "GN" else input_norm
    for name, owner in (("bn_noise_multiplier", "BN"), ("num_groups", "GroupNorm")):
        if getattr(config, name) is not None and input_norm != owner:
            raise ConfigError(
                f"{name}={getattr(config, name)}: has no effect with input_norm={input_norm}; "
                f"leave it out or give --input_norm={owner}"
            )
    plan = TrainingPlan(
        num_examples=num_examples,
        batch_size=config.batch_size if config.batch_size is not None else min(recipe.batch_size, num_examples),
        epochs=given("epochs"),
        lr=given("lr"),
        optimizer="Adam" if config.optim == "Adam" else "SGD",
        momentum=given("momentum"),
        nesterov=config.nesterov,
        schedule=given("schedule"),
        max_grad_norm=given("max_grad_norm"),
        noise_multiplier=config.noise_multiplier,
        sampling=config.sampling,
        input_norm=input_norm,
        num_groups=given("num_groups"),
        bn_noise_multiplier=given("bn_noise_multiplier"),
        delta=config.target_delta,
        accountant=config.accountant,
        feature_clip_norm=feature_clip_norm,
        epoch_examples=epoch_examples,
        statistics_examples=epoch_examples,
        **_beyond_the_common(config, recipe),
    )
    if config.optim == "LR":
        for name in ("noise_multiplier", "target_epsilon", "max_epsilon"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{name}={getattr(config, name)}: has no effect with optim=LR, which is not private")
        return plan
    if plan.noise_multiplier is None:
        target = DEFAULT_TARGET_EPSILON if config.target_epsilon is None else config.target_epsilon
        plan = plan.calibrated(target_epsilon=target)
    if config.max_epsilon is not None:
        plan = plan.limited(max_epsilon=config.max_epsilon)
    return plan
