"""The private optimizer against the definition, and against wrong use."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import loop_engine
from scatterdp.errors import BudgetError, ConfigError, UserError
from scatterdp.privacy.noise import gaussian_noise
from scatterdp.training.privacy_engine import PrivacyEngine

N = 60
X, Y = torch.randn(N, 2, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 3


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


def losses_of(model: nn.Module, rows: Tensor) -> Tensor:
    return F.cross_entropy(model(X[rows]), Y[rows], reduction="none")


def made(model: nn.Module, **changes) -> PrivacyEngine:
    values = {
        "batch_size": 15, "sample_size": N, "epochs": 3, "max_grad_norm": 0.4, "noise_multiplier": 0.0, "seed": 0
    }  # fmt: skip
    return PrivacyEngine(model, **(values | changes))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, engine: PrivacyEngine, physical: int = 256) -> None:
    engine.attach(optimizer)
    for rows, last in engine.batches(physical):
        (optimizer.step if last else optimizer.virtual_step)(loss=losses_of(model, rows))  # pyright: ignore


def by_definition(engine_name: str) -> nn.Module:
    """The loop engine on the same batches."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    engine = made(model, engine=engine_name)
    for step in range(engine.plan.steps):
        rows = torch.from_numpy(engine.plan.selection().indices(step, engine._key))
        clipped = loop_engine(
            model, lambda o, y: F.cross_entropy(o, y, reduction="none"), X[rows], Y[rows], max_grad_norm=0.4
        )
        for name, parameter in model.named_parameters():
            parameter.grad = clipped.gradients[name] / 15
        optimizer.step()
    return model


@pytest.mark.parametrize("engine", ["mixed_ghost", "ghost"])
@pytest.mark.parametrize("physical", [1, 4, 256])
def test_without_noise_it_is_clipped_sums_over_the_expected_size(engine, physical):
    model = network()
    train(model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), made(model, engine=engine), physical)
    for ours, expected in zip(model.parameters(), by_definition(engine).parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_and_the_size_of_pieces_has_no_meaning(make):
    trained = []
    for physical in (3, 256):
        model = network()
        train(model, make(model.parameters(), lr=0.01), made(model, noise_multiplier=0.7), physical)
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    # Noise is bound to the sums, which the pieces round differently: without it the two are equal, with it each is private.
    assert not torch.equal(*trained)
    for physical in (3, 256):
        model = network()
        train(model, make(model.parameters(), lr=0.01), made(model), physical)
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(trained[2], trained[3], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("physical", [2, 256])
def test_noise_is_added_once_a_step_whatever_the_number_of_pieces(physical):
    sigma, bound = 2.0, 0.4
    model = nn.Linear(72, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine = PrivacyEngine(
        model, batch_size=15, sample_size=N, epochs=1, max_grad_norm=bound, noise_multiplier=sigma, seed=None
    )
    engine.attach(optimizer)
    before = model.weight.detach().clone()
    for rows, last in engine.batches(physical):
        loss = F.cross_entropy(model(X[rows].flatten(1)), Y[rows], reduction="none")
        (optimizer.step if last else optimizer.virtual_step)(loss=loss)  # pyright: ignore
        if last:
            break
    noise = (model.weight.detach() - before).numpy().ravel()
    expected = sigma * bound / 15
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], noise.size) / noise.size
    # The signal, at most 15 clipped gradients, is small beside 21600 coordinates of noise.
    assert low * 0.97 < np.mean((noise / expected) ** 2) < high * 1.03
    assert not low < np.mean((noise / (1.5 * expected)) ** 2) < high


def test_a_sum_is_rounded_with_its_noise(monkeypatch):
    """Before, one example may decide how a large sum is rounded, by more than the bound where there are many."""
    noises = []

    def noted(*shape, **settings):
        noises.append(gaussian_noise(*shape, **settings))
        return noises[-1]

    monkeypatch.setattr("scatterdp.training.privacy_engine.gaussian_noise", noted)
    model, gradients = nn.Linear(200, 1, bias=False), torch.tensor([2.0**24, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = {"batch_size": 2, "sample_size": 2, "epochs": 1, "max_grad_norm": 2.0**30, "noise_multiplier": 2.0**-30}
    engine = PrivacyEngine(model, **settings)
    engine.attach(optimizer)
    for rows, last in engine.batches(physical_batch_size=1):
        loss = model(torch.ones(1, 200))[:, 0] * gradients[rows]
        optimizer.step(loss=loss) if last else optimizer.virtual_step(loss=loss)  # pyright: ignore
    (noise,) = noises
    assert noise.dtype == torch.float64
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, ((2.0**24 + 1 + noise) / 2).float())
    assert not torch.equal(model.weight.grad, (2.0**24 + noise.float()) / 2)


def test_the_target_is_met_and_never_exceeded():
    engine = made(network(), noise_multiplier=None, target_epsilon=2.0)
    assert engine.noise_multiplier > 0.5
    assert engine.epsilon() == 0
    spent = []
    model, optimizer = engine.model, torch.optim.SGD(engine.model.parameters(), lr=0.1)
    engine.attach(optimizer)
    for rows, last in engine.batches():
        optimizer.step(loss=losses_of(model, rows))  # pyright: ignore
        assert last
        spent.append(engine.epsilon())
    assert spent == sorted(spent)
    assert 1.98 < spent[-1] <= 2.0
    assert list(engine.batches()) == []  # no step is left
    assert engine.ledger().entries[0].details["sampler"]["steps"] == 12


def test_runs_from_one_seed_on_other_data_share_no_noise():
    noises = []
    for shift in (0.0, 0.001):
        model = nn.Linear(72, 3)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        engine = made(model, noise_multiplier=3.0)
        engine.attach(optimizer)
        for rows, _ in engine.batches():
            loss = F.cross_entropy(model((X[rows] + shift).flatten(1)), Y[rows], reduction="none")
            optimizer.step(loss=loss)  # pyright: ignore
            break
        noises.append(model.weight.detach().flatten())
    assert abs(np.corrcoef(*noises)[0, 1]) < 0.35


def test_frozen_layers_stay_and_an_empty_batch_is_a_step():
    model = network()
    model.get_parameter("0.weight").requires_grad_(False)
    before = model.get_parameter("0.weight").clone()
    trainable = [p for p in model.parameters() if p.requires_grad]
    engine = PrivacyEngine(
        model, batch_size=1, sample_size=N, epochs=1, max_grad_norm=1.0, noise_multiplier=1.0, seed=4
    )
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    engine.attach(optimizer)
    empty = 0
    for rows, last in engine.batches():
        assert last
        bias = model.get_parameter("5.bias").clone()
        optimizer.step(loss=losses_of(model, rows))  # pyright: ignore
        assert (model.get_parameter("5.bias") != bias).all()
        empty += len(rows) == 0
    assert empty > 5
    assert engine.steps_taken == N
    assert torch.equal(model.get_parameter("0.weight"), before)


def test_looking_at_accuracy_between_steps_changes_nothing():
    weights = []
    for looks in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        engine = made(model)
        engine.attach(optimizer)
        for rows, last in engine.batches(8):
            if looks:
                model(X)
                with torch.no_grad():
                    model(X[:5])
            (optimizer.step if last else optimizer.virtual_step)(loss=losses_of(model, rows))  # pyright: ignore
        weights.append(model.get_parameter("5.weight").detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("engine", ["mixed_ghost", "ghost"])
@pytest.mark.parametrize("physical", [3000, 4000])
def test_autocast_leaves_the_bound_alone(engine, physical):
    source = torch.Generator().manual_seed(1)
    x = torch.rand(1000, generator=source) + 0.01 * torch.rand(4000, 1000, generator=source)
    neighbour = x.clone()
    neighbour[17] = 0  # of gradient 0, as if it were not there
    sums = []
    for inputs in (x, neighbour):
        model = nn.Linear(1000, 2, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        private = made(model, batch_size=4000, sample_size=4000, epochs=1, max_grad_norm=1.0, engine=engine)
        private.attach(optimizer)
        for rows, last in private.batches(physical):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(
                    model(inputs[rows]).float(), torch.zeros(len(rows), dtype=torch.int64), reduction="none"
                )
                (optimizer.step if last else optimizer.virtual_step)(loss=loss)  # pyright: ignore
        assert private.steps_taken == 1
        sums.append(model.weight.grad.double() * 4000)  # pyright: ignore
    # All examples point one way: float32 rounds the sum by about 6e-8 of 4000 bounds.
    assert 0.9 < (sums[0] - sums[1]).norm() <= 1 + 3e-4


def test_half_precision_inputs_under_autocast():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = made(model)
    engine.attach(optimizer)
    for rows, _ in engine.batches():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(X[rows].bfloat16()).float(), Y[rows], reduction="none")
            optimizer.step(loss=loss)  # pyright: ignore
        break
    assert engine.steps_taken == 1


# ---------------------------------------------------------------- each piece counts once


def begun(**changes) -> tuple[PrivacyEngine, Any]:
    """An engine of one model and its optimizer."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = made(model, **changes)
    engine.attach(optimizer)
    return engine, optimizer


def finish(engine: PrivacyEngine, optimizer: Any, physical: int = 4) -> Tensor:
    """Take all the steps that are left; the weights then."""
    for rows, last in engine.batches(physical):
        (optimizer.step if last else optimizer.virtual_step)(loss=losses_of(engine.model, rows))
    assert engine.steps_taken == engine.plan.steps
    return torch.cat([p.detach().flatten() for p in engine.model.parameters()])


@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("restarts", [1, 5])
def test_a_step_that_is_begun_anew_counts_its_examples_once(given, restarts):
    engine, optimizer = begun(noise_multiplier=1.0)
    for _ in range(restarts):
        for number, (rows, last) in enumerate(engine.batches(4)):
            assert not last
            if number == given:
                break  # with a piece out, as Ctrl-C leaves it
            optimizer.virtual_step(loss=losses_of(engine.model, rows))
    assert engine.steps_taken == 0
    assert engine.epsilon() == 0
    # To the bit, noise included, for it is bound to the sums.
    assert torch.equal(finish(engine, optimizer), finish(*begun(noise_multiplier=1.0)))


def test_an_older_call_of_batches_is_void():
    engine, optimizer = begun()
    older, newer = engine.batches(), engine.batches()
    rows, _ = next(older)
    optimizer.step(loss=losses_of(engine.model, rows))
    rows, _ = next(newer)
    message = r"^batches: called again since, which began the step anew; go on with the later call's$"
    with pytest.raises(UserError, match=message):
        next(older)
    optimizer.step(loss=losses_of(engine.model, rows))
    assert engine.steps_taken == 2
    older = newer
    finish(engine, optimizer)
    with pytest.raises(UserError, match=message):
        next(older)


def test_a_piece_is_not_taken_twice():
    engine, optimizer = begun()
    batches = engine.batches(4)
    taken = 0
    while engine.steps_taken < 2:
        rows, last = next(batches)
        take = optimizer.step if last else optimizer.virtual_step
        take(loss=losses_of(engine.model, rows))
        taken += 1
        for again in (take, optimizer.step, optimizer.virtual_step):
            with pytest.raises(UserError, match="has given no piece since"):
                again(loss=losses_of(engine.model, rows))
    assert taken > 4
    assert torch.equal(finish(engine, optimizer), finish(*begun()))


def interrupted(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["clip", "Recorder.rules"])
def test_a_piece_that_is_interrupted_half_way_begins_its_step_anew(monkeypatch, where):
    engine, optimizer = begun()
    batches = engine.batches(4)
    rows, _ = next(batches)
    optimizer.virtual_step(loss=losses_of(engine.model, rows))
    rows, _ = next(batches)
    loss = losses_of(engine.model, rows)
    monkeypatch.setattr(f"scatterdp.training.privacy_engine.{where}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.virtual_step(loss=loss)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has given no piece since"):
        optimizer.virtual_step(loss=losses_of(engine.model, rows))
    with pytest.raises(UserError, match=r"or that failed; call engine\.batches\(\) again, which begins the step anew$"):
        next(batches)
    assert torch.equal(finish(engine, optimizer), finish(*begun()))


def test_a_step_that_is_interrupted_before_it_is_counted_is_begun_anew(monkeypatch):
    engine, optimizer = begun()
    batches = engine.batches()
    rows, _ = next(batches)
    monkeypatch.setattr(engine, "_release", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(loss=losses_of(engine.model, rows))
    monkeypatch.undo()
    with pytest.raises(UserError, match="or that failed"):
        next(batches)
    assert engine.steps_taken == 0
    assert torch.equal(finish(engine, optimizer, 256), finish(*begun(), 256))


def test_a_step_that_is_interrupted_while_it_is_released_is_spent(monkeypatch):
    engine, optimizer = begun(noise_multiplier=1.0)
    rows, _ = next(engine.batches())
    monkeypatch.setattr("scatterdp.training.privacy_engine.gaussian_noise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(loss=losses_of(engine.model, rows))
    monkeypatch.undo()
    assert engine.steps_taken == 1
    assert engine.epsilon() > 0
    finish(engine, optimizer)


def test_no_step_is_taken_beyond_the_plan():
    engine, optimizer = begun()
    finish(engine, optimizer)
    before = engine.model.get_parameter("5.weight").detach().clone()
    message = r"^optimizer\.step: all 12 steps that the noise was made for are taken$"
    with pytest.raises(UserError, match=message):
        optimizer.step(loss=losses_of(engine.model, torch.arange(3)))
    with pytest.raises(UserError, match=message):
        engine._release()
    assert engine.steps_taken == 12
    assert torch.equal(engine.model.get_parameter("5.weight"), before)


# ---------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target_epsilon": 3.0}, ConfigError, "target_epsilon, noise_multiplier: each determines the other"),
        ({"noise_multiplier": None}, ConfigError, "target_epsilon, noise_multiplier: each determines the other"),
        ({"batch_size": 0}, ConfigError, "batch_size=0: expected a whole number ≥ 1"),
        ({"batch_size": 61}, ConfigError, "batch_size=61: expected 1 to 60"),
        ({"max_grad_norm": 0.0}, ConfigError, "max_grad_norm=0.0: expected a number ≥ 1e-15"),
        ({"max_grad_norm": 1e-25}, ConfigError, "max_grad_norm=1e-25: expected a number ≥ 1e-15"),
        ({"engine": "hooks"}, ConfigError, "engine='hooks': expected mixed_ghost or ghost"),
        (
            {"noise_multiplier": None, "target_epsilon": 1e-12, "target_delta": 1e-15},
            BudgetError,
            "target_epsilon=1e-12",
        ),
    ],
)
def test_values_out_of_range(changes, error, message):
    with pytest.raises(error) as raised:
        made(network(), **changes)
    assert str(raised.value).startswith(message)


def test_batch_norm_is_refused_when_the_engine_is_made():
    with pytest.raises(UserError, match="batch normalisation mixes examples"):
        made(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))


def test_other_batches_than_those_given_are_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = made(model)
    engine.attach(optimizer)
    with pytest.raises(UserError, match=r"loss of 15 examples given to step: batches\(\) has given no piece since"):
        optimizer.step(loss=losses_of(model, torch.arange(15)))  # pyright: ignore
    rows, last = next(engine.batches(4))
    assert not last
    with pytest.raises(
        UserError, match=r"given to step: the piece that batches\(\) gave is another, of 4 rows for virtual_step"
    ):
        optimizer.step(loss=losses_of(model, rows))  # pyright: ignore
    with pytest.raises(UserError, match=r"the piece that batches\(\) gave is another"):
        optimizer.virtual_step(loss=losses_of(model, rows[:-1]))  # pyright: ignore
    with pytest.raises(UserError, match=r"expected one number an example, reduction='none'"):
        optimizer.virtual_step(loss=losses_of(model, rows).mean())  # pyright: ignore
    assert engine.steps_taken == 0


class Mixing(nn.Module):
    """Mixes examples, perhaps in one mode only."""

    def __init__(self, *, only_in: bool | None = None) -> None:
        super().__init__()
        self.linear, self.only_in = nn.Linear(72, 3), only_in

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.linear(x - x.mean(0) if self.only_in in (None, self.training) else x)


def test_a_model_that_mixes_examples_is_refused_however_often():
    engine = made(model := Mixing())
    for _ in range(3):
        with pytest.raises(UserError, match="model"):
            model(X[:4])
    assert engine.steps_taken == 0


def test_a_mode_that_was_not_seen_is_checked_when_it_comes():
    made(model := Mixing(only_in=True))
    with torch.no_grad():
        model(X[:4])  # nothing is trained on this
    model.eval()
    model(X[:4])
    model.train()
    with pytest.raises(UserError, match="model"):
        model(X[:4])


def test_a_part_that_was_frozen_at_first_is_checked_when_it_is_not():
    class Centre(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0) if self.training else x

    made(model := nn.Sequential(Centre(), nn.Flatten(), nn.Linear(72, 3)))
    model[0].eval()
    model(X[:4])
    model.train()
    with pytest.raises(UserError, match=r"^model: what it gives examples together"):
        model(X[:4])


def test_an_argument_that_was_not_seen_is_checked_when_it_comes():
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(72, 3)

        def forward(self, x: Tensor, *, centre: bool = False) -> Tensor:
            return self.linear((x - x.mean(0) if centre else x).flatten(1))

    made(model := Centred())
    model(X[:4])
    model(X[:4], centre=False)
    with pytest.raises(UserError, match=r"^model: what it gives examples together"):
        model(X[:4], centre=True)


@pytest.mark.parametrize("flags", [(torch.tensor(0), torch.tensor(1)), (torch.zeros(1), torch.ones(1))])
def test_a_flag_may_be_a_tensor(flags):
    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(72, 3)

        def forward(self, x: Tensor, flag: Tensor) -> Tensor:
            return self.linear((x - x.mean(0) if flag else x).flatten(1))

    made(model := Flagged())
    model(X[:4], flags[0])
    with pytest.raises(UserError, match=r"^model: what it gives examples together"):
        model(X[:4], flags[1])


def test_another_width_is_tried_too():
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear((x - x.mean(0) if x.shape[-1] > 5 else x).mean((2, 3)))

    made(model := Wide())
    model(X[:4, :, :5, :5])
    with pytest.raises(UserError, match=r"^model: what it gives examples together"):
        model(X[:4])


def test_models_with_a_state_that_is_no_tensor():
    class Stated(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"version": 2}

        def set_extra_state(self, state: Any) -> None:
            pass

    model = nn.Sequential(nn.Flatten(), Stated(72, 3).requires_grad_(False), nn.Linear(3, 3))
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), engine := made(model))
    assert engine.steps_taken == engine.plan.steps


def test_what_hooks_of_the_model_write_is_noticed():
    model, writes = Memory(), []

    def before(module: Any, given: tuple[Tensor]) -> None:
        if writes:
            module.mean += given[0].mean()

    model.register_forward_pre_hook(before)
    made(model)
    model(X[:4])
    writes.append(True)
    with pytest.raises(UserError, match=r"^mean: the model's forward pass changes it"), torch.no_grad():
        model(X)


def test_batch_normalisation_that_is_thawed_later_is_named():
    made(model := nn.Sequential(nn.Flatten(), nn.BatchNorm1d(72, affine=False), nn.Linear(72, 3)).eval())
    model(X[:4])
    model.train()
    with pytest.raises(UserError, match=r"^module '1' \(BatchNorm1d\): batch normalisation mixes examples"):
        model(X[:4])


class Memory(nn.Module):
    """Writes to a buffer when it is asked to."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(72))
        self.linear, self.remembers = nn.Linear(72, 3), False

    def forward(self, x: Tensor) -> Tensor:
        if self.remembers:
            self.mean.copy_(x.flatten(1).mean(0).detach())
        return self.linear(x.flatten(1) - self.mean)


@pytest.mark.parametrize("gradients", [False, True])
def test_what_a_pass_has_written_into_the_model_is_never_trained_on(gradients):
    engine, optimizer = begun_on(model := Memory())
    losses_of(model, torch.arange(4))
    model.remembers = True
    with (
        torch.set_grad_enabled(gradients),
        pytest.raises(UserError, match=r"^mean: the model's forward pass changes it"),
    ):
        model(X)
    model.remembers = False
    for _ in range(2):
        rows, _ = next(engine.batches())
        with pytest.raises(UserError, match=r"this model has it already: begin with a new one$"):
            optimizer.step(loss=losses_of(model, rows))
    assert engine.steps_taken == 0


def test_a_first_pass_that_writes_is_refused_before_private_rows_are_in_it():
    model = Memory()
    model.remembers = True
    made(model)
    with pytest.raises(UserError, match=r"^mean: the model's forward pass changes it"):
        model(X)
    assert not model.get_buffer("mean").any()


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step:UserWarning")
@pytest.mark.parametrize("after", [False, True])
def test_schedulers_of_the_learning_rate(after):
    optimizer = torch.optim.SGD((model := network()).parameters(), lr=0.5)
    engine = made(model)
    if after:
        engine.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    if not after:
        engine.attach(optimizer)
    for rows, _ in engine.batches():
        optimizer.step(loss=losses_of(model, rows))  # pyright: ignore
        scheduler.step()
    assert engine.steps_taken == 12
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.1**12)


def test_a_piece_left_out_is_noticed():
    engine = made(network())
    batches = engine.batches(4)
    next(batches)
    with pytest.raises(UserError, match="the piece before was not given"):
        next(batches)


def test_an_optimizer_of_other_parameters_is_refused():
    engine = made(network())
    for parameters in (list(engine.model.parameters())[:2], [*engine.model.parameters(), nn.Parameter(torch.ones(1))]):
        with pytest.raises(UserError, match=r"^optimizer: does not hold exactly the model's trainable parameters"):
            engine.attach(torch.optim.SGD(parameters, lr=0.1))
    assert math.isfinite(engine.noise_multiplier)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: model(x=x),
        lambda model, x: model(x.mul(10).to(torch.int64)),
        lambda model, x: model((x,)),
        lambda model, x: model({"x": x}),
    ],
    ids=["by name", "whole numbers", "in a tuple", "in a dictionary"],
)
@pytest.mark.parametrize("mixes", [False, True])
def test_whatever_a_model_is_called_with_is_tried(call, mixes):
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(72, 3)

        def forward(self, x: Any) -> Tensor:
            x = x["x"] if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x
            x = self.linear(x.flatten(1).float())
            return x - x.mean(0) if mixes else x

    made(model := Takes())
    if mixes:
        with pytest.raises(UserError, match=r"^model: what it gives examples together is not what it gives them alone"):
            call(model, X[:4])
    else:
        call(model, X[:4])


@pytest.mark.parametrize("of_examples", [lambda n: [1.0] * n, lambda n: np.ones((n, 2))], ids=["list", "array"])
def test_lists_and_arrays_as_long_as_the_batch_are_refused(of_examples):
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(72, 3)

        def forward(self, x: Tensor, other: Any) -> Tensor:
            return self.linear(x.flatten(1)) * len(other)

    made(model := Takes())
    with pytest.raises(UserError, match=r"^model: is called with an? (list|array) of 6, as many as the batch"):
        model(X[:6], of_examples(6))
    model(X[:6], of_examples(3))
    model(X[:2], [8, 8])


def test_many_small_pieces_count_beside_a_large_one():
    examples = 40
    engine = PrivacyEngine(
        model := nn.Linear(1, 1, bias=False), batch_size=examples, sample_size=examples, epochs=1, max_grad_norm=1.0, noise_multiplier=0.0
    )  # fmt: skip
    engine.attach(optimizer := torch.optim.SGD(model.parameters(), lr=0.0))
    factors = torch.full((examples,), 2.0**-26)
    factors[0] = 1.0
    for rows, last in engine.batches(physical_batch_size=1):
        (optimizer.step if last else optimizer.virtual_step)(loss=model(torch.ones(1, 1))[:, 0] * factors[rows])  # pyright: ignore
    gradient = model.weight.grad
    assert gradient is not None
    assert gradient.item() * examples == pytest.approx(1 + 39 * 2.0**-26, abs=1e-7)
    assert gradient.item() * examples > 1 + 30 * 2.0**-26


def test_a_call_without_examples_cannot_be_tried():
    made(model := network())
    with pytest.raises(UserError, match=r"^model: is called without a tensor of examples"):
        model("image.png")


@pytest.mark.parametrize("parts", [lambda m, x: m[5](m[:5](x)), lambda m, x: m.forward(x)], ids=["parts", "forward"])
def test_a_model_whose_parts_are_called_is_noticed(parts):
    engine, optimizer = begun()
    for number, (rows, _) in enumerate(engine.batches()):
        if number == 0:
            optimizer.step(loss=losses_of(engine.model, rows))
            continue
        loss = F.cross_entropy(parts(engine.model, X[rows]), Y[rows], reduction="none")
        with pytest.raises(UserError, match=r"^model: was not called since the last step with gradients on"):
            optimizer.step(loss=loss)
        break
    assert engine.steps_taken == 1


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_between_forward_pass_and_step_changes_nothing(guard):
    engine, optimizer = begun()
    for rows, _ in engine.batches():
        loss = losses_of(engine.model, rows)
        with guard():
            engine.model(X[:3])
        optimizer.step(loss=loss)
    weights = torch.cat([p.detach().flatten() for p in engine.model.parameters()])
    assert torch.equal(weights, finish(*begun(), 256))


def test_losses_that_are_not_of_the_last_forward_pass():
    engine, optimizer = begun()
    rows, _ = next(engine.batches())
    loss = losses_of(engine.model, rows)
    losses_of(engine.model, rows)
    with pytest.raises(UserError, match=r"^loss: does not come from the model's last forward pass with gradients on"):
        optimizer.step(loss=loss)
    assert engine.steps_taken == 0


def test_losses_without_a_gradient():
    engine, optimizer = begun()
    rows, _ = next(engine.batches())
    with pytest.raises(UserError, match=r"^loss: has no gradient \(detached, or of whole numbers\)"):
        optimizer.step(loss=losses_of(engine.model, rows).detach())
    assert engine.steps_taken == 0


def test_a_penalty_in_the_loss_is_refused():
    engine, optimizer = begun()
    rows, _ = next(engine.batches())
    loss = losses_of(engine.model, rows) + 0.1 * engine.model.get_parameter("0.bias").square().sum()
    with pytest.raises(UserError, match=r"^0.bias: the loss depends on it otherwise than by one call of its layer"):
        optimizer.step(loss)
    assert engine.steps_taken == 0


def test_a_layer_frozen_after_attaching_is_noticed():
    engine, optimizer = begun()
    engine.model[0].requires_grad_(False)  # pyright: ignore
    rows, _ = next(engine.batches())
    with pytest.raises(UserError, match=r"^model: its trainable parameters are not those"):
        optimizer.step(losses_of(engine.model, rows))


def test_a_detached_engine_takes_no_step():
    engine, optimizer = begun()
    rows, _ = next(engine.batches())
    loss = losses_of(engine.model, rows)
    engine.detach()
    for refused in (
        lambda: optimizer.step(loss),
        lambda: optimizer.virtual_step(loss),
        lambda: engine.attach(torch.optim.SGD(engine.model.parameters(), lr=0.1)),
    ):
        with pytest.raises(UserError, match=r"^PrivacyEngine: has been detached from the model; make a new engine"):
            refused()


@pytest.mark.parametrize("passes", [2, 3])
def test_losses_of_several_forward_passes_are_refused(passes):
    engine, optimizer = begun()
    rows, _ = next(engine.batches())
    loss = sum(losses_of(engine.model, rows) for _ in range(passes))
    with pytest.raises(
        UserError,
        match=r"^loss: does not come from the model's last forward pass with gradients on, and from that alone",
    ):
        optimizer.step(loss=loss)
    assert engine.steps_taken == 0


def test_a_loss_of_the_last_pass_and_of_one_before_the_last_is_refused():
    engine, optimizer = begun()
    rows, _ = next(engine.batches())
    first, _, last = (losses_of(engine.model, rows) for _ in range(3))
    with pytest.raises(UserError, match=r"^loss: does not come from the model's last forward pass"):
        optimizer.step(loss=first + last)


def test_passes_that_are_not_in_the_loss_are_in_nobodys_way():
    engine, optimizer = begun()
    for rows, _ in engine.batches():
        engine.model(X[:7])
        engine.model(X[7:])
        optimizer.step(loss=losses_of(engine.model, rows))
    weights = torch.cat([p.detach().flatten() for p in engine.model.parameters()])
    assert torch.equal(weights, finish(*begun(), 256))


def test_a_gradient_left_in_a_frozen_parameter_is_not_applied():
    model = network()
    F.cross_entropy(model(X), Y).backward()
    model[0].requires_grad_(False)
    engine, optimizer = made(model), torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(UserError, match=r"^optimizer: a frozen parameter has a gradient, which would be applied"):
        engine.attach(optimizer)
    optimizer.zero_grad()
    engine.attach(optimizer)
    rows, _ = next(engine.batches())
    loss = losses_of(model, rows)
    model.get_parameter("0.weight").grad = torch.ones(4, 2, 3, 3)
    with pytest.raises(UserError, match=r"^optimizer: a frozen parameter has a gradient"):
        optimizer.step(loss=loss)  # pyright: ignore
    assert engine.steps_taken == 0


def test_parameters_that_are_added_later_are_noticed():
    engine, optimizer = begun()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    rows, _ = next(engine.batches())
    with pytest.raises(UserError, match=r"^optimizer: does not hold exactly the model's trainable parameters"):
        optimizer.step(loss=losses_of(engine.model, rows))
    assert engine.steps_taken == 0


def replace_the_head(model: nn.Sequential) -> None:
    model[5] = nn.Linear(36, 3)


@pytest.mark.parametrize(
    "change",
    [lambda m: m[0].requires_grad_(False), lambda m: m[1].requires_grad_(True), replace_the_head, lambda m: m.double()],
    ids=["frozen", "unfrozen", "replaced", "another precision"],
)
def test_a_model_that_is_changed_after_the_engine_was_made(change):
    model = network()
    model[1].requires_grad_(False)
    engine, optimizer = made(model), torch.optim.SGD(model.parameters(), lr=0.1)
    engine.attach(optimizer)
    change(model)
    rows, _ = next(engine.batches())
    message = r"^model: its trainable parameters are not those that PrivacyEngine was made for"
    with pytest.raises(UserError, match=message):
        optimizer.step(loss=torch.zeros(len(rows), requires_grad=True))  # pyright: ignore
    with pytest.raises(UserError, match=message):
        engine.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert engine.steps_taken == 0


@pytest.mark.parametrize("make", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_optimizers_that_take_no_gradient_are_refused(make):
    engine = made(network())
    with pytest.raises(UserError, match=rf"^optimizer: {make.__name__} takes no gradient as it is given"):
        engine.attach(make(engine.model.parameters()))


@pytest.mark.parametrize("make", [torch.optim.Adagrad, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adadelta])
def test_further_optimizers(make):
    model = network()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    engine = made(model, noise_multiplier=1.0)
    train(model, make(model.parameters(), lr=0.1), engine)
    assert engine.steps_taken == engine.plan.steps
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_an_optimizer_is_given_once():
    engine, optimizer = begun()
    with pytest.raises(UserError, match=r"^optimizer: has been given to a PrivacyEngine before"):
        engine.attach(optimizer)


def test_a_model_has_one_engine_at_a_time():
    engine = made(model := network())
    with pytest.raises(UserError, match=r"^model: another PrivacyEngine is on it; call that one's detach\(\) first"):
        made(model)
    with pytest.raises(UserError, match=r"^model: another PrivacyEngine is on it"):
        made(nn.Sequential(model))
    with pytest.raises(UserError, match=r"^model: another PrivacyEngine is on it"):
        made(nn.Sequential(nn.Flatten(), model[5]))
    engine.detach()
    finish(*begun_on(model))


def test_a_seed_draws_other_batches_for_other_weights_and_the_ledger_tells_of_it():
    model, other = network(), network()
    with torch.no_grad():
        other.get_parameter("0.bias").add_(1e-3)
    of_model, again, of_other = (next(made(m).batches())[0].tolist() for m in (model, network(), other))
    assert of_model == again != of_other
    for seed, origin in ((0, "seed"), (None, "system")):
        engine = made(model := network(), seed=seed)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), engine)
        (entry,) = engine.ledger().entries
        assert entry.details["noise_source"]["origin"] == origin


def begun_on(model: nn.Module) -> tuple[PrivacyEngine, Any]:
    engine, optimizer = made(model), torch.optim.SGD(model.parameters(), lr=0.5)
    engine.attach(optimizer)
    return engine, optimizer


def test_a_copy_of_the_model_is_an_ordinary_model():
    engine, optimizer = begun()
    duplicate = copy.deepcopy(engine.model)
    F.cross_entropy(duplicate(X), Y).backward()
    duplicate(X)
    finish(engine, optimizer)


def test_a_refused_model_stays_as_it_was():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.PReLU())
    with pytest.raises(UserError, match="no rule"):
        made(model)
    assert not model._forward_pre_hooks
    model(X)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 20.0}, "batch_size=20.0: expected a whole number ≥ 1"),
        ({"epochs": True}, "epochs=True: expected a whole number ≥ 1"),
        ({"sample_size": 0}, "sample_size=0: expected a whole number ≥ 1"),
        ({"clipping": "none"}, "clipping='none': expected flat or per_layer or automatic"),
        ({"accountant": "moments"}, "accountant='moments': expected "),
        ({"seed": -1}, "seed=-1: expected a whole number ≥ 0, or None"),
        ({"max_grad_norm": "1"}, "max_grad_norm='1': expected a number"),
        ({"max_grad_norm": 1e300}, "max_grad_norm=1e+300: expected at most 1e+20"),
        ({"noise_multiplier": True}, "noise_multiplier=True: expected a number"),
        ({"noise_multiplier": None, "target_epsilon": "3"}, "target_epsilon='3': expected a number"),
        ({"target_delta": 2}, "target_delta=2: expected a number between 0 and 1"),
    ],
)
def test_values_of_other_kinds(changes, message):
    with pytest.raises(ConfigError) as raised:
        made(network(), **changes)
    assert str(raised.value).startswith(message)


def test_a_model_without_trainable_parameters():
    with pytest.raises(UserError, match=r"^model: has no trainable parameters"):
        made(network().requires_grad_(False))
    with pytest.raises(ConfigError, match=r"^model=None: expected a torch\.nn\.Module$"):
        made(None)  # pyright: ignore


def test_a_step_without_losses():
    engine, optimizer = begun()
    rows, _ = next(engine.batches())
    losses_of(engine.model, rows)
    for wrong in ({}, {"loss": [1.0]}):
        with pytest.raises(UserError, match=r"^optimizer\.step: expected the losses of the piece, one an example"):
            optimizer.step(**wrong)
