import dataclasses
import math

import dp_accounting
import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent, NoOpDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from scipy import optimize, stats

from scatterdp.config import BaselinesConfig
from scatterdp.errors import BudgetError, ConfigError
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import FullBatch, PoissonSelection, ShuffledBatches
from scatterdp.privacy.statistics import statistics_event
from scatterdp.training.plan import TrainingPlan, plan_from_config


def small_plan(**changes) -> TrainingPlan:
    values = {"num_examples": 1000, "batch_size": 300, "epochs": 4, "lr": 1.0, "noise_multiplier": 6.0}
    return TrainingPlan(**{**values, **changes})


def exact_epsilon(noise_multipliers: list[float], delta: float = 1e-5) -> float:
    """The exact curve of composed Gaussians (Balle & Wang 2018, Theorem 8)."""
    mu = math.sqrt(sum(1 / sigma**2 for sigma in noise_multipliers))

    def excess(epsilon: float) -> float:
        tail = math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu))
        return float(stats.norm.cdf(mu / 2 - epsilon / mu)) - tail - delta

    return optimize.root_scalar(excess, bracket=(0, 1000), xtol=1e-12).root


def test_steps_are_whole_epochs():
    assert small_plan().steps_per_epoch == 3
    assert small_plan().steps == 12
    assert small_plan(batch_size=1000).steps == 4
    assert TrainingPlan(num_examples=50_000, batch_size=8192, epochs=60, lr=4).steps == 360
    assert small_plan(max_steps=5).steps == 5
    assert small_plan(max_steps=50).steps == 12


def test_the_event_is_known_beforehand():
    step = PoissonSampledDpEvent(0.3, GaussianDpEvent(6.0))
    assert small_plan().event() == ComposedDpEvent([NoOpDpEvent(), SelfComposedDpEvent(step, 12)])
    assert small_plan().event(5) == ComposedDpEvent([NoOpDpEvent(), SelfComposedDpEvent(step, 5)])
    two = SelfComposedDpEvent(GaussianDpEvent(9.0), 2)
    with_statistics = small_plan(input_norm="BN", bn_noise_multiplier=9.0)
    assert with_statistics.event() == ComposedDpEvent([two, SelfComposedDpEvent(step, 12)])
    assert small_plan(input_norm="BN", max_steps=7).event() == ComposedDpEvent(
        [SelfComposedDpEvent(GaussianDpEvent(8.0), 2), SelfComposedDpEvent(step, 7)]
    )


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
@pytest.mark.parametrize("batch_size", [300, 1000])
@pytest.mark.parametrize("input_norm", ["BN", "GroupNorm", "none"])
def test_the_event_is_the_prior_and_the_selections(sampling, batch_size, input_norm):
    plan = small_plan(sampling=sampling, batch_size=batch_size, input_norm=input_norm)
    assert plan.event() == ComposedDpEvent([plan.prior, plan.selection().event(6.0)])
    assert plan.prior == (statistics_event(8.0) if input_norm == "BN" else NoOpDpEvent())
    assert plan.selection().steps == plan.steps
    assert plan.selection(2).steps == 2
    # The same arguments reach the sampler: what is drawn is what is counted.
    kind = FullBatch if batch_size == 1000 else {"poisson": PoissonSelection, "shuffle": ShuffledBatches}[sampling]
    assert plan.selection() == kind(num_examples=1000, batch_size=batch_size, steps=plan.steps)
    key = RandomKey.from_seed(0)
    assert (plan.selection().indices(1, key) == plan.selection(2).indices(1, key)).all()


def test_epsilon_is_of_the_event():
    plan = small_plan(input_norm="BN", delta=1e-6)
    for accountant in ("pld", "rdp", "rdp_classic"):
        asked = small_plan(input_norm="BN", delta=1e-6, accountant=accountant)
        assert asked.epsilon() == epsilon_of(plan.event(), delta=1e-6, accountant=accountant)
    assert plan.epsilon(1) < plan.epsilon(6) < plan.epsilon()
    assert plan.epsilon(12) == plan.epsilon()
    full = small_plan(batch_size=1000, input_norm="BN")
    assert full.epsilon() == pytest.approx(exact_epsilon([8.0] * 2 + [6.0] * 4), abs=1e-5)


def test_no_noise_is_no_guarantee():
    assert small_plan(noise_multiplier=0.0).epsilon() == math.inf
    assert small_plan(input_norm="BN", bn_noise_multiplier=0.0).epsilon() == math.inf


def test_a_plan_without_noise_yet():
    plan = small_plan(noise_multiplier=None)
    for call in (plan.event, plan.epsilon, lambda: plan.sigma):
        with pytest.raises(ConfigError, match=r"noise_multiplier=None: give one, or call calibrated"):
            call()
    assert plan.prior == NoOpDpEvent()


def test_calibrated_meets_the_target_by_the_exact_curve():
    plan = small_plan(batch_size=1000, epochs=50, noise_multiplier=None, input_norm="BN", bn_noise_multiplier=20.0)
    found = plan.calibrated(target_epsilon=2.0)
    assert exact_epsilon([20.0] * 2 + [found.sigma] * 50) <= 2.0
    assert exact_epsilon([20.0] * 2 + [found.sigma * 0.999] * 50) > 2.0
    assert found == small_plan(
        batch_size=1000, epochs=50, noise_multiplier=found.sigma, input_norm="BN", bn_noise_multiplier=20.0
    )
    assert plan.noise_multiplier is None
    assert found.epsilon() <= 2.0


@pytest.mark.parametrize("accountant", ["rdp", "rdp_classic"])
@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_calibrated_uses_the_plans_accountant_and_sampler(accountant, sampling):
    plan = small_plan(
        batch_size=50, epochs=2, accountant=accountant, sampling=sampling, noise_multiplier=None, delta=1e-6
    )
    found = plan.calibrated(target_epsilon=1.5)
    with_less = dataclasses.replace(plan, noise_multiplier=found.sigma * 0.999)
    assert found.epsilon() <= 1.5 < with_less.epsilon()


def test_statistics_beyond_the_target():
    with pytest.raises(
        BudgetError, match=r"target_epsilon=0\.5: what is spent beside training \(statistics, validation\)"
    ):
        small_plan(input_norm="BN", noise_multiplier=None).calibrated(target_epsilon=0.5)


@pytest.mark.parametrize("input_norm", ["BN", "GroupNorm"])
def test_limited_takes_the_most_steps_that_fit(input_norm):
    plan = small_plan(batch_size=1000, epochs=200, noise_multiplier=15.0, input_norm=input_norm)
    limited = plan.limited(max_epsilon=2.0)
    before = [8.0] * 2 if input_norm == "BN" else []
    assert 1 < limited.steps < 200
    assert exact_epsilon(before + [15.0] * limited.steps) <= 2.0
    assert exact_epsilon(before + [15.0] * (limited.steps + 1)) > 2.0
    assert limited.epsilon() <= 2.0
    assert limited.selection().steps == limited.steps == limited.max_steps
    assert limited.event() == plan.event(limited.steps)


def test_limited_by_a_sampler():
    limited = small_plan(epochs=40, input_norm="BN").limited(max_epsilon=1.5)
    assert 1 < limited.steps < 120
    assert limited.epsilon() <= 1.5
    assert small_plan(epochs=40, input_norm="BN").epsilon(limited.steps + 1) > 1.5


def test_limited_changes_nothing_when_all_steps_fit():
    limited = small_plan().limited(max_epsilon=50.0)
    assert limited.steps == 12
    assert limited.event() == small_plan().event()


def test_not_one_step_fits():
    with pytest.raises(BudgetError, match=r"max_epsilon=0\.01: one step already spends more"):
        small_plan(noise_multiplier=4.0).limited(max_epsilon=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1001}, "batch_size=1001: expected 1 to 1000"),
        ({"batch_size": 0}, "batch_size=0: expected 1 to 1000"),
        ({"epochs": 0}, "epochs=0: expected at least 1"),
        ({"augmentation_multiplicity": 0}, "augmentation_multiplicity=0: expected at least 1"),
        ({"augmentation_multiplicity": 2}, "augmentation_multiplicity=2: engine .linear. takes one copy"),
        ({"sampling": "cyclic"}, "sampling='cyclic'"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(ConfigError, match=message):
        small_plan(**changes)


@pytest.mark.parametrize("sigma", [-1.0, math.nan])
def test_a_noise_multiplier_out_of_range(sigma):
    with pytest.raises(ConfigError, match=f"noise_multiplier={sigma}"):
        small_plan(noise_multiplier=sigma)


def resolve(dataset: str = "cifar10", n: int = 50_000, **flags) -> TrainingPlan:
    return plan_from_config(BaselinesConfig(dataset=dataset, **flags), dataset_name=dataset, num_examples=n)


def test_the_recipe_fills_what_is_left_out():
    plan = resolve(noise_multiplier=5.67)
    assert plan == TrainingPlan(
        num_examples=50_000,
        batch_size=8192,
        epochs=60,
        lr=4,
        optimizer="SGD",
        momentum=0.9,
        nesterov=False,
        max_grad_norm=0.1,
        noise_multiplier=5.67,
        sampling="poisson",
        input_norm="BN",
        num_groups=27,
        bn_noise_multiplier=8.0,
        delta=1e-5,
        accountant="pld",
        max_steps=None,
    )
    assert plan.epsilon() == pytest.approx(2.38, abs=5e-3)
    step = PoissonSampledDpEvent(8192 / 50_000, GaussianDpEvent(5.67))
    assert plan.event() == ComposedDpEvent(
        [SelfComposedDpEvent(GaussianDpEvent(8.0), 2), SelfComposedDpEvent(step, 360)]
    )


@pytest.mark.parametrize(
    ("dataset", "n", "batch_size", "lr", "epochs", "input_norm"),
    [
        ("mnist", 60_000, 4096, 8, 40, "BN"),
        ("fmnist", 60_000, 8192, 16, 40, "GroupNorm"),
        ("digits", 1500, 512, 4, 30, "GroupNorm"),
        ("digits", 100, 100, 4, 30, "GroupNorm"),
        ("faces", 1999, 1999, 4, 60, "GroupNorm"),
        ("faces", 12_000, 2000, 4, 60, "GroupNorm"),
        ("faces", 2400, 512, 4, 60, "GroupNorm"),
    ],
)
def test_recipes(dataset, n, batch_size, lr, epochs, input_norm):
    plan = resolve(dataset, n, noise_multiplier=10.0)
    assert (plan.batch_size, plan.lr, plan.epochs, plan.input_norm) == (batch_size, lr, epochs, input_norm)


def test_flags_come_before_the_recipe():
    plan = resolve(
        batch_size=1024,
        lr=0.5,
        epochs=3,
        momentum=0.0,
        max_grad_norm=2.0,
        noise_multiplier=1.5,
        input_norm="GN",
        num_groups=9,
        target_delta=1e-6,
        accountant="rdp_classic",
        sampling="shuffle",
    )
    assert plan == TrainingPlan(
        num_examples=50_000,
        batch_size=1024,
        epochs=3,
        lr=0.5,
        momentum=0.0,
        max_grad_norm=2.0,
        noise_multiplier=1.5,
        input_norm="GroupNorm",
        num_groups=9,
        delta=1e-6,
        accountant="rdp_classic",
        sampling="shuffle",
    )
    assert resolve(noise_multiplier=1.0, bn_noise_multiplier=12.0).prior == statistics_event(12.0)
    assert resolve(noise_multiplier=1.0, nesterov=True).nesterov


def test_without_noise_it_is_solved_for_epsilon_3():
    plan = resolve(epochs=60, bn_noise_multiplier=8.0)
    assert plan.sigma == pytest.approx(4.578, abs=1e-3)
    assert 2.998 < plan.epsilon() <= 3


def test_the_noise_is_solved_for_the_target():
    plan = resolve("fmnist", 60_000, target_epsilon=2.0, accountant="rdp")
    assert 1.995 < plan.epsilon() <= 2


def test_a_cap_limits_the_steps():
    plan = resolve(noise_multiplier=5.67, max_epsilon=2.0, accountant="rdp")
    assert 0 < plan.steps < 360
    assert plan.epsilon() <= 2.0 < resolve(noise_multiplier=5.67, accountant="rdp").epsilon(plan.steps + 1)
    # A solved plan is within a cap above its target already.
    assert resolve(target_epsilon=1.5, max_epsilon=2.0, accountant="rdp", epochs=60).steps == 360


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"input_norm": "GroupNorm", "bn_noise_multiplier": 8.0},
            "bn_noise_multiplier=8.0: has no effect with input_norm=GroupNorm; leave it out or give --input_norm=BN",
        ),
        (
            {"input_norm": "GN", "bn_noise_multiplier": 8.0},
            "bn_noise_multiplier=8.0: has no effect with input_norm=GroupNorm",
        ),
        (
            {"input_norm": "none", "bn_noise_multiplier": 8.0},
            "bn_noise_multiplier=8.0: has no effect with input_norm=none",
        ),
        (
            {"input_norm": "BN", "num_groups": 27},
            "num_groups=27: has no effect with input_norm=BN; leave it out or give --input_norm=GroupNorm",
        ),
        ({"num_groups": 27}, "num_groups=27: has no effect with input_norm=BN"),
        ({"input_norm": "none", "num_groups": 27}, "num_groups=27: has no effect with input_norm=none"),
        (
            {"optim": "LR", "noise_multiplier": 1.0},
            "noise_multiplier=1.0: has no effect with optim=LR, which is not private",
        ),
        ({"optim": "LR", "target_epsilon": 1.0}, "target_epsilon=1.0: has no effect with optim=LR"),
        ({"optim": "LR", "max_epsilon": 1.0}, "max_epsilon=1.0: has no effect with optim=LR"),
        ({"batch_size": 50_001}, "batch_size=50001: expected 1 to 50000, the number of training examples"),
        ({"noise_multiplier": 1.0, "target_epsilon": 3.0}, "each determines the other, give one of them"),
        ({"sample_batches": True, "sampling": "shuffle"}, "sample_batches and sampling=shuffle contradict"),
        ({"nesterov": True, "optim": "Adam"}, "nesterov: needs optim=SGD and momentum > 0"),
    ],
)
def test_flags_that_contradict(flags, message):
    with pytest.raises(ConfigError, match=message):
        resolve(**flags)


def test_logistic_regression_needs_no_noise():
    plan = resolve(optim="LR")
    assert plan.noise_multiplier is None
    assert plan.input_norm == "BN"


def test_a_budget_that_the_statistics_exceed():
    with pytest.raises(BudgetError, match=r"target_epsilon=0\.3: what is spent beside training"):
        resolve(target_epsilon=0.3, bn_noise_multiplier=8.0)
    with pytest.raises(BudgetError, match=r"max_epsilon=0\.3: one step already spends more"):
        resolve(noise_multiplier=5.0, max_epsilon=0.3)


def test_a_full_batch_of_a_small_set_is_the_plain_gaussian():
    plan = resolve("faces", 500, target_epsilon=3.0)
    assert plan.selection() == FullBatch(num_examples=500, batch_size=500, steps=60)
    gaussians = SelfComposedDpEvent(GaussianDpEvent(plan.sigma), 60)
    assert plan.event() == dp_accounting.ComposedDpEvent([NoOpDpEvent(), gaussians])
    assert exact_epsilon([plan.sigma] * 60) <= 3.0 < exact_epsilon([plan.sigma * 0.999] * 60)


class TestEpochsOfPartOfTheData:
    def test_steps_and_sample_rate(self):
        plan = small_plan(epoch_examples=650)  # of 1000, batches of 300
        assert (plan.steps_per_epoch, plan.steps) == (2, 8)
        step = PoissonSampledDpEvent(0.3, GaussianDpEvent(6.0))  # still of all
        assert plan.event() == ComposedDpEvent([NoOpDpEvent(), SelfComposedDpEvent(step, 8)])
        assert plan.selection().steps == 8

    def test_statistics_of_a_sample(self):
        plan = small_plan(input_norm="BN", statistics_examples=100)
        assert plan.prior == statistics_event(8.0, 0.1)
        selection = plan.statistics_selection()
        assert selection is not None
        assert (selection.num_examples, selection.batch_size) == (1000, 100)
        assert small_plan(statistics_examples=1000).statistics_selection() is None
        assert small_plan().statistics_selection() is None

    def test_the_noise_is_solved_for_the_steps_and_the_sample_that_there_are(self):
        plan = small_plan(
            num_examples=10_000, epoch_examples=1000, statistics_examples=1000, input_norm="BN", noise_multiplier=None
        ).calibrated(target_epsilon=1.0)
        assert plan.epsilon() <= 1.0 < dataclasses.replace(plan, noise_multiplier=plan.sigma * 0.995).epsilon()
        assert plan.cost_only.event() == plan.event()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"epoch_examples": 0}, "epoch_examples=0: expected 1 to 1000"),
            ({"epoch_examples": 1001}, "epoch_examples=1001: expected 1 to 1000"),
            ({"statistics_examples": 1001}, "statistics_examples=1001: expected 1 to 1000"),
            ({"epoch_examples": 299}, "batch_size=300: expected at most 299, the examples of an epoch"),
        ],
    )
    def test_out_of_range(self, changes, message):
        with pytest.raises(ConfigError, match=f"^{message}"):
            small_plan(**changes)


@pytest.mark.parametrize("noise", [None, 1.0])
def test_gradients_without_a_bound_take_no_noise(noise):
    common = {"num_examples": 100, "batch_size": 10, "epochs": 1, "lr": 1.0, "engine": "unclipped"}
    with pytest.raises(ConfigError, match="engine 'unclipped' bounds nothing"):
        TrainingPlan(**common, noise_multiplier=noise)
    assert TrainingPlan(**common, noise_multiplier=0.0).epsilon() == float("inf")
