import math
from collections.abc import Callable, Sequence

import dp_accounting
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.rdp import compute_rdp

from scatterdp.errors import BudgetError, ConfigError
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.calibration import calibrate_noise_multiplier, calibrate_steps

DELTA = 1e-5
NO_SHRINKING = (Phase.explicit, Phase.generate)  # an example takes seconds
CLASSIC_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))


def gaussians(count: int) -> Callable[[float], dp_accounting.DpEvent]:
    return lambda sigma: dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(sigma), count)


def sampled(q: float, steps: int) -> Callable[[float], dp_accounting.DpEvent]:
    def event(sigma: float) -> dp_accounting.DpEvent:
        step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
        return dp_accounting.SelfComposedDpEvent(step, steps)

    return event


@pytest.mark.parametrize(
    ("make_event", "prior", "sigma"),
    [
        pytest.param(sampled(8192 / 50000, 360), gaussians(2)(8.0), 4.578, id="CIFAR-10 linear"),
        pytest.param(sampled(4096 / 60000, 560), gaussians(2)(8.0), 2.478, id="MNIST linear"),
        pytest.param(sampled(8192 / 60000, 280), None, 3.330, id="Fashion linear"),
        pytest.param(gaussians(100), gaussians(2)(20.0), 13.974, id="full batch"),
    ],
)
def test_the_figures_at_epsilon_3(make_event, prior, sigma):
    found = calibrate_noise_multiplier(make_event, target_epsilon=3, target_delta=DELTA, prior=prior)
    assert found == pytest.approx(sigma, abs=1e-3)
    total = dp_accounting.ComposedDpEvent([prior or dp_accounting.NoOpDpEvent(), make_event(found)])
    assert 2.998 < epsilon_of(total, delta=DELTA) <= 3


@pytest.mark.parametrize(("accountant", "sigma"), [("rdp", 4.941), ("rdp_classic", 5.667)])
def test_the_figures_of_the_other_accountants(accountant, sigma):
    # 5.67 is the published figure of the classic conversion, found there to within 0.01 of ε.
    found = calibrate_noise_multiplier(
        sampled(8192 / 50000, 360),
        target_epsilon=3,
        target_delta=DELTA,
        prior=gaussians(2)(8.0),
        accountant=accountant,
    )
    assert found == pytest.approx(sigma, abs=5e-3)


@settings(max_examples=3, deadline=None, derandomize=True, phases=NO_SHRINKING)
@given(count=st.integers(1, 500), target=st.floats(0.1, 10), prior=st.sampled_from([None, 50.0, 20.0]))
def test_gaussians_by_the_exact_curve(exact_gaussian_epsilon, count, target, prior):
    spent = [] if prior is None else [prior, prior]
    event = None if prior is None else gaussians(2)(prior)
    if spent and exact_gaussian_epsilon(spent, DELTA) >= target:
        with pytest.raises(BudgetError):
            calibrate_noise_multiplier(gaussians(count), target_epsilon=target, target_delta=DELTA, prior=event)
        return
    sigma = calibrate_noise_multiplier(gaussians(count), target_epsilon=target, target_delta=DELTA, prior=event)
    assert exact_gaussian_epsilon(spent + [sigma] * count, DELTA) <= target + 1e-6
    assert exact_gaussian_epsilon(spent + [sigma * 0.999] * count, DELTA) > target


def check_sampled(q: float, steps: int, target: float, prior: float | None) -> None:
    """The answer stays within the target, by us and by a peer, and a thousandth less would not."""
    spent = dp_accounting.NoOpDpEvent() if prior is None else gaussians(2)(prior)
    sigma = calibrate_noise_multiplier(sampled(q, steps), target_epsilon=target, target_delta=DELTA, prior=spent)
    assert sigma == pytest.approx(round(sigma, 4), abs=1e-12)

    def epsilon(noise_multiplier: float) -> float:
        return epsilon_of(dp_accounting.ComposedDpEvent([spent, sampled(q, steps)(noise_multiplier)]), delta=DELTA)

    assert epsilon(sigma) <= target
    assert epsilon(min(sigma * 0.999, sigma - 2e-4)) > target
    # A peer's bracket of the true ε; its error is set to 1 % of the target.
    peer = PRVAccountant()
    peer.history = [(sigma, q, steps)] + ([] if prior is None else [(prior, 1.0, 2)])
    assert peer.get_epsilon(DELTA, eps_error=target / 100) <= target * 1.011


@pytest.mark.parametrize(
    ("q", "steps", "target", "prior"), [(0.02, 150, 1.0, 20.0), (0.1, 100, 2.5, None), (0.3, 40, 0.6, None)]
)
def test_sampled_gaussians_never_overspend_and_are_nearly_tight(q, steps, target, prior):
    check_sampled(q, steps, target, prior)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, phases=NO_SHRINKING)
@given(
    q=st.sampled_from([0.005, 0.02, 0.1, 0.3]),
    steps=st.integers(20, 800),
    target=st.floats(0.5, 6),
    prior=st.sampled_from([None, 20.0]),
)
def test_sampled_gaussians_at_random(q, steps, target, prior):
    check_sampled(q, steps, target, prior)


@pytest.mark.parametrize(
    ("q", "steps", "target"),
    # Many steps at a small rate or a small ε: coarse buckets overstate ε by more than the search's margin.
    [(0.001, 1000, 0.1), (0.3, 1000, 0.5)],
)
def test_small_budgets_are_nearly_tight_too(q, steps, target):
    sigma = calibrate_noise_multiplier(sampled(q, steps), target_epsilon=target, target_delta=DELTA)
    assert epsilon_of(sampled(q, steps)(sigma), delta=DELTA) <= target
    assert epsilon_of(sampled(q, steps)(sigma * 0.999), delta=DELTA) > target


@pytest.mark.parametrize(
    ("q", "steps", "target", "spent"), [(0.005, 1, 0.5, 0), (0.05, 1000, 3, 2), (0.005, 2000, 10, 2), (0.3, 100, 6, 0)]
)
def test_the_classic_accountant_by_the_peers_divergences(q, steps, target, spent):
    def epsilon(sigma: float, orders: Sequence[float]) -> float:
        divergences = np.asarray(compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=list(orders)))
        divergences = divergences + spent * np.array(orders) / (2 * 20.0**2)
        return float(min(divergences + math.log(1 / DELTA) / (np.array(orders) - 1)))

    sigma = calibrate_noise_multiplier(
        sampled(q, steps),
        target_epsilon=target,
        target_delta=DELTA,
        accountant="rdp_classic",
        prior=gaussians(spent)(20.0) if spent else None,
    )
    assert epsilon(sigma, CLASSIC_ORDERS) <= target * (1 + 1e-9)
    # Fractional orders are accounted by an upper bound; the whole ones alone can only be larger.
    assert epsilon(sigma * 0.999 - 1e-4, list(range(2, 11)) + list(range(12, 64))) > target


@pytest.mark.parametrize("target", [0.5, 0.633])
def test_a_prior_beyond_the_target_is_refused(target):
    # Two Gaussian(8) are ε = 0.634.
    with pytest.raises(BudgetError, match=r"already ε = 0\.634 at δ = 1e-05; raise target_epsilon, or"):
        calibrate_noise_multiplier(gaussians(10), target_epsilon=target, target_delta=DELTA, prior=gaussians(2)(8.0))


def test_a_prior_just_below_the_target_leaves_room():
    sigma = calibrate_noise_multiplier(gaussians(1), target_epsilon=0.64, target_delta=DELTA, prior=gaussians(2)(8.0))
    assert sigma > 30


def test_no_noise_before_training_is_refused():
    with pytest.raises(BudgetError, match="already ε = inf"):
        calibrate_noise_multiplier(gaussians(1), target_epsilon=3, target_delta=DELTA, prior=gaussians(1)(0.0))


def test_an_event_that_no_noise_helps():
    leak = dp_accounting.NonPrivateDpEvent()
    with pytest.raises(BudgetError, match=r"target_epsilon=3: no noise multiplier up to 1e\+06"):
        calibrate_noise_multiplier(lambda sigma: leak, target_epsilon=3, target_delta=DELTA)


@pytest.mark.parametrize("epsilon", [0, -1, math.inf, math.nan])
def test_a_target_epsilon_out_of_range(epsilon):
    with pytest.raises(ConfigError, match=f"target_epsilon={epsilon}: expected a finite number > 0"):
        calibrate_noise_multiplier(gaussians(1), target_epsilon=epsilon, target_delta=DELTA)


@pytest.mark.parametrize("delta", [0, 1, -1, math.nan])
def test_a_target_delta_out_of_range(delta):
    with pytest.raises(ConfigError, match=f"target_delta={delta}: expected a number between 0 and 1"):
        calibrate_noise_multiplier(gaussians(1), target_epsilon=1, target_delta=delta)


@settings(max_examples=4, deadline=None, derandomize=True, phases=NO_SHRINKING)
@given(sigma=st.floats(5, 40), target=st.floats(0.3, 4))
def test_the_steps_are_the_most_that_fit_by_the_exact_curve(exact_gaussian_epsilon, sigma, target):
    def make_event(steps: int) -> dp_accounting.DpEvent:
        return gaussians(steps)(sigma)

    # μ grows with √steps: the exact count by bisection on the curve.
    low, high = 0, 10_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if exact_gaussian_epsilon([sigma / math.sqrt(middle)], DELTA) <= target else (low, middle)
        )
    if low == 0:
        with pytest.raises(BudgetError, match="one step already spends more"):
            calibrate_steps(make_event, most=300, max_epsilon=target, delta=DELTA)
    else:
        found = calibrate_steps(make_event, most=300, max_epsilon=target, delta=DELTA)
        assert found == min(low, 300)


@pytest.mark.parametrize(("accountant", "cap"), [("pld", 1.5), ("rdp", 1.8), ("rdp_classic", 2.2)])
def test_the_next_step_overspends(accountant, cap):
    def make_event(steps: int) -> dp_accounting.DpEvent:
        return dp_accounting.ComposedDpEvent([gaussians(2)(8.0), sampled(0.1, steps)(1.5)])

    steps = calibrate_steps(make_event, most=40, max_epsilon=cap, delta=DELTA, accountant=accountant)
    assert 1 < steps < 40
    assert epsilon_of(make_event(steps), delta=DELTA, accountant=accountant) <= cap
    assert epsilon_of(make_event(steps + 1), delta=DELTA, accountant=accountant) > cap


def test_all_steps_when_all_fit():
    assert calibrate_steps(lambda t: gaussians(t)(100.0), most=7, max_epsilon=5, delta=DELTA) == 7


@pytest.mark.parametrize("epsilon", [0, -1, math.inf, math.nan])
def test_a_cap_out_of_range(epsilon):
    with pytest.raises(ConfigError, match=f"max_epsilon={epsilon}: expected a finite number > 0"):
        calibrate_steps(lambda t: gaussians(t)(1.0), most=7, max_epsilon=epsilon, delta=DELTA)


@pytest.mark.parametrize("delta", [0, 1])
def test_a_delta_of_the_cap_out_of_range(delta):
    with pytest.raises(ConfigError, match=f"delta={delta}: expected"):
        calibrate_steps(lambda t: gaussians(t)(1.0), most=7, max_epsilon=1, delta=delta)
