"""Models that mix examples are found out on made-up rows, however they are called; honest ones are left in peace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import check_by_example, without_batch_norm
from scatterdp.engines.apart import ROWS, made_up
from scatterdp.errors import UserError

ROWS_OF_12 = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MIXES = r"^model: what it gives examples together is not what it gives them alone \(seen at "


class Then(nn.Module):
    """A linear layer and what comes then."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.then = nn.Linear(12, 4), then

    def forward(self, x: Tensor) -> Any:
        return self.then(self.linear(x))


MIXING: dict[str, Callable[[Tensor], Any]] = {
    "a mean taken off outputs": lambda o: o - o.mean(0),
    "a mean that no gradient passes": lambda o: o - o.mean(0).detach(),
    "a mean before an odd activation": lambda o: torch.tanh(o - o.mean(0)),
    "a scale of the batch": lambda o: o / o.detach().norm(),
    "another row beside": lambda o: o + o.roll(2, 0),
    "rows in another order": lambda o: o.flip(0),
    "in one of several outputs": lambda o: (o, {"second": o.cumsum(0)}),
    "a ten-millionth of a mean": lambda o: o + 1e-7 * o.mean(0),
    "a millionth of a mean of bounded numbers": lambda o: torch.tanh(o) + 1e-6 * torch.tanh(o).mean(0),
    "a millionth of the largest, bounded, that no gradient passes": lambda o: o + 1e-6 * torch.tanh(o.detach()).amax(0),
    "a hundredth of the largest, that no gradient passes": lambda o: torch.tanh(o + 0.01 * o.detach().amax(0)),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_found(name):
    with pytest.raises(UserError, match=MIXES):
        check_by_example(Then(MIXING[name]), ROWS_OF_12)


@pytest.mark.parametrize("deviation", [1e-2, 1e-5, 1e-9])
def test_mixing_is_found_where_outputs_begin_small(deviation):
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), Then(lambda o: o - o.mean(0).detach()))
    model[2].linear = nn.Linear(16, 4, bias=False)
    nn.init.normal_(model[2].linear.weight, std=deviation)
    with pytest.raises(UserError, match=MIXES):
        check_by_example(model, ROWS_OF_12)


def test_a_model_that_computes_partly_in_single_precision_may_round():
    for then in (lambda o: o.float().softmax(1).to(o.dtype), lambda o: F.layer_norm(o.float(), (4,)).to(o.dtype)):
        check_by_example(Then(then), ROWS_OF_12)
    with pytest.raises(UserError, match=MIXES):
        check_by_example(Then(lambda o: o.float().softmax(0).to(o.dtype)), ROWS_OF_12)


def test_infinite_outputs_are_the_same_together_and_alone():
    def masked(o: Tensor) -> Tensor:
        return (o + torch.tensor([0.0, 0.0, 0.0, -torch.inf])).softmax(1)

    check_by_example(Then(masked), ROWS_OF_12)


class DropPath(nn.Module):
    """What is inside goes missing, by chance."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x) * (float(torch.rand(()) < 0.5) if self.training else 1)


def test_what_a_dropped_branch_holds_stays_as_it_is():
    model = nn.Sequential(DropPath(nn.BatchNorm1d(12).eval()), nn.Linear(12, 3))
    model.lock = threading.Lock()  # pyright: ignore  # so that the model itself is tried
    check_by_example(model, ROWS_OF_12)
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_what_mixes_inside_a_dropped_branch_is_found():
    class Centres(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0) if self.training else x

    with pytest.raises(UserError, match=MIXES):
        check_by_example(nn.Sequential(DropPath(Centres()), nn.Linear(12, 3)), ROWS_OF_12)


def test_a_model_that_keeps_its_activations_is_copied_all_the_same():
    class Keeps(Then):
        def forward(self, x: Tensor) -> Any:
            self.kept = [self.linear(x)]
            return self.then(self.kept[0])

    for then in (torch.tanh, lambda o: o - 1e-7 * o.mean(0)):
        model = Keeps(then)
        model(ROWS_OF_12)
        if then is torch.tanh:
            check_by_example(model, ROWS_OF_12)
        else:
            with pytest.raises(UserError, match=MIXES):
                check_by_example(model, ROWS_OF_12)
        assert model.linear.weight.dtype == torch.float32


def test_a_model_that_cannot_be_copied_stays_as_it_is():
    for then, mixes in ((torch.tanh, False), (lambda o: o - o.mean(0), True)):
        model = Then(then)
        model.lock = threading.Lock()  # pyright: ignore
        if mixes:
            with pytest.raises(UserError, match=MIXES):
                check_by_example(model, ROWS_OF_12)
        else:
            check_by_example(model, ROWS_OF_12)
        assert model.linear.weight.dtype == torch.float32


def test_a_tensor_that_all_examples_share_may_come_first():
    class Shared(nn.Module):
        def __init__(self, mixes: bool) -> None:
            super().__init__()
            self.linear, self.mixes = nn.Linear(12, 3), mixes

        def forward(self, scale: Tensor, x: Tensor) -> Tensor:
            return self.linear(scale * (x - x.mean(0) if self.mixes else x))

    check_by_example(Shared(mixes=False), torch.rand(12), ROWS_OF_12)
    with pytest.raises(UserError, match=MIXES):
        check_by_example(Shared(mixes=True), torch.rand(12), ROWS_OF_12)


class BehindZeros(nn.Module):
    """Two layers that are zero at first, as residual branches often are."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.branch, self.last, self.mixes = (
            nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12)),
            nn.Linear(12, 3),
            mixes,
        )
        for parameter in self.branch.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.branch(x - x.mean(0) if self.mixes else x))


def test_mixing_behind_weights_that_are_zero():
    check_by_example(BehindZeros(mixes=False), ROWS_OF_12)
    with pytest.raises(UserError, match=MIXES):
        check_by_example(BehindZeros(mixes=True), ROWS_OF_12)


def test_a_model_that_writes_to_itself_at_its_first_pass():
    class Begins(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.full((12,), torch.nan))
            self.linear = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            if self.mean.isnan().any():
                self.mean.copy_(x.mean(0).detach())
            return self.linear(x - self.mean)

    model = Begins()
    with pytest.raises(UserError, match=r"^mean: the model's forward pass changes it"):
        check_by_example(model, ROWS_OF_12)
    assert model.get_buffer("mean").isnan().all()


def test_a_model_that_takes_no_example_alone():
    with pytest.raises(UserError, match=r"^model: cannot compute one example alone \(Expected more than 1 value"):
        check_by_example(Then(lambda o: F.batch_norm(o, None, None, training=True)), ROWS_OF_12)


def test_answers_whose_first_axis_is_not_the_examples():
    with pytest.raises(UserError, match=rf"^model: answers 4 rows for {ROWS} examples, where rows"):
        check_by_example(Then(lambda o: o.t()), ROWS_OF_12)


def test_a_model_that_takes_no_made_up_rows():
    def at_least_six(o: Tensor) -> Tensor:
        if len(o) < 6:
            raise ValueError("too few")
        return o

    with pytest.raises(UserError, match=r"^model: fails on 5 made-up rows of the shapes .*\(too few\)"):
        check_by_example(Then(at_least_six), ROWS_OF_12)


def test_dropout_by_a_function_is_refused_in_words_that_say_so():
    with pytest.raises(UserError, match=r"draws at random otherwise than by nn\.Dropout"):
        check_by_example(Then(lambda o: F.dropout(o, 0.5)), ROWS_OF_12)


@pytest.mark.parametrize(
    "then", [torch.tanh, lambda o: o / o.norm(dim=1, keepdim=True), lambda o: o.sum(1), lambda o: (o, [o.square(), 3])]
)
def test_what_keeps_rows_apart_passes(then):
    check_by_example(Then(then), ROWS_OF_12)


@pytest.mark.parametrize(
    "normalisation",
    [nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(4, 4), without_batch_norm(nn.BatchNorm2d(4))],
    ids=repr,
)
@pytest.mark.parametrize("seed", range(5))
def test_a_bias_whose_gradient_is_rounding_alone_makes_nobody_suspect(normalisation, seed):
    torch.manual_seed(seed)
    check_by_example(nn.Sequential(nn.Conv2d(3, 4, 3), normalisation, nn.ReLU(), nn.Conv2d(4, 2, 6)), IMAGES)


def test_a_model_that_cannot_be_in_double_precision_is_tried_as_it_is():
    class InSingle(Then):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.float())

    check_by_example(InSingle(torch.tanh), ROWS_OF_12)
    with pytest.raises(UserError, match=MIXES):
        check_by_example(InSingle(lambda o: o - o.mean(0)), ROWS_OF_12)


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Linear(12, 4), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    check_by_example(model, ROWS_OF_12)
    assert model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model(ROWS_OF_12).dtype == torch.float32
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.set_rng_state(generator)


@pytest.mark.parametrize("answer", [lambda o: o.sum(), lambda o: None, lambda o: o.argmax(1)])
def test_answers_that_are_no_rows_of_numbers(answer):
    with pytest.raises(UserError, match=r"^model: answers .*, where rows of outputs were expected, one an example"):
        check_by_example(Then(answer), ROWS_OF_12)


class Tokens(nn.Module):
    """Pools tokens under a mask; ``over`` is the axis."""

    def __init__(self, over: int) -> None:
        super().__init__()
        self.tokens, self.places, self.last, self.over = nn.Embedding(50, 8), nn.Embedding(7, 8), nn.Linear(8, 3), over

    def forward(self, tokens: Tensor, *, mask: Tensor, scale: float) -> Tensor:
        h = self.tokens(tokens) + self.places(tokens % 7)
        return self.last((scale * h * mask[..., None]).softmax(self.over).sum(1))


def test_whole_numbers_and_names_are_made_up_too():
    tokens, mask = torch.full((9, 6), 49), torch.ones(9, 6, dtype=torch.bool)
    model = Tokens(over=1)
    inputs, named = made_up(model, ((tokens,), {"mask": mask, "scale": 2.0}), 9)
    assert inputs[0].shape == named["mask"].shape == (ROWS, 6)
    assert inputs[0].max() < 7  # what the smallest embedding has
    assert len(inputs[0].unique()) > 3
    assert named["scale"] == 2.0
    check_by_example(model, *inputs, **named)
    with pytest.raises(UserError, match=MIXES):
        check_by_example(Tokens(over=0), *inputs, **named)


def test_nothing_made_up_depends_on_the_values():
    model = Tokens(over=1)
    first, second = (made_up(model, (torch.full((9, 6), fill), torch.full((9,), 0.1 * fill)), 9) for fill in (1, 40))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
