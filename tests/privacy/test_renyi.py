import inspect
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp

import scatterdp
from scatterdp.errors import BudgetError, ConfigError
from scatterdp.privacy import renyi
from scatterdp.privacy.renyi import ORDERS, classic_epsilon, get_epsilon, get_noise_mul, get_renyi_divergence

# N, B, ε, epochs, two Gaussian(8) releases before, published σ, σ recomputed from the published formula.
PUBLISHED = [
    pytest.param(60000, 512, 3, 40, False, 1.23, 1.2280, id="MNIST CNN"),
    pytest.param(60000, 2048, 3, 40, False, 2.15, 2.1518, id="Fashion CNN"),
    pytest.param(50000, 1024, 3, 30, False, 1.54, 1.5420, id="CIFAR-10 CNN"),
    pytest.param(60000, 4096, 3, 40, True, 3.04, 3.0390, id="MNIST linear"),
    pytest.param(60000, 8192, 3, 40, False, 4.05, 4.0511, id="Fashion linear"),
    pytest.param(50000, 8192, 3, 60, True, 5.67, 5.6730, id="CIFAR-10 linear"),
    pytest.param(50000, 2048, 2, 40, False, 3.32, 3.319, id="transfer ResNeXt"),
    pytest.param(50000, 1024, 2, 40, False, 2.40, 2.399, id="transfer SimCLR"),
]

WHOLE_ORDERS = tuple(range(2, 64))


def canonne_kamath_steinke(divergences: np.ndarray, delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """Proposition 12 of arXiv 2004.00010, written out."""
    return min(
        float(r + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1))
        for a, r in zip(orders, divergences, strict=True)
    )


def mironov(divergences: np.ndarray, delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """Proposition 3 of arXiv 1702.07476, written out."""
    return min(float(r + math.log(1 / delta) / (a - 1)) for a, r in zip(orders, divergences, strict=True))


def opacus_divergences(q: float, sigma: float, steps: int, orders: tuple[float, ...] = ORDERS) -> np.ndarray:
    return np.asarray(compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=list(orders)))


def integral(alpha: float, sigma: float, q: float, *, removed: bool) -> float:
    """The Rényi divergence by its definition: between N(0, σ²) and (1-q) N(0, σ²) + q N(1, σ²)."""
    with mpmath.workdps(30):
        plain = lambda x: mpmath.npdf(x, 0, sigma)  # noqa: E731
        mixed = lambda x: (1 - q) * mpmath.npdf(x, 0, sigma) + q * mpmath.npdf(x, 1, sigma)  # noqa: E731
        over, under = (plain, mixed) if removed else (mixed, plain)
        # The integrand's mass lies within a few σ of 0 or of ±α; each peak gets panels of its own.
        points = sorted({-alpha - 12 * sigma, -alpha, 0, 1, alpha, alpha + 12 * sigma})
        total = mpmath.quad(lambda x: over(x) * (over(x) / under(x)) ** (alpha - 1), points)
        return float(mpmath.log(total) / (alpha - 1))


def test_the_orders_are_the_published_ones():
    assert len(ORDERS) == 151
    assert ORDERS[:2] == (1.1, 1.2)
    assert [round(order, 10) for order in ORDERS[:99]] == [round(1.1 + 0.1 * i, 10) for i in range(99)]
    assert ORDERS[99:] == tuple(range(12, 64))


@pytest.mark.parametrize(("n", "batch", "epsilon", "epochs", "prior", "published", "recomputed"), PUBLISHED)
def test_the_published_noise_multipliers(n, batch, epsilon, epochs, prior, published, recomputed):
    rdp_init = 2 * get_renyi_divergence(1, 8) if prior else 0
    sigma = get_noise_mul(n, batch, epsilon, epochs, rdp_init=rdp_init, conversion="classic")
    assert sigma == pytest.approx(recomputed, abs=6e-4)
    assert round(sigma, 2) == published
    tight = get_noise_mul(n, batch, epsilon, epochs, rdp_init=rdp_init)
    assert 0.8 * sigma < tight < 0.97 * sigma


def test_the_published_noise_of_the_enlarged_data_set():
    # Statistics of 50 000 sampled among 550 000, then 732 steps of 8192 among 550 000: no call with one sample rate.
    def epsilon(sigma: float) -> float:
        spent = 2 * get_renyi_divergence(50_000 / 550_000, 8) + 732 * get_renyi_divergence(8192 / 550_000, sigma)
        return classic_epsilon(spent, 9.09e-7)

    assert epsilon(1.0994) <= 3 < epsilon(1.0990)
    assert epsilon(1.1) == pytest.approx(2.9952, abs=1e-3)


def test_the_signature_is_the_published_one():
    parameters = inspect.signature(get_noise_mul).parameters
    assert list(parameters)[:7] == [
        "num_samples",
        "batch_size",
        "target_epsilon",
        "epochs",
        "rdp_init",
        "target_delta",
        "orders",
    ]
    assert parameters["rdp_init"].default == 0
    assert parameters["target_delta"].default == 1e-5
    assert parameters["orders"].default is ORDERS
    assert parameters["conversion"].default == "tight"
    assert scatterdp.get_noise_mul is get_noise_mul
    assert scatterdp.get_renyi_divergence is get_renyi_divergence
    # The two calls as they are published.
    assert get_noise_mul(50000, 512, 3, 40, target_delta=1e-5) == pytest.approx(get_noise_mul(50000, 512, 3, 40))
    rdp = 2 * get_renyi_divergence(1, 8.0)
    assert get_noise_mul(50000, 8192, 3, 60, rdp_init=rdp, target_delta=1e-5) == pytest.approx(4.941, abs=5e-3)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 8.0, 100.0])
def test_without_sampling_it_is_the_gaussians_divergence(sigma):
    np.testing.assert_allclose(get_renyi_divergence(1, sigma), np.array(ORDERS) / (2 * sigma**2), rtol=1e-12)


SAMPLED = [(512 / 60000, 1.228), (8192 / 50000, 5.67), (0.01, 0.7), (0.5, 2.0)]


@pytest.mark.parametrize(("q", "sigma"), SAMPLED)
def test_whole_orders_with_sampling_are_opacus_divergences(q, sigma):
    np.testing.assert_allclose(
        get_renyi_divergence(q, sigma, WHOLE_ORDERS), opacus_divergences(q, sigma, 1, WHOLE_ORDERS), rtol=1e-6
    )


@pytest.mark.parametrize(("q", "sigma"), SAMPLED)
def test_no_order_is_below_opacus_divergence(q, sigma):
    assert (get_renyi_divergence(q, sigma) >= opacus_divergences(q, sigma, 1) * (1 - 1e-9)).all()


@pytest.mark.parametrize(
    ("q", "sigma", "alpha"), [(0.01, 1.0, 2), (0.1, 2.0, 5), (8192 / 50000, 5.67, 12), (0.3, 0.8, 3)]
)
def test_whole_orders_with_sampling_are_the_integral(q, sigma, alpha):
    ours = get_renyi_divergence(q, sigma, orders=(alpha,))[0]
    assert ours == pytest.approx(integral(alpha, sigma, q, removed=False), rel=1e-8)
    assert ours >= integral(alpha, sigma, q, removed=True)


@pytest.mark.parametrize(("q", "sigma", "alpha"), [(0.1, 2.0, 3.5), (0.01, 0.7, 1.3), (0.3, 0.8, 1.5)])
def test_fractional_orders_are_not_below_the_integral(q, sigma, alpha):
    exact = max(integral(alpha, sigma, q, removed=removed) for removed in (False, True))
    assert get_renyi_divergence(q, sigma, orders=(alpha,))[0] >= exact * (1 - 1e-8)


@settings(max_examples=20, deadline=None)
@given(q=st.floats(0.001, 0.9), sigma=st.floats(0.6, 20))
def test_divergences_grow_with_the_order_and_with_the_rate(q, sigma):
    orders = (2, 3, 4, 8, 16, 32)
    divergences = get_renyi_divergence(q, sigma, orders)
    assert (divergences > 0).all()
    assert (np.diff(divergences) > 0).all()
    assert (divergences < np.array(orders) / (2 * sigma**2)).all()
    assert (get_renyi_divergence(q, 1.1 * sigma, orders) < divergences).all()
    assert (get_renyi_divergence(1.1 * q, sigma, orders) > divergences).all()


@pytest.mark.parametrize(("q", "sigma", "steps", "delta"), [(0.1, 2.0, 100, 1e-5), (0.01, 1.0, 1000, 1e-6)])
def test_both_conversions_are_their_formulas(q, sigma, steps, delta):
    divergences = opacus_divergences(q, sigma, steps)
    n, batch, epochs = 1000, round(1000 * q), round(steps * q)
    classic = get_epsilon(n, batch, sigma, epochs, target_delta=delta, conversion="classic")
    tight = get_epsilon(n, batch, sigma, epochs, target_delta=delta)
    assert classic == pytest.approx(mironov(divergences, delta), rel=1e-6)
    assert tight == pytest.approx(canonne_kamath_steinke(divergences, delta), rel=1e-6)
    assert tight < classic


def test_an_epoch_is_a_whole_number_of_steps():
    # ⌊1000 / 300⌋ · 2 = 6 steps at q = 0.3.
    expected = canonne_kamath_steinke(opacus_divergences(0.3, 2.0, 6, WHOLE_ORDERS), 1e-5, WHOLE_ORDERS)
    assert get_epsilon(1000, 300, 2.0, 2, orders=WHOLE_ORDERS) == pytest.approx(expected, rel=1e-6)


def test_what_was_spent_before_adds_up():
    prior = 2 * get_renyi_divergence(1, 8)
    expected = mironov(2 * np.array(ORDERS) / 128 + opacus_divergences(0.1, 4.0, 20), 1e-5)
    assert get_epsilon(1000, 100, 4.0, 2, rdp_init=prior, conversion="classic") == pytest.approx(expected, rel=1e-6)
    assert get_noise_mul(50000, 8192, 3, 60, rdp_init=prior) > get_noise_mul(50000, 8192, 3, 60) + 0.1


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1000, 60_000),
    share=st.floats(0.01, 1),
    epsilon=st.floats(0.5, 8),
    epochs=st.integers(1, 60),
    delta=st.sampled_from([1e-5, 1e-6]),
    prior=st.sampled_from([0.0, 20.0, 8.0]),
    conversion=st.sampled_from(["tight", "classic"]),
)
def test_the_answer_never_overspends(n, share, epsilon, epochs, delta, prior, conversion):
    orders = WHOLE_ORDERS
    batch, convert = int(share * n), canonne_kamath_steinke if conversion == "tight" else mironov
    rdp_init = np.array(orders) / prior**2 if prior else np.zeros(len(orders))

    def spent(sigma: float) -> float:
        divergences = opacus_divergences(batch / n, sigma, n // batch * epochs, orders)
        return convert(rdp_init + divergences, delta, orders)

    if spent(100.0) > epsilon:
        with pytest.raises(BudgetError):
            get_noise_mul(n, batch, epsilon, epochs, rdp_init, delta, orders, conversion)
        return
    sigma = get_noise_mul(n, batch, epsilon, epochs, rdp_init, delta, orders, conversion)
    assert spent(sigma) <= epsilon * (1 + 1e-9)
    assert spent(sigma) > epsilon - 0.0101 or sigma == 0.1


@pytest.mark.parametrize("conversion", ["tight", "classic"])
def test_the_default_orders_never_overspend(conversion):
    convert = canonne_kamath_steinke if conversion == "tight" else mironov
    for n, batch, epsilon, epochs in [(1000, 250, 7, 3), (60000, 6000, 1, 10)]:
        sigma = get_noise_mul(n, batch, epsilon, epochs, conversion=conversion)
        spent = convert(opacus_divergences(batch / n, sigma, n // batch * epochs), 1e-5)
        assert 0.9 * epsilon < spent <= epsilon * (1 + 1e-9)


def test_the_ends_of_the_bracket():
    assert get_noise_mul(1000, 1, 1e6, 1, orders=WHOLE_ORDERS) == 0.1
    with pytest.raises(BudgetError, match="largest noise multiplier, 100, spends"):
        get_noise_mul(1000, 1000, 0.01, 1000)


def test_a_spent_budget_is_refused():
    with pytest.raises(BudgetError, match=r"target_epsilon=1: .* spends ε = \d+\.\d+ \(delta=1e-05\); raise"):
        get_noise_mul(50000, 512, 1, 40, rdp_init=2 * get_renyi_divergence(1, 1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_noise_mul(1000, 0, 3, 1), "batch_size=0: expected 1 to num_samples=1000"),
        (lambda: get_noise_mul(1000, 1001, 3, 1), "batch_size=1001"),
        (lambda: get_noise_mul(0, 1, 3, 1), "batch_size=1: expected 1 to num_samples=0"),
        (lambda: get_noise_mul(1000, 10, 0, 1), "target_epsilon=0: expected a number > 0"),
        (lambda: get_noise_mul(1000, 10, math.nan, 1), "target_epsilon=nan"),
        (lambda: get_noise_mul(1000, 10, 3, 0), "epochs=0: expected at least 1"),
        (lambda: get_noise_mul(1000, 10, 3, 1, target_delta=0), "target_delta=0: expected"),
        (lambda: get_noise_mul(1000, 10, 3, 1, target_delta=1), "target_delta=1: expected"),
        (lambda: get_noise_mul(1000, 10, 3, 1, conversion="new"), "conversion='new': expected 'tight' or 'classic'"),  # pyright: ignore[reportArgumentType]
        (lambda: get_epsilon(1000, 10, 0, 1), "noise_multiplier=0: expected a finite number > 0"),
        (lambda: get_epsilon(1000, 10, math.nan, 1), "noise_multiplier=nan"),
        (lambda: get_epsilon(1000, 10, math.inf, 1), "noise_multiplier=inf"),
        (lambda: get_renyi_divergence(0, 1), r"sample_rate=0: expected a number in \(0, 1\]"),
        (lambda: get_renyi_divergence(1.5, 1), "sample_rate=1.5"),
        (lambda: get_renyi_divergence(math.nan, 1), "sample_rate=nan"),
        (lambda: get_renyi_divergence(0.5, -1), "noise_multiplier=-1"),
    ],
)
def test_values_out_of_range(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("conversion", ["tight", "classic"])
def test_a_divergence_that_is_not_a_number_never_means_no_cost(conversion):
    # max(0, nan) is 0: an unknown prior must not read as a free one.
    try:
        epsilon = get_epsilon(1000, 10, 1.0, 1, rdp_init=math.nan, conversion=conversion)
    except ConfigError as error:
        assert "rdp_init" in str(error)  # noqa: PT017
    else:
        assert epsilon == math.inf


def test_a_negative_prior_is_refused():
    with pytest.raises(ConfigError, match="rdp_init"):
        get_epsilon(1000, 10, 1.0, 1, rdp_init=-100.0)


@pytest.mark.parametrize("order", [1.0, 0.5])
def test_orders_up_to_one_are_refused(order):
    with pytest.raises(ConfigError, match="orders"):
        get_epsilon(1000, 10, 1.0, 1, orders=(order, 2.0), conversion="classic")


def test_epsilon_is_not_negative():
    assert classic_epsilon(np.full(len(ORDERS), 1e-9), 0.999999) == pytest.approx(0, abs=1e-6)
    assert renyi.tight_epsilon(np.full(len(ORDERS), 1e-9), 0.9) == 0.0
