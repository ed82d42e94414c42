"""What each method releases, against what its event claims: sensitivities, noise, events, and that it learns."""

import math

import dp_accounting
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scatterdp.errors import ConfigError
from scatterdp.linear import class_means, covariance, least_squares, newton, sphere
from scatterdp.linear.class_means import ClassMeans, exact_class_sums
from scatterdp.linear.covariance import (
    even_rows,
    evening_out,
    exact_second_moments,
    release_second_moments,
    transformed,
)
from scatterdp.linear.gradient_descent import GradientDescent
from scatterdp.linear.least_squares import LeastSquares, exact_products
from scatterdp.linear.method import Method, Problem, unit_blocks
from scatterdp.linear.newton import GRADIENT_SENSITIVITY, HESSIAN_SENSITIVITY, Newton, exact_derivatives
from scatterdp.linear.preconditioned import PreconditionedDescent
from scatterdp.linear.sphere import UnitSphere, release_centre
from scatterdp.privacy.ledger import Ledger
from scatterdp.privacy.noise import symmetric_gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.rows import FeatureRows

KEY = RandomKey.from_seed(0)
FEATURES, CLASSES = 6, 4
ROUNDING = 1e-5


def rows_of(x: torch.Tensor, y: torch.Tensor) -> FeatureRows:
    return FeatureRows(x, y, x.float().square().sum(1))


def problem_of(rows: FeatureRows, classes: int = CLASSES) -> Problem:
    return Problem(num_examples=len(rows.y), num_features=rows.x.shape[1], num_classes=classes)


def methods(problem: Problem) -> list[Method]:
    full = GradientDescent(problem=problem, batch_size=problem.num_examples, epochs=30, lr=20.0)
    return [
        full,
        GradientDescent(problem=problem, batch_size=problem.num_examples // 4, epochs=10, lr=20.0),
        PreconditionedDescent(descent=full, covariance_noise_multiplier=9.0),
        PreconditionedDescent(descent=full, covariance_noise_multiplier=9.0, channels=3),
        Newton(problem=problem),
        LeastSquares(problem=problem),
        ClassMeans(problem=problem),
    ]


def separable(count: int = 2000, seed: int = 0) -> FeatureRows:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    x = torch.nn.functional.one_hot(y, FEATURES).float() + 0.25 * torch.randn(count, FEATURES, generator=generator)
    return rows_of(UnitSphere(FEATURES)(x), y)


@st.composite
def hostile_rows(draw) -> FeatureRows:
    """A few rows, far longer than they may be, shorter, or zero; of half precision at times."""
    count = draw(st.integers(1, 5))
    entries = st.one_of(st.just(0.0), st.floats(-1, 1, width=32), st.sampled_from([1e-20, -3e4, 60000.0]))
    values = draw(st.lists(entries, min_size=count * FEATURES, max_size=count * FEATURES))
    y = torch.tensor(draw(st.lists(st.integers(0, CLASSES - 1), min_size=count, max_size=count)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16]))
    return rows_of(torch.tensor(values).view(count, FEATURES).to(dtype), y)


def without_first(rows: FeatureRows) -> FeatureRows:
    return FeatureRows(rows.x[1:], rows.y[1:], rows.squared_norms[1:])


def triangle_norm(matrix: torch.Tensor) -> float:
    return float(matrix.triu().norm())


@settings(max_examples=200)
@given(hostile_rows(), st.sampled_from([0.0, 0.3]))
def test_no_row_is_longer_than_one(rows, constant):
    for z, _ in unit_blocks(rows, constant=constant):
        assert z.double().norm(dim=1).max() <= 1 + 1e-7
        assert z.shape[1] == FEATURES + (constant > 0)


@settings(max_examples=200)
@given(hostile_rows())
def test_an_example_moves_class_sums_by_at_most_one(rows):
    problem = problem_of(rows)
    moved = exact_class_sums(rows, problem) - exact_class_sums(without_first(rows), problem)
    assert moved.norm() <= 1 + ROUNDING


@settings(max_examples=200)
@given(hostile_rows(), st.sampled_from([(None, 0.0), (None, 0.3), (3, 0.0), (2, 0.0), (1, 0.0)]))
def test_an_example_moves_second_moments_by_at_most_one(rows, how):
    channels, constant = how
    problem = problem_of(rows)

    def exact(r):
        return exact_second_moments(r, problem, channels=channels, constant=constant)

    assert triangle_norm(exact(rows) - exact(without_first(rows))) <= 1 + ROUNDING


def test_rounding_that_goes_one_way_in_many_rows_does_not_add_up():
    """In single precision this neighbour would move the sum by a third more than 1."""
    count, places = 8192, 64
    x = torch.zeros(count, 2, places)
    x[:, 0] = 0.9999 / places**0.5
    x[1::3, 0, 8:] = 0
    x[1::3, 0, :8] = 0.9999 / 8**0.5
    rows = rows_of(x.flatten(1), torch.zeros(count, dtype=torch.int64))
    problem = problem_of(rows, 2)
    both = [exact_second_moments(r, problem, channels=2) for r in (rows, without_first(rows))]
    assert triangle_norm(both[0] - both[1]) <= 1 + ROUNDING


@settings(max_examples=200)
@given(hostile_rows())
def test_an_example_moves_products_and_smallest_eigenvalue_by_at_most_one(rows):
    problem = problem_of(rows)
    assert (exact_products(rows, problem) - exact_products(without_first(rows), problem)).norm() <= 1 + ROUNDING
    smallest = [
        torch.linalg.eigvalsh(exact_second_moments(r, problem, constant=0.3))[0] for r in (rows, without_first(rows))
    ]
    assert abs(smallest[0] - smallest[1]) <= 1 + ROUNDING


@settings(max_examples=200)
@given(hostile_rows(), st.floats(0, 100), st.integers(0, 10))
def test_an_example_moves_gradient_and_hessians_by_their_bounds(rows, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(CLASSES, FEATURES + 1, generator=generator, dtype=torch.float64)
    (g1, h1), (g2, h2) = (exact_derivatives(r, weight) for r in (rows, without_first(rows)))
    assert (g1 - g2).norm() <= GRADIENT_SENSITIVITY + ROUNDING
    assert triangle_norm(h1 - h2) <= HESSIAN_SENSITIVITY + ROUNDING


def test_the_bound_of_the_hessians_is_reached():
    p = torch.tensor([1 / 3, 1 / 3, 1 / 3])
    assert float((p * (1 - p)).norm()) == pytest.approx(HESSIAN_SENSITIVITY)


@pytest.mark.parametrize("number", range(7))
def test_the_event_is_what_the_entries_say(number):
    rows = separable(400)
    method = methods(problem_of(rows))[number]
    solution = method.solve(rows, noise_multiplier=3.0, key=KEY)
    planned = Ledger(solution.entries).epsilon(delta=1e-5)
    from scatterdp.privacy.accounting import epsilon_of

    assert planned == pytest.approx(epsilon_of(method.event(3.0), delta=1e-5), rel=1e-9)
    assert epsilon_of(method.event(3.3), delta=1e-5) < planned


@pytest.mark.parametrize("number", range(7))
def test_it_learns_what_can_be_separated_and_nothing_through_noise(number):
    rows, fresh = separable(), separable(seed=1)
    method = methods(problem_of(rows))[number]
    accuracies = []
    for sigma in (0.2, 1e6):
        solution = method.solve(rows, noise_multiplier=sigma, key=KEY)
        assert solution.weight.dtype == solution.bias.dtype == torch.float32
        assert solution.weight.shape == (CLASSES, FEATURES)
        predicted = (fresh.x @ solution.weight.t() + solution.bias).argmax(1)
        accuracies.append(float((predicted == fresh.y).float().mean()))
    assert accuracies[0] > 0.95
    assert accuracies[1] < 0.75


@pytest.mark.parametrize("number", range(7))
def test_every_draw_of_noise_has_its_own_name(number, monkeypatch):
    rows = separable(200)
    method = methods(problem_of(rows))[number]
    names = []

    original = RandomKey.words

    def words(self, purpose, *, counter, count):
        names.append((self.secret, purpose, counter))
        return original(self, purpose, counter=counter, count=count)

    monkeypatch.setattr(RandomKey, "words", words)
    method.solve(rows, noise_multiplier=3.0, key=KEY)
    assert names
    assert len(names) == len(set(names))


def spied(monkeypatch, module, name="gaussian_noise"):
    """Each call's shape and keywords; what the call returns is real noise."""
    calls = []
    original = getattr(module, name)

    def spy(shape, **keywords):
        calls.append((shape, keywords))
        return original(shape, **keywords)

    monkeypatch.setattr(module, name, spy)
    return calls


def test_noise_is_drawn_with_the_sensitivity_that_is_claimed(monkeypatch):
    rows = separable(200)
    problem = problem_of(rows)
    for module, method, expected in (
        (class_means, ClassMeans(problem=problem), [(2.0, 1.0)]),
        (least_squares, LeastSquares(problem=problem), [(2.0, 1.0), (8.0, 1.0)]),
        (newton, Newton(problem=problem, steps=1), [(2.0, GRADIENT_SENSITIVITY)]),
    ):
        with monkeypatch.context() as patch:
            calls = spied(patch, module)
            method.solve(rows, noise_multiplier=2.0, key=KEY)
        assert [(k["noise_multiplier"], k["sensitivity"]) for _, k in calls] == expected
    for module, method, expected in (
        (covariance, LeastSquares(problem=problem), [(2.0, 1.0)]),
        (newton, Newton(problem=problem, steps=1, hessian_factor=1.5), [(3.0, HESSIAN_SENSITIVITY)] * CLASSES),
    ):
        with monkeypatch.context() as patch:
            calls = spied(patch, module, "symmetric_gaussian_noise")
            method.solve(rows, noise_multiplier=2.0, key=KEY)
        assert [(k["noise_multiplier"], k["sensitivity"]) for _, k in calls] == expected


def looks_normal(sample: np.ndarray) -> bool:
    total = float(np.square(sample).sum())
    chi2 = stats.chi2(sample.size)
    return bool(min(2 * min(chi2.cdf(total), chi2.sf(total)), stats.kstest(sample.ravel(), "norm").pvalue) > 1e-4)


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (2 / 3, False), (1.5, False)])
def test_the_noise_of_second_moments_and_centre(factor, right):
    generator = torch.Generator().manual_seed(0)
    rows = rows_of(UnitSphere(200)(torch.randn(50, 200, generator=generator)), torch.zeros(50, dtype=torch.int64))
    problem = problem_of(rows, 2)
    released, entry = release_second_moments(rows, problem, noise_multiplier=5.0, key=KEY)
    noise = (released.sum - exact_second_moments(rows, problem)).numpy()
    assert np.array_equal(noise, noise.T)
    assert looks_normal(noise[np.triu_indices(200)] / (5.0 * factor)) is right
    assert entry.event == dp_accounting.GaussianDpEvent(5.0)
    assert entry.details["noise_standard_deviation"] == 5.0
    centre = torch.cat(
        [release_centre(rows, problem, noise_multiplier=0.01, key=RandomKey.from_seed(s))[0] for s in range(20)]
    )
    exact = (rows.x.double().sum(0) / 50).repeat(20)
    assert looks_normal((centre.double() - exact).numpy() / (0.01 / 50 * factor)) is right


def test_symmetric_noise_is_symmetric_and_named():
    one = symmetric_gaussian_noise(30, noise_multiplier=2.0, sensitivity=3.0, key=KEY, purpose="a", counter=0)
    other = symmetric_gaussian_noise(30, noise_multiplier=2.0, sensitivity=3.0, key=KEY, purpose="a", counter=1)
    assert torch.equal(one, one.t())
    assert not torch.equal(one, other)


def test_a_mean_that_the_noise_drowns_is_taken_for_nothing():
    rows = rows_of(torch.full((10, 4), 0.5), torch.zeros(10, dtype=torch.int64))
    problem = problem_of(rows, 2)
    faithful, _ = release_centre(rows, problem, noise_multiplier=1e-6, key=KEY)
    assert torch.allclose(faithful, torch.full((4,), 0.5), atol=1e-5)
    drowned = [release_centre(rows, problem, noise_multiplier=1e4, key=RandomKey.from_seed(s))[0] for s in range(20)]
    assert sum(float(mean.norm()) for mean in drowned) < 0.8 * sum(1e4 / 10 * 2 for _ in drowned)


@pytest.mark.parametrize("channels", [None, 2, 6])
def test_evened_rows_vary_equally(channels):
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    rows = rows_of(
        UnitSphere(6)(torch.randn(5000, 6, generator=generator) * scales), torch.zeros(5000, dtype=torch.int64)
    )
    moments, _ = release_second_moments(rows, problem_of(rows, 2), noise_multiplier=0.1, key=KEY, channels=channels)
    matrix = evening_out(moments)
    evened = even_rows(rows, matrix)
    after = exact_evened = (evened.x.t() @ evened.x / 5000).double()
    if channels == 2:
        blocks = evened.x.unflatten(1, (2, 3)).transpose(1, 2).flatten(0, 1)
        after = (blocks.t() @ blocks / 5000).double()
    values = torch.linalg.eigvalsh(after)
    assert values[-1] / values[0] < 1.05
    assert float(exact_evened.trace()) == pytest.approx(1.0, rel=0.02)
    assert torch.allclose(evened.squared_norms, evened.x.square().sum(1))


def test_a_preconditioned_descent_is_a_descent_on_evened_rows():
    rows = separable(400)
    descent = GradientDescent(problem=problem_of(rows), batch_size=400, epochs=5, lr=1.0)
    method = PreconditionedDescent(descent=descent, covariance_noise_multiplier=2.0, channels=3)
    solution = method.solve(rows, noise_multiplier=1.0, key=KEY)
    moments, _ = release_second_moments(rows, problem_of(rows), noise_multiplier=2.0, key=KEY, channels=3)
    matrix = evening_out(moments)
    inner = descent.solve(even_rows(rows, matrix), noise_multiplier=1.0, key=KEY)
    logits = transformed(rows.x, matrix) @ inner.weight.t() + inner.bias
    assert torch.allclose(rows.x @ solution.weight.t() + solution.bias, logits, atol=1e-4)


def test_least_squares_without_noise_is_least_squares():
    rows = separable(500)
    solution = LeastSquares(problem=problem_of(rows)).solve(rows, noise_multiplier=1e-9, key=KEY)
    design = np.concatenate([rows.x.numpy(), np.full((500, 1), 0.3 / (1 - 0.3**2) ** 0.5)], 1)
    expected = np.linalg.lstsq(design, np.eye(CLASSES)[rows.y.numpy()], rcond=None)[0]
    assert np.allclose(solution.weight.numpy().T / 10, expected[:-1], atol=2e-3)


def test_newton_without_noise_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rows = separable(800)
    method = Newton(problem=problem_of(rows), steps=30, penalty=1e-2)
    solution = method.solve(rows, noise_multiplier=1e-9, key=KEY)
    design = np.concatenate([rows.x.numpy() * (1 - 0.3**2) ** 0.5, np.full((800, 1), 0.3)], 1)
    witness = LogisticRegression(C=1 / (1e-2 * 800), fit_intercept=False, max_iter=2000, tol=1e-8).fit(
        design, rows.y.numpy()
    )
    found = solution.weight.numpy() / (1 - 0.3**2) ** 0.5
    assert np.allclose(found - found.mean(0), witness.coef_[:, :-1] - witness.coef_[:, :-1].mean(0), atol=2e-2)


def test_too_many_features_for_a_matrix():
    problem = Problem(num_examples=10, num_features=2049, num_classes=2)
    with pytest.raises(ConfigError, match="head=least_squares: takes at most 2048 features, these are 2049"):
        LeastSquares(problem=problem)
    with pytest.raises(ConfigError, match="head=newton: takes at most 2048"):
        Newton(problem=problem)
    descent = GradientDescent(problem=problem, batch_size=10, epochs=1, lr=1.0)
    with pytest.raises(ConfigError, match="head=preconditioned: takes at most 2048 features, these are 2049"):
        PreconditionedDescent(descent=descent, covariance_noise_multiplier=1.0)
    PreconditionedDescent(descent=descent, covariance_noise_multiplier=1.0, channels=2048)


def test_unit_sphere_at_the_ends_of_the_range():
    x = torch.tensor([[3e38, 3e38], [1e-38, 0.0], [0.0, 0.0], [-2.0, 0.0]])
    unit = UnitSphere(2)(x)
    assert torch.allclose(unit.norm(dim=1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert torch.allclose(unit[0], torch.full((2,), math.sqrt(0.5)))
    moved = UnitSphere(2, torch.tensor([0.0, 1.0]))(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    assert torch.allclose(moved, torch.tensor([[math.sqrt(0.5), -math.sqrt(0.5)], [0.0, 0.0]]))


def test_the_sphere_keeps_shape_and_state():
    module = UnitSphere(12, torch.arange(12.0))
    assert module(torch.ones(2, 3, 2, 2)).shape == (2, 3, 2, 2)
    again = UnitSphere(12)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.mean, torch.arange(12.0))
    assert sphere.__doc__
