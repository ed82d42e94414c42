"""The training loop against one written here, its noise, its event, its continuation."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import ClippedSum, linear_engine, loop_engine
from scatterdp.errors import ConfigError
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training import loop
from scatterdp.training.loop import TrainingState, make_optimizer, private_gradient, train
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.rows import FeatureRows, Piece
from scatterdp.training.schedules import lr_factor

N, INPUTS, CLASSES = 60, 9, 4
KEY = RandomKey.from_seed(1)


def make_rows(physical_batch_size: int = 256) -> FeatureRows:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(N, INPUTS, generator=generator)
    y = (x @ torch.randn(INPUTS, CLASSES, generator=generator)).argmax(1)
    return FeatureRows(x, y, x.square().sum(1), physical_batch_size)


def make_plan(**changes: Any) -> TrainingPlan:
    values: dict[str, Any] = {
        "num_examples": N,
        "batch_size": 20,
        "epochs": 5,
        "lr": 2.0,
        "max_grad_norm": 0.5,
        "noise_multiplier": 0.0,
    }
    return TrainingPlan(**(values | changes))


def make_model() -> nn.Linear:
    model = nn.Linear(INPUTS, CLASSES)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bit for bit."""
    assert a["step"] == b["step"]
    for part in ("model", "average"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    memory_a, memory_b = a["optimizer"]["state"], b["optimizer"]["state"]
    assert memory_a.keys() == memory_b.keys()
    for parameter in memory_a:
        assert memory_a[parameter].keys() == memory_b[parameter].keys()
        for name, value in memory_a[parameter].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(memory_b[parameter][name]))


def trained(plan: TrainingPlan, rows: Any = None, *, key: RandomKey = KEY, engine: Any = linear_engine) -> nn.Module:
    model = make_model()
    train(TrainingState.begin(model, plan), rows or make_rows(), plan, key=key, engine=engine)
    return model


OPTIMIZERS = {
    "SGD": {"momentum": 0.0},
    "momentum": {"momentum": 0.9},
    "Nesterov": {"momentum": 0.8, "nesterov": True},
    "Adam": {"optimizer": "Adam", "lr": 0.05},
}


def torch_optimizer(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    match name:
        case "SGD":
            return torch.optim.SGD(parameters, lr=2.0)
        case "momentum":
            return torch.optim.SGD(parameters, lr=2.0, momentum=0.9)
        case "Nesterov":
            return torch.optim.SGD(parameters, lr=2.0, momentum=0.8, nesterov=True)
        case _:
            return torch.optim.Adam(parameters, lr=0.05)


class TestWithoutNoise:
    @pytest.mark.parametrize("batching", [{}, {"batch_size": 7}, {"batch_size": N}, {"sampling": "shuffle"}])
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_equals_a_plain_loop_over_single_examples(self, optimizer, batching):
        plan = make_plan(**OPTIMIZERS[optimizer], **batching)
        rows, selection = make_rows(), plan.selection()
        model = make_model()
        steps = torch_optimizer(optimizer, list(model.parameters()))
        clipped = 0
        for step in range((N // plan.batch_size) * 5):
            sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
            for i in selection.indices(step, KEY):
                logits = rows.x[i] @ model.weight.T + model.bias
                loss = -torch.log_softmax(logits, 0)[rows.y[i]]
                gradients = torch.autograd.grad(loss, list(model.parameters()))
                norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
                clipped += norm > 0.5
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient * min(1.0, 0.5 / norm)
            for parameter, total in zip(model.parameters(), sums, strict=True):
                parameter.grad = total / plan.batch_size
            steps.step()
        assert clipped > 50
        result = trained(plan)
        for ours, theirs in zip(result.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert model.weight.detach().norm() > 0.3  # it went somewhere

    @pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
    def test_the_schedule_is_followed_step_by_step(self, schedule):
        plan = make_plan(schedule=schedule, max_grad_norm=1e6)
        rows, selection = make_rows(), plan.selection()
        model = make_model()
        sgd = torch.optim.SGD(model.parameters(), lr=plan.lr, momentum=plan.momentum)
        factors = torch.optim.lr_scheduler.LambdaLR(
            sgd, lambda step: lr_factor(schedule, min(step, plan.steps - 1), plan.steps)
        )
        for step in range(plan.steps):
            chosen = selection.indices(step, KEY)
            sgd.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(rows.x[chosen]), rows.y[chosen], reduction="sum")
            (loss / plan.batch_size).backward()
            sgd.step()
            factors.step()
        (ours, _), (constant, _) = trained(plan).parameters(), trained(make_plan(max_grad_norm=1e6)).parameters()
        torch.testing.assert_close(ours, model.weight, rtol=1e-4, atol=1e-4)
        assert (ours - constant).norm() > 1e-2  # it makes a difference

    @pytest.mark.parametrize("physical_batch_size", [1, 7, 20])
    def test_physical_batch_size_has_no_meaning(self, physical_batch_size):
        plan = make_plan()
        ours, whole = trained(plan, make_rows(physical_batch_size)), trained(plan)
        for a, b in zip(ours.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    def test_engines_are_interchangeable(self, noise_of_the_key_alone):
        plan = make_plan(noise_multiplier=1.0)
        for a, b in zip(trained(plan).parameters(), trained(plan, engine=loop_engine).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_learns(self):
        rows = make_rows()
        model = trained(make_plan(epochs=40))
        assert (model(rows.x).argmax(1) == rows.y).float().mean() > 0.9


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_make_optimizer_is_the_plans(name):
    model = make_model()
    optimizer = make_optimizer(model, make_plan(**OPTIMIZERS[name]))
    expected = torch_optimizer(name, list(make_model().parameters()))
    assert type(optimizer) is type(expected)
    ours, theirs = ({k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (optimizer, expected))
    assert ours == theirs


def test_make_optimizer_leaves_frozen_parameters_out():
    model = make_model()
    model.weight.requires_grad_(False)
    (group,) = make_optimizer(model, make_plan()).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(model.bias)]


def noise_on(total: Tensor, name: str, *, key: RandomKey, step: int) -> Tensor:
    """What a step adds to a parameter's sum, σ = 3 and C = 0.5."""
    return gaussian_noise(
        tuple(total.shape),
        noise_multiplier=3.0,
        sensitivity=0.5,
        key=key,
        purpose=f"gradient of {name}",
        counter=step,
        dtype=torch.float64,
    )


class TestPrivateGradient:
    def gradient(self, plan: TrainingPlan, *, step: int = 0, key: RandomKey = KEY, model=None) -> dict[str, Tensor]:
        return private_gradient(model or make_model(), make_rows(), plan, step=step, key=key, engine=linear_engine)

    def test_divides_by_the_expected_batch_size(self):
        plan = make_plan()
        selection = plan.selection()
        step = next(step for step in range(50) if len(selection.indices(step, KEY)) not in (0, 20))
        indices = selection.indices(step, KEY)
        rows, model = make_rows(), make_model()
        total = linear_engine(
            model,
            lambda outputs, labels: F.cross_entropy(outputs, labels, reduction="none"),
            rows.x[indices],
            rows.y[indices],
            max_grad_norm=0.5,
        )
        for name, gradient in self.gradient(plan, step=step).items():
            torch.testing.assert_close(gradient, total.gradients[name] / 20)

    def test_an_empty_batch_is_a_step_of_noise_alone(self):
        plan = make_plan(batch_size=1, noise_multiplier=3.0, epochs=2)
        selection = plan.selection()
        step = next(step for step in range(plan.steps) if len(selection.indices(step, KEY)) == 0)
        gradient = self.gradient(plan, step=step)
        key = bound_to_sums(KEY, *(torch.zeros_like(value, dtype=torch.float64) for value in gradient.values()))
        assert {name: tuple(g.shape) for name, g in gradient.items()} == {
            "weight": (CLASSES, INPUTS),
            "bias": (CLASSES,),
        }
        for name, value in gradient.items():
            noise = noise_on(value, name, key=key, step=step)
            assert torch.equal(value, noise.float())
            assert (value != 0).all()

    def test_a_sum_is_rounded_with_its_noise(self):
        """Before, one example may decide how a large sum is rounded, by more than the bound where there are many."""
        plan = make_plan(batch_size=1, noise_multiplier=3.0, epochs=2)
        step = next(step for step in range(plan.steps) if len(plan.selection().indices(step, KEY)) > 0)

        def engine(model, loss, x, y, **settings):
            sums = {name: torch.full(p.shape, 2.0**24 + 1, dtype=torch.float64) for name, p in model.named_parameters()}
            return ClippedSum(sums, torch.zeros(len(x)))

        released = private_gradient(make_model(), make_rows(), plan, step=step, key=KEY, engine=engine)
        sums = engine(make_model(), None, torch.zeros(0), None).gradients
        key = bound_to_sums(KEY, *sums.values())
        for name, total in sums.items():
            noise = noise_on(total, name, key=key, step=step)
            assert torch.equal(released[name], (total + noise).float())
            assert not torch.equal(released[name], total.float() + noise.float())

    def test_a_sum_that_differs_in_its_last_digit_meets_other_noise(self):
        """As other threads or another processor make them: the difference of the two must not be exact."""
        plan, rows = make_plan(noise_multiplier=3.0), make_rows()
        other = FeatureRows(rows.x.nextafter(torch.tensor(1e9)), rows.y, rows.squared_norms)
        first, again, moved = (
            private_gradient(make_model(), held, plan, step=0, key=KEY, engine=linear_engine)
            for held in (rows, rows, other)
        )
        scale = 3.0 * plan.max_grad_norm / plan.batch_size
        for name, value in first.items():
            assert torch.equal(again[name], value)
            assert (moved[name] - value).abs().max() > 0.5 * scale

    def test_an_empty_batch_without_noise_is_zero(self):
        plan = make_plan(batch_size=1, epochs=2)
        step = next(step for step in range(plan.steps) if len(plan.selection().indices(step, KEY)) == 0)
        assert all((value == 0).all() for value in self.gradient(plan, step=step).values())

    def noise(self, plan: TrainingPlan, model: nn.Linear, steps: range) -> dict[str, np.ndarray]:
        """What the noise adds to each coordinate, ``(steps, coordinates)``."""
        noiseless = make_plan(batch_size=plan.batch_size, max_grad_norm=plan.max_grad_norm)
        x, y = torch.ones(N, model.in_features), torch.zeros(N, dtype=torch.int64)
        rows = FeatureRows(x, y, x.square().sum(1))
        differences: dict[str, list[np.ndarray]] = {"weight": [], "bias": []}
        for step in steps:
            noisy, clean = (
                private_gradient(model, rows, p, step=step, key=KEY, engine=linear_engine) for p in (plan, noiseless)
            )
            for name, values in differences.items():
                values.append((noisy[name] - clean[name]).numpy().ravel())
        return {name: np.stack(values) for name, values in differences.items()}

    @staticmethod
    def fits(sample: np.ndarray, deviation: float) -> bool:
        """A chi-square test of the mean square at level 1e-6, and of the shape by Kolmogorov and Smirnov."""
        scaled = sample.ravel() / deviation
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], scaled.size) / scaled.size
        return bool(low < np.mean(scaled**2) < high and stats.kstest(scaled, "norm").pvalue > 1e-6)

    @pytest.mark.parametrize("batch_size", [20, N])
    @pytest.mark.parametrize(("sigma", "bound"), [(1.0, 1.0), (3.0, 0.1), (0.5, 7.0)])
    def test_noise_has_standard_deviation_sigma_c_over_b(self, sigma, bound, batch_size):
        plan = make_plan(noise_multiplier=sigma, max_grad_norm=bound, batch_size=batch_size)
        model = nn.Linear(200, 50)
        sample = self.noise(plan, model, range(2))
        everything = np.concatenate([values.ravel() for values in sample.values()])
        expected = sigma * bound / batch_size
        assert self.fits(everything, expected)
        assert not self.fits(everything, expected * 2 / 3)
        assert not self.fits(everything, expected * 1.5)

    def test_noise_of_the_bias_is_as_large_as_that_of_the_weight(self):
        plan = make_plan(noise_multiplier=2.0)
        sample = self.noise(plan, nn.Linear(1, 4000), range(2))
        assert self.fits(sample["bias"], 2.0 * 0.5 / 20)
        assert not self.fits(sample["bias"], 2.0 * 0.5 / 20 * 2 / 3)
        assert not self.fits(sample["bias"], 2.0 * 0.5 / 20 * 1.5)

    def test_noise_is_independent_between_steps_and_parameters(self):
        plan = make_plan(noise_multiplier=2.0)
        sample = self.noise(plan, nn.Linear(1, 4000), range(3))
        columns = np.concatenate([sample["weight"], sample["bias"]])
        correlations = np.corrcoef(columns)[np.triu_indices(6, 1)]
        assert np.abs(correlations).max() < 5 / math.sqrt(4000)

    def test_another_key_gives_other_noise(self):
        plan = make_plan(noise_multiplier=2.0, batch_size=N)
        first, second, again = (self.gradient(plan, key=RandomKey.from_seed(seed)) for seed in (1, 2, 1))
        assert not torch.isclose(first["weight"], second["weight"]).any()
        assert torch.equal(first["weight"], again["weight"])

    def test_the_mean_of_many_steps_is_the_mean_gradient(self):
        """Poisson batches over N rows, divided by the expected size: unbiased."""
        plan = make_plan(epochs=400)
        mean = torch.stack([self.gradient(plan, step=step)["bias"] for step in range(400)]).mean(0)
        full = self.gradient(make_plan(batch_size=N))["bias"]
        torch.testing.assert_close(mean, full, rtol=0, atol=0.02)


class CountingRows:
    """The rows of ``make_rows``, noting each batch that is asked for."""

    def __init__(self) -> None:
        self.rows = make_rows(7)
        self.batches: list[tuple[int, list[int]]] = []

    def pieces(self, indices: np.ndarray, *, step: int) -> Iterator[Piece]:
        self.batches.append((step, indices.tolist()))
        return self.rows.pieces(indices, step=step)


class TestEvent:
    @pytest.mark.parametrize(
        "changes",
        [{}, {"batch_size": N}, {"sampling": "shuffle"}, {"batch_size": 1, "epochs": 1}, {"max_steps": 7}],
        ids=["poisson", "full", "shuffle", "single", "limited"],
    )
    def test_counts_exactly_the_steps_that_ran(self, changes, monkeypatch):
        plan = make_plan(noise_multiplier=1.5, **changes)
        draws = []

        def noted(shape, **arguments):
            draws.append((arguments["counter"], arguments["purpose"]))
            assert (arguments["noise_multiplier"], arguments["sensitivity"]) == (1.5, 0.5)
            return gaussian_noise(shape, **arguments)

        monkeypatch.setattr(loop, "gaussian_noise", noted)
        rows = CountingRows()
        state = TrainingState.begin(make_model(), plan)
        entry = train(state, rows, plan, key=KEY, engine=linear_engine)
        selection = plan.selection()
        assert entry.event == selection.event(1.5)
        assert plan.steps == selection.steps == state.step == len(rows.batches)
        assert [step for step, _ in rows.batches] == list(range(plan.steps))
        assert all(batch == selection.indices(step, KEY).tolist() for step, batch in rows.batches)
        assert draws == [(step, f"gradient of {name}") for step in range(plan.steps) for name in ("weight", "bias")]

    def test_steps_of_the_event_by_hand(self):
        poisson = train(
            TrainingState.begin(make_model(), make_plan()), CountingRows(), make_plan(), key=KEY, engine=linear_engine
        ).to_json()
        assert poisson["event"] == {
            "type": "SelfComposedDpEvent",
            "count": 15,
            "event": {
                "type": "PoissonSampledDpEvent",
                "sampling_probability": 20 / 60,
                "event": {"type": "GaussianDpEvent", "noise_multiplier": 0.0},
            },
        }

    def test_entry_says_what_makes_it_true(self):
        plan = make_plan(noise_multiplier=1.5)
        entry = train(TrainingState.begin(make_model(), plan), make_rows(), plan, key=KEY, engine=linear_engine)
        assert entry.name == "training"
        assert entry.details == {
            "sampler": plan.selection().describe(),
            "noise_multiplier": 1.5,
            "max_grad_norm": 0.5,
            "clipping": "flat",
            "noise_standard_deviation": 0.75,
        }

    def test_training_that_ends_early_is_charged_for_all_its_steps(self):
        plan = make_plan(noise_multiplier=1.5)
        state = TrainingState.begin(make_model(), plan)
        entry = train(
            state, make_rows(), plan, key=KEY, engine=linear_engine, after_epoch=lambda state: state.step >= 5
        )
        assert 5 <= state.step < plan.steps
        assert entry.event == plan.selection().event(1.5)

    @pytest.mark.parametrize("steps", [0, 1, 7, 15])
    def test_a_continued_run_is_charged_for_all_its_steps_and_runs_the_rest(self, steps):
        plan = make_plan(noise_multiplier=1.5)
        state = TrainingState.begin(make_model(), plan)
        state.step = steps
        rows = CountingRows()
        entry = train(state, rows, plan, key=KEY, engine=linear_engine)
        assert entry.event == plan.selection().event(1.5)
        assert [step for step, _ in rows.batches] == list(range(steps, 15))

    def test_uncalibrated_plans_do_not_train(self):
        plan = make_plan(noise_multiplier=None)
        with pytest.raises(ConfigError, match=r"noise_multiplier=None: give one, or call calibrated"):
            train(TrainingState.begin(make_model(), plan), make_rows(), plan, key=KEY, engine=linear_engine)


class TestAfterEpoch:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, [3, 6, 9, 12, 15]),
            ({"batch_size": N}, [1, 2, 3, 4, 5]),
            ({"batch_size": 25}, [2, 4, 6, 8, 10]),
            ({"max_steps": 7}, [3, 6, 7]),
            ({"max_steps": 1}, [1]),
        ],
    )
    def test_is_called_after_each_epoch_and_at_the_end(self, changes, expected):
        plan = make_plan(**changes)
        seen = []
        state = TrainingState.begin(make_model(), plan)
        train(state, make_rows(), plan, key=KEY, engine=linear_engine, after_epoch=lambda s: seen.append(s.step))
        assert seen == expected

    def test_the_average_has_seen_every_step(self):
        plan = make_plan(batch_size=N, lr=0.3)
        state = TrainingState.begin(make_model(), plan)
        average = torch.zeros(CLASSES, INPUTS)
        weights = []
        train(
            state,
            make_rows(),
            plan,
            key=KEY,
            engine=linear_engine,
            after_epoch=lambda s: weights.append(s.model.state_dict()["weight"].clone()),
        )
        for step, weight in enumerate(weights):
            d = min(0.95, (2 + step) / (10 + step))
            average = d * average + (1 - d) * weight
        torch.testing.assert_close(state.average.average["weight"], average)


class Stop(Exception):
    pass


class TestContinuation:
    @pytest.mark.parametrize("stop_at", [0, 1, 4, 13])
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
    def test_ends_bit_for_bit_like_a_run_without_interruption(self, optimizer, sampling, stop_at):
        plan = make_plan(noise_multiplier=1.0, sampling=sampling, **OPTIMIZERS[optimizer])
        whole = TrainingState.begin(make_model(), plan)
        train(whole, make_rows(), plan, key=KEY, engine=linear_engine)

        def stops(model, loss, x, y, **arguments) -> ClippedSum:
            if state.step == stop_at:
                raise Stop
            return linear_engine(model, loss, x, y, **arguments)

        state = TrainingState.begin(make_model(), plan)
        with pytest.raises(Stop):
            train(state, make_rows(), plan, key=KEY, engine=stops)
        assert state.step == stop_at
        saved = copy.deepcopy(state.state_dict())
        continued = TrainingState.begin(make_model(), plan)
        continued.load_state_dict(saved)
        train(continued, make_rows(), plan, key=KEY, engine=linear_engine)
        assert_same_state(whole.state_dict(), continued.state_dict())
