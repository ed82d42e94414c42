"""The bound holds whatever precision a model computes in: autocast, TensorFloat-32, bfloat16 products, half-precision inputs."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import ENGINES, ClippedSum, check_by_example, linear, linear_engine, per_example_gradients, rules
from scatterdp.engines.precision import RunningSums, full_precision, sum_of_products
from scatterdp.engines.strategies import STRATEGIES
from scatterdp.errors import UserError

BACKENDS: Any = torch.backends
PRODUCTS = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv)
BOUND = 0.01


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.float(), labels, reduction="none")


def precisions() -> list[str]:
    return [product.fp32_precision for product in PRODUCTS]


@pytest.fixture
def coarse_products() -> Iterator[list[str]]:
    """The coarsest that a user can ask of torch."""
    before, allowed = precisions(), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    BACKENDS.mkldnn.conv.fp32_precision = "bf16"
    yield precisions()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = allowed
    for product, precision in zip(PRODUCTS, before, strict=True):
        product.fp32_precision = precision


def linear_network() -> nn.Module:
    model = nn.Linear(300, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(32, 2)
    )  # fmt: skip


CASES = [(engine, linear_network, (300,), 3000) for engine in ENGINES]
CASES += [(engine, convolutions, (2, 6, 6), 2000) for engine in ENGINES if engine not in ("linear", "loop")]
CASES += [("loop", convolutions, (2, 6, 6), 200)]


def largest_move(engine: str, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """How far some examples move the sum, in units of the bound."""
    whole = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=BOUND).gradients
    moves = []
    for left_out in (0, len(x) // 2) if engine != "loop" else (0,):
        kept = torch.arange(len(x)) != left_out
        rest = ENGINES[engine](model, cross_entropy, x[kept], y[kept], max_grad_norm=BOUND).gradients
        assert all(total.dtype == torch.float32 for total in rest.values())
        moves.append(sum((whole[name].double() - rest[name].double()).square().sum().item() for name in whole))
    return math.sqrt(max(moves)) / BOUND


def examples(shape: tuple[int, ...], count: int, *, alike: bool) -> tuple[Tensor, Tensor]:
    """Whose gradients all have one direction, one way or both ways."""
    source = torch.Generator().manual_seed(1)
    x = torch.rand(shape, generator=source) + 0.01 * torch.rand(count, *shape, generator=source)
    return x, torch.zeros(count, dtype=torch.int64) if alike else torch.randint(2, (count,), generator=source)


@pytest.mark.parametrize(("engine", "make", "shape", "count"), CASES)
# Float32 rounds a sum by about 6e-8 of itself: that of examples which all point one way is as many times the bound as they are.
@pytest.mark.parametrize(("alike", "rounding"), [(False, 1e-5), (True, 5e-4)])
def test_autocast_leaves_the_bound_alone(engine, make, shape, count, alike, rounding):
    model, (x, y) = make(), examples(shape, count, alike=alike)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x[:1]).dtype == torch.bfloat16
        assert 0.9 < largest_move(engine, model, x, y) <= 1 + rounding


@pytest.mark.parametrize(("engine", "make", "shape", "count"), CASES)
def test_coarse_products_leave_the_bound_alone(engine, make, shape, count, coarse_products):
    model, (x, y) = make(), examples(shape, count, alike=False)
    assert 0.9 < largest_move(engine, model, x, y) <= 1 + 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision_inputs_keep_the_bound(engine, dtype):
    model, (x, y) = linear_network(), examples((300,), 3000, alike=False)
    with torch.autocast("cpu", dtype=dtype):
        result = ENGINES[engine](model, cross_entropy, x[:1].to(dtype), y[:1], max_grad_norm=BOUND)
        assert largest_move(engine, model, x.to(dtype), y) <= 1 + 1e-5
    assert result.norms.dtype == torch.float32
    length = math.sqrt(sum(total.double().square().sum().item() for total in result.gradients.values()))
    assert 0.9 * BOUND < length <= BOUND * (1 + 1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_per_example_gradients_are_in_single_precision(strategy):
    x, y = examples((2, 6, 6), 5, alike=False)
    expected = per_example_gradients(convolutions(), cross_entropy, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = per_example_gradients(convolutions(), cross_entropy, x, y, strategy=strategy)
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0.03 * expected[name].abs().max().item())


# ---------------------------------------------------------------- the switch


@pytest.mark.parametrize("engine", ENGINES)
def test_norms_and_sums_are_made_in_full_precision_and_all_is_put_back(engine, monkeypatch, coarse_products):
    seen = []

    def watched(function):
        def call(*args, **kwargs):
            seen.append((function.__name__, precisions(), torch.is_autocast_enabled("cpu")))
            return function(*args, **kwargs)

        return call

    for name in ("squared_norms", "clipped_sum"):
        monkeypatch.setattr(rules.Rule, name, watched(getattr(rules.Rule, name)))
    monkeypatch.setattr(linear, "_clipped_sum", watched(linear._clipped_sum))
    model, (x, y) = linear_network(), examples((300,), 20, alike=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=1.0)
        assert torch.is_autocast_enabled("cpu")
    names = ["_clipped_sum"] if engine == "linear" else ["squared_norms", "clipped_sum"]
    assert seen == [(name, ["ieee"] * 4, False) for name in names]
    assert precisions() == coarse_products == ["tf32", "tf32", "bf16", "bf16"]
    assert torch.get_float32_matmul_precision() == "medium"  # torch refuses to tell once old and new settings disagree
    assert torch.backends.cudnn.allow_tf32


def test_all_is_put_back_after_an_error(coarse_products):
    with pytest.raises(ValueError, match="max_grad_norm=-1"):
        ENGINES["ghost"](
            linear_network(), cross_entropy, torch.ones(1, 300), torch.zeros(1, dtype=torch.int64), max_grad_norm=-1.0
        )
    assert precisions() == coarse_products


def test_a_thread_that_ends_leaves_the_others_in_full_precision(coarse_products):
    begun, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with full_precision(torch.device("cpu")):
            begun.set()
            may_end.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(10)
    with full_precision(torch.device("cpu")):
        may_end.set()
        thread.join()  # the first to come goes first
        assert precisions() == ["ieee"] * 4
    assert precisions() == coarse_products


@pytest.mark.parametrize("make", [convolutions, lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 4))])
def test_coarse_products_make_nobody_suspect_a_model(make, coarse_products):
    x, _ = examples((2, 6, 6), 2, alike=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_by_example(make(), x)


# ---------------------------------------------------------------- half-precision parameters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_of_half_precision_are_refused(engine, dtype):
    message = (
        rf"^module 'Linear' \(Linear\): its weight is {dtype}, and sums over examples in it would exceed the bound; keep trainable "
        r"parameters in float32 \(\.float\(\)\) and compute in half precision by torch\.autocast$"
    )
    x, y = examples((300,), 3, alike=True)
    with pytest.raises(UserError, match=message):
        ENGINES[engine](linear_network().to(dtype), cross_entropy, x.to(dtype), y, max_grad_norm=1.0)


@pytest.mark.parametrize("engine", sorted(ENGINES.keys() - {"linear"}))
def test_frozen_parameters_may_be_of_half_precision(engine):
    frozen = nn.Linear(300, 8).bfloat16().requires_grad_(False)

    class Upwards(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    model = nn.Sequential(frozen, Upwards(), nn.Linear(8, 2))
    x, y = examples((300,), 3, alike=True)
    result = ENGINES[engine](model, cross_entropy, x.bfloat16(), y, max_grad_norm=1.0)
    assert {name: total.dtype for name, total in result.gradients.items()} == {
        "2.weight": torch.float32,
        "2.bias": torch.float32,
    }


def test_a_sum_of_half_precision_is_no_answer():
    with pytest.raises(TypeError, match=r"^weight: a sum in torch\.bfloat16"):
        ClippedSum({"weight": torch.zeros(2, dtype=torch.bfloat16)}, torch.zeros(2))
    answer = linear_engine(linear_network().double(), cross_entropy, torch.ones(1, 300).double(), torch.tensor([0]), max_grad_norm=1.0)  # fmt: skip
    assert answer.gradients["weight"].dtype == torch.float64


# ---------------------------------------------------------------- many numbers


@pytest.mark.parametrize("layout", ["one after the other", "strided"])
def test_norms_of_millions_of_numbers(layout):
    """Single precision adds up ten million equal squares to a hundredth too little."""
    rows = torch.full((2, 10_000_000), 3.0) if layout == "one after the other" else torch.full((10_000_000, 2), 3.0).t()
    squares = rules.squared_norms_of({"weight": rows, "bias": torch.full((2, 5000), 3.0)})
    assert squares.dtype == torch.float64
    torch.testing.assert_close(squares, torch.full((2,), 9.0 * 10_005_000, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_bound_of_a_large_layer(engine):
    layer = nn.Linear(2000, 2000, bias=False)
    clipped = ENGINES[engine](
        layer, lambda o, y: 3 * o.sum(1), torch.full((1, 2000), 3.0), torch.zeros(1), max_grad_norm=BOUND
    )
    assert clipped.gradients["weight"].double().norm().item() == pytest.approx(BOUND, rel=1e-6)


def test_the_bound_of_a_large_convolution():
    layer = nn.Conv2d(512, 512, 3, padding=1, bias=False)
    x = torch.full((1, 512, 48, 48), 3.0)
    clipped = ENGINES["mixed_ghost"](layer, lambda o, y: o.flatten(1).sum(1), x, torch.zeros(1), max_grad_norm=BOUND)
    assert clipped.gradients["weight"].double().norm().item() == pytest.approx(BOUND, rel=1e-6)


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost", "linear"])
@pytest.mark.parametrize(("length", "gradient"), [(1e-162, 1e154), (1e154, 1e-162), (1e-200, 1e192)])
def test_squares_of_double_precision_do_not_vanish(engine, length, gradient):
    model = nn.Linear(2, 1, bias=False).double()
    x, y = torch.tensor([[length, 0.0]], dtype=torch.float64), torch.tensor([[gradient]], dtype=torch.float64)
    found = ENGINES[engine](model, lambda o, y: (o * y).sum(1), x, y, max_grad_norm=1e-9)
    assert found.norms.item() == pytest.approx(1e-8)
    assert found.gradients["weight"].norm().item() <= 1.0001e-9


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost"])
def test_squares_of_series_in_double_precision_do_not_vanish(engine):
    model = nn.Linear(2, 1, bias=False).double()
    x, y = torch.zeros(1, 3, 2, dtype=torch.float64), torch.zeros(1, 3, 1, dtype=torch.float64)
    x[0, 1, 0], y[0, 1, 0] = 1e-162, 1e154
    found = ENGINES[engine](model, lambda o, y: (o * y).sum((1, 2)), x, y, max_grad_norm=1e-9)
    assert found.gradients["weight"].norm().item() == pytest.approx(1e-9)


def test_running_sums_round_once():
    sums, small = RunningSums(), torch.tensor([2.0**-26])
    first = torch.tensor([1.0])
    for value in (first, *[small] * 39):
        sums.add({"a": value})
    assert sums.rounded()["a"].dtype == torch.float32
    assert sums.rounded()["a"].item() == torch.tensor(1 + 39 * 2.0**-26).item() > 1
    assert first.item() == 1


def test_a_running_sum_of_one_is_that_one():
    sums, value = RunningSums(), torch.randn(3, dtype=torch.float64)
    sums.add({"a": value})
    assert sums.rounded()["a"] is value
    sums.add({"a": value})
    assert torch.equal(sums.rounded()["a"], 2 * value)
    assert sums.exact()["a"].dtype == torch.float64


# ---------------------------------------------------------------- many rows


def around_a_power_of_two(exponent: int, small: int) -> tuple[Tensor, int]:
    """Gradients of 1, one more of which doubles the last place of their sum in single precision, then small ones of half of that; and the row of the one."""
    ones = 2**exponent
    return torch.cat([torch.ones(ones), torch.full((small,), 1.001 * 2.0 ** (exponent - 24))]), ones - 1


@pytest.mark.parametrize(
    ("engine", "layer"),
    [(engine, nn.Linear(1, 1, bias=False)) for engine in ("linear", "vmap", "crb", "ghost", "mixed_ghost")]
    + [(engine, nn.LayerNorm(1)) for engine in ("vmap", "crb", "ghost", "mixed_ghost")],
)
def test_no_example_decides_whether_small_ones_count(engine, layer):
    rows, chosen = around_a_power_of_two(12, 4000)
    kept = torch.arange(len(rows)) != chosen
    inputs = torch.ones(len(rows), 1) if isinstance(layer, nn.Linear) else torch.zeros(len(rows), 1)

    def total(of: Tensor) -> Tensor:
        clipped = ENGINES[engine](layer, lambda o, y: o[:, 0] * y, inputs[of], rows[of], max_grad_norm=1.0)
        return torch.cat([value.flatten().double() for value in clipped.gradients.values()])

    assert (total(kept | True) - total(kept)).norm() <= 1.001
    one_after_the_other = rows.numpy().cumsum(dtype="float32")[-1] - rows[kept].numpy().cumsum(dtype="float32")[-1]
    assert one_after_the_other > 1.9  # what a single sum may come to


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost"])
def test_no_image_decides_whether_small_ones_count(engine):
    rows, chosen = around_a_power_of_two(12, 4000)
    kept = torch.arange(len(rows)) != chosen
    layer, x = nn.Conv2d(4, 4, 3, padding=1, bias=False), torch.zeros(len(rows), 4, 1, 1)
    x[:, 0] = 1

    def total(of: Tensor) -> Tensor:
        clipped = ENGINES[engine](layer, lambda o, y: o[:, 0, 0, 0] * y, x[of], rows[of], max_grad_norm=1.0)
        return clipped.gradients["weight"].double()

    assert 0.9 < (total(kept | True) - total(kept)).norm() <= 1.001


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(4, 4, bias=False), (256, 4)), (nn.Conv2d(4, 4, 3, padding=1, bias=False), (16, 16, 4))],
    ids=["series", "images"],
)
def test_no_example_decides_whether_small_positions_count(layer, shape):
    rows, chosen = around_a_power_of_two(8, 252)
    x, y = torch.zeros(len(rows), 256, 4), torch.zeros(len(rows), 256, 4)
    large = rows == 1
    x[large, 0, 0], x[~large, :, 0] = 1, 1
    y[large, 0, 0], y[~large, :, 0] = 1, rows[-1]
    x, y = (values.view(-1, *shape) for values in (x, y))
    if len(shape) == 3:
        x, y = x.movedim(3, 1), y.movedim(3, 1)
    kept = torch.arange(len(rows)) != chosen

    def total(of: Tensor) -> Tensor:
        clipped = ENGINES["ghost"](layer, lambda o, y: (o * y).flatten(1).sum(1), x[of], y[of], max_grad_norm=1.00001)
        return clipped.gradients["weight"].double()

    assert 0.9 < (total(kept | True) - total(kept)).norm() <= 1.002


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 1000])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_sums_of_products(rows, shape):
    left, right = torch.randn(rows, *shape), torch.randn(rows, 5)
    torch.testing.assert_close(sum_of_products(left, right), (left.double().t() @ right.double()).float())
