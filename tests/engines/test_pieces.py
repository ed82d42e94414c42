"""Clipping a batch in pieces gives the batch's answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.benchmarking.contenders import CONTENDERS
from scatterdp.benchmarking.networks import make_batch, make_network
from scatterdp.engines import ENGINES, loop_engine, pieces
from scatterdp.engines.bookkeeping import Recorder
from scatterdp.engines.pieces import examples_of_piece, numbers_of_row
from scatterdp.errors import UserError

BOOK_KEEPING = ("ghost", "mixed_ghost")


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def network(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), *extra, nn.Conv2d(4, 30, 3), nn.Flatten(), nn.Linear(120, 3)
    )


@pytest.fixture
def rows_at_once(monkeypatch) -> list[int]:
    """The sizes of the backward passes; pieces are of few examples."""
    monkeypatch.setattr(pieces, "_NUMBERS", 1)
    monkeypatch.setattr(pieces, "_FEWEST", 4)
    seen: list[int] = []
    rules = Recorder.rules

    def noted(recorder: Recorder, losses: Tensor, **options):
        seen.append(len(losses))
        return rules(recorder, losses, **options)

    monkeypatch.setattr(Recorder, "rules", noted)
    return seen


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize(("copies", "expected"), [(1, [4, 4, 3]), (3, [6, 6, 6, 6, 6, 3])])
@pytest.mark.parametrize("engine", BOOK_KEEPING)
def test_a_batch_in_pieces_is_clipped_as_one(engine, copies, expected, clipping, rows_at_once):
    model, y = network(), (torch.arange(11) % 3).repeat_interleave(copies)
    x = torch.randn(11 * copies, 2, 6, 6)
    x[5 * copies, 0, 0, 0] = math.nan
    theirs = loop_engine(model, cross_entropy, x, y, max_grad_norm=1.0, clipping=clipping, copies=copies)
    ours = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=1.0, clipping=clipping, copies=copies)
    assert rows_at_once == expected
    torch.testing.assert_close(ours.norms, theirs.norms, atol=1e-5, rtol=1e-5, equal_nan=True)
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, atol=1e-5, rtol=1e-5)


def test_small_batches_are_left_whole(rows_at_once):
    model, x, y = network(), torch.randn(5, 2, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    ENGINES["mixed_ghost"](model, cross_entropy, x[:4], y[:4], max_grad_norm=1.0)
    assert rows_at_once == [4]


def test_pieces_go_by_the_activations():
    model, x = network(), torch.randn(90, 2, 6, 6)
    assert numbers_of_row(model, x) == 3 * 4 * 16 + 2 * 120 + 3 + 1
    assert examples_of_piece(model, x, 1) == 90
    large = torch.randn(90, 2, 300, 300)  # a million: as few as pay
    assert examples_of_piece(model[:-2], large, 1) == 30
    assert examples_of_piece(model[:-2], large, 3) == 10


def test_looking_at_one_row_draws_no_random_numbers_and_leaves_no_hooks():
    model, x = network(nn.Dropout(0.5)), torch.randn(90, 2, 6, 6)
    before = torch.get_rng_state()
    numbers_of_row(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("engine", BOOK_KEEPING)
def test_nothing_passes_through_a_model_that_cannot_be_private(engine):
    norm = nn.BatchNorm2d(2)
    with pytest.raises(UserError, match="batch normalisation mixes examples"):
        ENGINES[engine](norm, cross_entropy, torch.randn(99, 2, 3, 3), torch.zeros(99), max_grad_norm=1.0)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(("name", "examples"), [("cnn", 64), ("cnn", 100), ("scatternet_cnn", 256)])
def test_the_most_memory_is_no_more_than_that_of_an_ordinary_gradient(most_bytes, name, examples):
    model, batch = make_network(name, torch.device("cpu")), make_batch(name, examples, torch.device("cpu"))
    ours, ordinary = (
        most_bytes(CONTENDERS[contender].prepare(model, *batch, 1.0)) for contender in ("mixed_ghost", "non_private")
    )
    assert ours < 1.15 * ordinary


class LearnsFromItsFirstBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.done = nn.Linear(20, 3), False
        self.register_buffer("mean", torch.zeros(20))

    def forward(self, x):
        if not self.done:
            self.get_buffer("mean").copy_(x.mean(0))
            self.done = True
        return self.layer(x - self.get_buffer("mean"))


@pytest.mark.parametrize("rows", [32, 33])
def test_a_model_that_keeps_what_it_sees_is_refused_and_a_large_batch_is_not_shown_to_it(rows):
    model, x = LearnsFromItsFirstBatch(), torch.randn(rows, 20)
    with pytest.raises(UserError, match="mean: the model's forward pass changes it"):
        ENGINES["mixed_ghost"](model, cross_entropy, x, torch.zeros(rows, dtype=torch.int64), max_grad_norm=1.0)
    if rows == 33:
        assert not model.get_buffer("mean").any()


class Hooks(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(20, 30), nn.Linear(30, 3)

    def forward(self, x):
        h = self.layer(x)
        h.register_hook(lambda gradient: gradient)
        return self.last(h)


def test_forward_passes_that_need_gradients_are_measured_too():
    x, y = torch.randn(40, 20), torch.arange(40) % 3
    model = Hooks()
    expected = ENGINES["loop"](model, cross_entropy, x, y, max_grad_norm=1.0)
    ours = ENGINES["mixed_ghost"](model, cross_entropy, x, y, max_grad_norm=1.0)
    torch.testing.assert_close(ours.norms, expected.norms, rtol=1e-5, atol=1e-7)
