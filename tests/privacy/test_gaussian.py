import math
import subprocess
import sys

import dp_accounting
import mpmath
import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent, NoOpDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st

from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.gaussian import gaussian_epsilon, inverse_square_sum


def delta_in_forty_digits(epsilon: float, sigma: float) -> float:
    with mpmath.workdps(40):
        e, mu = mpmath.mpf(epsilon), 1 / mpmath.mpf(sigma)
        return float(mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu))


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9, 1e-14, 1e-30])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 4.0, 30.0, 1000.0])
def test_against_the_curve_in_forty_digits(sigma, delta):
    epsilon = gaussian_epsilon(sigma, delta=delta)
    assert delta_in_forty_digits(epsilon, sigma) <= delta
    below = epsilon * (1 - 1e-8) - 1e-11
    assert below < 0 or delta_in_forty_digits(below, sigma) > delta


@pytest.mark.parametrize("sigma", [0.7, 2.0, 11.0])
def test_privacy_loss_distributions_agree(sigma):
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    loose = accountant.compose(SelfComposedDpEvent(GaussianDpEvent(sigma), 7)).get_epsilon(1e-5)
    assert abs(epsilon_of(SelfComposedDpEvent(GaussianDpEvent(sigma), 7), delta=1e-5) - loose) < 1e-3


def test_what_is_gaussian():
    event = ComposedDpEvent([GaussianDpEvent(2.0), NoOpDpEvent(), SelfComposedDpEvent(GaussianDpEvent(4.0), 3)])
    assert inverse_square_sum(event) == pytest.approx(1 / 4 + 3 / 16)
    assert inverse_square_sum(PoissonSampledDpEvent(0.5, GaussianDpEvent(1.0))) is None
    assert inverse_square_sum(ComposedDpEvent([event, PoissonSampledDpEvent(0.5, GaussianDpEvent(1.0))])) is None
    assert inverse_square_sum(SelfComposedDpEvent(PoissonSampledDpEvent(0.5, GaussianDpEvent(1.0)), 2)) is None
    assert inverse_square_sum(dp_accounting.LaplaceDpEvent(1.0)) is None
    assert inverse_square_sum(GaussianDpEvent(0.0)) == math.inf
    assert epsilon_of(NoOpDpEvent(), delta=1e-5) == 0


@given(st.floats(0.02, 1e5), st.floats(1e-100, 0.5))
def test_never_infinite_and_falls_with_the_noise(sigma, delta):
    epsilon = gaussian_epsilon(sigma, delta=delta)
    assert 0 <= epsilon < math.inf
    assert gaussian_epsilon(2 * sigma, delta=delta) <= epsilon


def test_no_torch_is_imported():
    code = "import sys, scatterdp.privacy.gaussian; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
