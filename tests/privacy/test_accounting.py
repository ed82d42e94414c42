import math
import tracemalloc

import dp_accounting
import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent, NonPrivateDpEvent, PoissonSampledDpEvent, pld
from opacus.accountants import PRVAccountant
from scipy import optimize, stats

from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import ACCOUNTANTS, epsilon_of, is_noiseless


def gaussians(sigma: float, count: int) -> dp_accounting.DpEvent:
    return dp_accounting.SelfComposedDpEvent(GaussianDpEvent(sigma), count)


def sampled(q: float, sigma: float, steps: int) -> dp_accounting.DpEvent:
    return dp_accounting.SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)), steps)


def one_sampled_gaussian(q: float, sigma: float, delta: float) -> float:
    """ε of one Poisson-sampled Gaussian by its two hockey-stick divergences, each a closed form."""
    plain, moved = stats.norm(0, sigma), stats.norm(1, sigma)

    def delta_of(epsilon: float) -> float:
        # The mixture exceeds e^ε times the plain Gaussian to the right of the threshold …
        right = sigma**2 * math.log((math.exp(epsilon) - 1 + q) / q) + 0.5
        removed = (1 - q) * plain.sf(right) + q * moved.sf(right) - math.exp(epsilon) * plain.sf(right)
        if math.exp(-epsilon) <= 1 - q:
            return removed
        # … and is below e^-ε times it to the left of another.
        left = sigma**2 * math.log((math.exp(-epsilon) - 1 + q) / q) + 0.5
        added = plain.cdf(left) - math.exp(epsilon) * ((1 - q) * plain.cdf(left) + q * moved.cdf(left))
        return max(removed, added)

    return optimize.root_scalar(lambda epsilon: delta_of(epsilon) - delta, bracket=(1e-12, 100), xtol=1e-12).root


@pytest.mark.parametrize(
    ("sigma", "count", "delta"),
    [
        (4.0, 1, 1e-5),
        (8.0, 2, 1e-5),
        (20.0, 100, 1e-5),
        (5.0, 10, 1e-8),
        (1.0, 3, 1e-6),
        (0.8, 4, 0.1),
        (100.0, 1000, 1e-10),
    ],
)
def test_gaussians_against_the_exact_curve(sigma, count, delta, exact_gaussian_epsilon):
    exact = exact_gaussian_epsilon([sigma] * count, delta)
    pld = epsilon_of(gaussians(sigma, count), delta=delta)
    assert exact - 1e-6 <= pld <= exact + 1e-4
    rdp = epsilon_of(gaussians(sigma, count), delta=delta, accountant="rdp")
    classic = epsilon_of(gaussians(sigma, count), delta=delta, accountant="rdp_classic")
    assert exact < rdp < classic


def test_unlike_gaussians_against_the_exact_curve(exact_gaussian_epsilon):
    sigmas = [3.0, 8.0, 8.0, 20.0, 5.5]
    event = ComposedDpEvent([GaussianDpEvent(sigma) for sigma in sigmas])
    exact = exact_gaussian_epsilon(sigmas, 1e-5)
    assert exact - 1e-6 <= epsilon_of(event, delta=1e-5) <= exact + 1e-4


@pytest.mark.parametrize(("q", "sigma", "delta"), [(0.1, 1.0, 1e-5), (0.5, 2.0, 1e-6), (0.01, 0.8, 1e-4)])
def test_one_sampled_gaussian_against_its_closed_form(q, sigma, delta):
    exact = one_sampled_gaussian(q, sigma, delta)
    assert exact > 0.05
    assert exact - 1e-6 <= epsilon_of(sampled(q, sigma, 1), delta=delta) <= exact + 2e-4


@pytest.mark.parametrize("q", [0.001, 0.05, 0.4])
@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 10), (2.0, 300)])
def test_the_accountants_are_ordered(q, sigma, steps):
    delta = 1e-5 if steps == 10 else 1e-7
    pld, rdp, classic = (epsilon_of(sampled(q, sigma, steps), delta=delta, accountant=name) for name in ACCOUNTANTS)
    assert 0 <= pld <= rdp <= classic
    assert classic > 0


def test_pld_is_not_above_rdp_where_noise_is_small():
    # Whole orders say 214 here, fractional ones 32: the former must not decide that ε is beyond computing.
    event = sampled(0.01, 0.3, 100)
    assert epsilon_of(event, delta=1e-5) <= epsilon_of(event, delta=1e-5, accountant="rdp")


@pytest.mark.parametrize(
    ("q", "sigma", "steps"), [(0.1, 2.0, 100), (0.01, 1.0, 1000), (8192 / 50000, 5.67, 360), (512 / 60000, 1.228, 4680)]
)
def test_opacus_prv_accountant_agrees(q, sigma, steps):
    peer = PRVAccountant()
    peer.history = [(sigma, q, steps)]
    assert epsilon_of(sampled(q, sigma, steps), delta=1e-5) == pytest.approx(peer.get_epsilon(1e-5), rel=0.01)


@pytest.mark.parametrize(("accountant", "figure"), [("rdp_classic", 2.997), ("rdp", 2.591), ("pld", 2.38)])
def test_the_published_cifar10_linear_run(accountant, figure):
    run = ComposedDpEvent([gaussians(8.0, 2), sampled(8192 / 50000, 5.67, 360)])
    assert epsilon_of(run, delta=1e-5, accountant=accountant) == pytest.approx(
        figure, abs=5e-3 if figure < 2.5 else 1e-3
    )


@pytest.mark.parametrize("event", [gaussians(5.0, 20), sampled(0.05, 1.5, 100)])
def test_epsilon_falls_with_delta_and_noise_and_rises_with_steps(event):
    epsilons = [epsilon_of(event, delta=delta) for delta in (1e-7, 1e-5, 1e-3)]
    assert epsilons == sorted(epsilons, reverse=True)
    assert epsilon_of(dp_accounting.SelfComposedDpEvent(event, 2), delta=1e-5) > epsilons[1]


def test_coarser_buckets_never_give_a_smaller_epsilon(exact_gaussian_epsilon):
    exact = exact_gaussian_epsilon([4.0] * 5, 1e-5)
    fine, coarse = (epsilon_of(gaussians(4.0, 5), delta=1e-5, discretization=width) for width in (1e-4, 1e-2))
    assert exact - 1e-6 <= fine <= coarse + 1e-9
    assert coarse < exact + 1e-2


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize(
    "event",
    [
        NonPrivateDpEvent(),
        GaussianDpEvent(0.0),
        gaussians(0.0, 3),
        sampled(0.1, 0.0, 2),
        ComposedDpEvent([GaussianDpEvent(8.0), ComposedDpEvent([NonPrivateDpEvent()])]),
    ],
)
def test_no_noise_is_no_guarantee(event, accountant):
    assert is_noiseless(event)
    assert epsilon_of(event, delta=1e-5, accountant=accountant) == math.inf


@pytest.mark.parametrize(
    "event", [dp_accounting.NoOpDpEvent(), GaussianDpEvent(1e-3), sampled(0.0, 0.0, 1), ComposedDpEvent([])]
)
def test_noise_or_nothing_is_not_noiseless(event):
    assert not is_noiseless(event)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_a_multiplier_that_is_not_a_number_never_means_no_cost(accountant):
    # max(0, nan) is 0: the claim of perfect privacy would come out of a failed computation.
    try:
        epsilon = epsilon_of(GaussianDpEvent(math.nan), delta=1e-5, accountant=accountant)
    except ValueError:
        return
    assert epsilon == math.inf


@pytest.mark.parametrize(
    "event", [gaussians(0.01, 100), sampled(0.1, 0.5, 100_000), GaussianDpEvent(1e-3), sampled(1e-6, 0.01, 10)]
)
def test_large_epsilons_take_no_memory(event, monkeypatch):
    def refuse(**options):
        raise AssertionError("gigabytes of buckets, to tell one large ε from another")

    monkeypatch.setattr(pld, "PLDAccountant", refuse)
    tracemalloc.start()
    try:
        epsilon = epsilon_of(event, delta=1e-5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 200 < epsilon < math.inf
    assert peak < 50 * 2**20


def test_a_large_epsilon_is_still_an_upper_bound(exact_gaussian_epsilon):
    assert epsilon_of(gaussians(0.1, 4), delta=1e-5) >= exact_gaussian_epsilon([0.1] * 4, 1e-5) > 200


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2, math.nan])
def test_delta_out_of_range(delta):
    with pytest.raises(ConfigError, match=f"delta={delta}: expected a number between 0 and 1"):
        epsilon_of(GaussianDpEvent(1.0), delta=delta)


def test_an_unknown_accountant():
    with pytest.raises(ConfigError, match="accountant='prv': expected one of pld, rdp, rdp_classic"):
        epsilon_of(GaussianDpEvent(1.0), delta=1e-5, accountant="prv")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_an_event_that_cannot_be_accounted(accountant):
    with pytest.raises(ConfigError, match=r"event UnsupportedDpEvent.*cannot account it"):
        epsilon_of(dp_accounting.UnsupportedDpEvent(), delta=1e-5, accountant=accountant)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_nothing_costs_nothing(accountant):
    assert epsilon_of(dp_accounting.NoOpDpEvent(), delta=1e-5, accountant=accountant) == 0.0


def test_a_tiny_delta_has_a_finite_bound(exact_gaussian_epsilon):
    event = dp_accounting.GaussianDpEvent(4.0)
    for delta in (1e-15, 1e-18, 1e-30):
        epsilon = epsilon_of(event, delta=delta)
        assert math.isfinite(epsilon)
        assert epsilon >= exact_gaussian_epsilon([4.0], delta) * (1 - 1e-6)
