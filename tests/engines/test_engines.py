"""Every engine and every kind of layer against one example at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.engines import (
    ENGINES,
    bookkeeping,
    check_by_example,
    check_private,
    decisions,
    loop_engine,
    per_example_gradients,
    rules,
    without_batch_norm,
)
from scatterdp.engines.rules import ConvolutionRule
from scatterdp.engines.strategies import STRATEGIES
from scatterdp.errors import UserError
from scatterdp.heads.normalizers import Precondition
from scatterdp.heads.preconditioned_linear import PreconditionedLinear

CLIPPINGS = ("flat", "per_layer", "automatic")
GENERAL = sorted(ENGINES.keys() - {"linear", "loop"})  # all that serve any of the layers below


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(1), labels, reduction="none")


def frozen(model: nn.Module, *names: str) -> nn.Module:
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def used_batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(20, 3, 4, 4))
    return norm.eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.norm(self.first(x))))


def preconditioned() -> PreconditionedLinear:
    """Two directions shortened much, one made longer."""
    layer = PreconditionedLinear(7, 4, directions=3)
    directions, _ = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(3)))
    layer.precondition = Precondition(directions, torch.tensor([0.01, 0.2, 1.5]), 0.7)
    return layer


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (5,)),
    "linear without bias": (nn.Linear(5, 4, bias=False), (5,)),
    "linear of a sequence": (nn.Linear(5, 4), (7, 5)),
    "linear of a grid": (nn.Linear(5, 2), (3, 2, 5)),
    "preconditioned linear": (preconditioned(), (7,)),
    "conv1d": (nn.Conv1d(3, 4, 3), (3, 9)),
    "conv1d with everything": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 11)),
    "conv2d": (nn.Conv2d(3, 4, 3), (3, 6, 7)),
    "conv2d without bias": (nn.Conv2d(3, 4, 3, bias=False), (3, 6, 7)),
    "conv2d with a stride that leaves a rest": (nn.Conv2d(2, 3, 3, stride=3), (2, 8, 10)),
    "conv2d padded": (nn.Conv2d(2, 3, (3, 5), padding=(1, 2)), (2, 5, 6)),
    "conv2d same": (nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 5, 6)),
    "conv2d circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 6)),
    "conv2d dilated": (nn.Conv2d(2, 3, 3, dilation=(2, 1)), (2, 7, 6)),
    "conv2d dilated, of many channels": (nn.Conv2d(16, 3, 3, dilation=(2, 3), padding=1), (16, 9, 8)),
    "conv2d in groups": (nn.Conv2d(6, 4, 3, groups=2, stride=2, padding=1), (6, 6, 5)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 5, 5)),
    "conv2d of one pixel": (nn.Conv2d(3, 4, 1), (3, 1, 1)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), (2, 3, 4, 3)),
    "conv3d in groups": (nn.Conv3d(4, 4, 2, groups=2, dilation=2), (4, 4, 3, 4)),
    "layer norm": (nn.LayerNorm(6), (6,)),
    "layer norm of a sequence": (nn.LayerNorm(6), (5, 6)),
    "layer norm of two axes": (nn.LayerNorm([4, 3]), (5, 4, 3)),
    "group norm": (nn.GroupNorm(2, 6), (6, 4, 3)),
    "group norm without positions": (nn.GroupNorm(2, 6), (6,)),
    "instance norm": (nn.InstanceNorm2d(3, affine=True), (3, 4, 5)),
    "instance norm 1d": (nn.InstanceNorm1d(3, affine=True), (3, 8)),
    "instance norm 3d": (nn.InstanceNorm3d(2, affine=True), (2, 3, 4, 3)),
    "layer norm with room": (nn.LayerNorm(6, eps=0.5), (6,)),
    "group norm with room": (nn.GroupNorm(2, 6, eps=0.5), (6, 4, 3)),
    "instance norm with room": (nn.InstanceNorm2d(3, eps=0.5, affine=True), (3, 4, 5)),
    "frozen weight": (frozen(nn.Conv2d(3, 4, 3), "weight"), (3, 5, 5)),
    "frozen bias": (frozen(nn.Linear(5, 4), "bias"), (7, 5)),
    "a frozen layer": (frozen(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), "0.weight", "0.bias"), (5,)),
    "a network": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        (2, 4, 4),
    ),
    "residual": (nn.Sequential(Residual(), nn.ReLU(), Residual()), (4, 4, 4)),
}
EMBEDDINGS: dict[str, nn.Module] = {
    "embedding": nn.Embedding(9, 4),
    "embedding with padding": nn.Embedding(9, 4, padding_idx=2),
    "embedding of few": nn.Sequential(nn.Embedding(9, 2), nn.LayerNorm(2)),
}


def batch_of(name: str, examples: int = 5, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if name in EMBEDDINGS:
        model, x = EMBEDDINGS[name], torch.randint(0, 9, (examples, 6), generator=generator)
    else:
        model, shape = LAYERS[name]
        x = (
            torch.randn(examples, *shape, generator=generator)
            * torch.linspace(0.1, 3, max(1, examples)).view(-1, *[1] * len(shape))[:examples]
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        classes = model(x[:1]).flatten(1).shape[1] if examples else 3
    return model, x, torch.randint(0, classes, (examples,), generator=generator)


def assert_same(ours, theirs) -> None:
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(ours.gradients[name], gradient, atol=1e-5 * scale, rtol=1e-5)
    torch.testing.assert_close(ours.norms, theirs.norms, atol=1e-5, rtol=1e-5)


OPACUS_LACKS = ("conv2d circular", "embedding with padding", "preconditioned linear")


def pairs(engines) -> list[tuple[str, str]]:
    """Engines and the layers that they serve."""
    names = [*LAYERS, *EMBEDDINGS]
    return [(engine, name) for engine in engines for name in names if engine != "hooks" or name not in OPACUS_LACKS]


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize(("engine", "name"), pairs(GENERAL))
def test_each_engine_gives_the_loops_answer_for_each_layer(engine, name, clipping):
    model, x, y = batch_of(name)
    for bound in (0.3, 4.0):
        expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=bound, clipping=clipping)
        assert_same(ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=bound, clipping=clipping), expected)
    assert expected.norms.max() > 0.3  # something was clipped


@pytest.mark.parametrize(("engine", "name"), [pair for pair in pairs(GENERAL) if pair[1].startswith("conv2d")])
def test_images_with_their_channels_last_are_the_same_images(engine, name):
    model, x, y = batch_of(name)
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.3)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_same(ENGINES[engine](model, cross_entropy, last, y, max_grad_norm=0.3), expected)


@pytest.mark.parametrize("engine", ["vmap", "ghost", "mixed_ghost", "crb"])
def test_frozen_batch_norm_is_a_constant_map(engine):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), used_batch_norm(), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    x, y = torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0])
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.5)
    assert_same(ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.5), expected)


@pytest.mark.parametrize(("strategy", "name"), pairs(sorted(STRATEGIES.keys() - {"loop"})))
def test_per_example_gradients_are_the_loops(strategy, name):
    model, x, y = batch_of(name)
    expected = per_example_gradients(model, cross_entropy, x, y, strategy="loop")
    ours = per_example_gradients(model, cross_entropy, x, y, strategy=strategy)
    assert ours.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(ours[parameter], gradient, atol=1e-5, rtol=1e-4)
    # … and their sum is autograd's.
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = torch.autograd.grad(cross_entropy(model(x), y).sum(), list(parameters.values()))
    for parameter, gradient in zip(parameters, total, strict=True):
        torch.testing.assert_close(ours[parameter].sum(0), gradient, atol=1e-5, rtol=1e-4)


@st.composite
def networks(draw) -> tuple[nn.Module, tuple[int, ...]]:
    channels, side = draw(st.integers(1, 3)), draw(st.integers(5, 8))
    shape, layers = (channels, side, side), []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.sampled_from([1, channels]))
        outputs, kernel = 2 * groups * draw(st.integers(1, 3)), draw(st.integers(1, 3))
        stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
        # Dilated only where more than one place is left: normalisations refuse one.
        room = side + 2 * padding - 2 * (kernel - 1) - 1 >= stride
        dilation = draw(st.integers(1, 2)) if room else 1
        bias = draw(st.booleans())
        layers.append(
            nn.Conv2d(
                channels, outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias
            )
        )
        norm = draw(st.sampled_from([None, nn.GroupNorm(2, outputs), nn.InstanceNorm2d(outputs, affine=True)]))
        layers += [norm] if norm is not None else []
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.AvgPool2d(1)])))
        channels = outputs
        side = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[2]
        if side < 5:
            break
    layers += [nn.Flatten(), nn.LazyLinear(3)]
    model = nn.Sequential(*layers)
    model(torch.zeros(2, *shape) + torch.rand(2, *shape))
    return model, shape


@given(network=networks(), examples=st.integers(1, 4), bound=st.floats(0.01, 10), clipping=st.sampled_from(CLIPPINGS))
@settings(max_examples=40, deadline=None)
def test_random_networks(network, examples, bound, clipping):
    """In double precision: some of these networks are made so that single precision loses most digits in any engine."""
    model, shape = network[0].double(), network[1]
    x, y = torch.randn(examples, *shape, dtype=torch.float64), torch.arange(examples) % 3
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=bound, clipping=clipping)
    for engine in GENERAL:
        ours = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=bound, clipping=clipping)
        for name, gradient in expected.gradients.items():
            scale = max(1.0, gradient.abs().max().item())
            # Ghost norms are from above: by the single precision that the sum may be rounded to.
            torch.testing.assert_close(ours.gradients[name], gradient, atol=2e-5 * scale, rtol=1e-4)


# ---------------------------------------------------------------- sensitivity


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
def test_one_example_moves_the_sum_by_at_most_the_bound(engine, clipping):
    model, x, y = batch_of("a network", examples=8)
    for bound in (0.01, 1.0, 30.0):
        whole = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=bound, clipping=clipping).gradients
        moves = []
        for left in range(8):
            kept = torch.arange(8) != left
            without = ENGINES[engine](model, cross_entropy, x[kept], y[kept], max_grad_norm=bound, clipping=clipping)
            moves.append(math.sqrt(sum((whole[n] - g).square().sum().item() for n, g in without.gradients.items())))
        assert max(moves) <= bound * (1 + 1e-5)
        if bound == 0.01:
            assert max(moves) > 0.9 * bound  # the bound is not there for nothing


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_an_example_whose_gradient_is_not_finite_contributes_nothing(engine, clipping, bad):
    model, x, y = batch_of("a network", examples=4)
    kept = torch.tensor([0, 1, 3])
    expected = ENGINES[engine](model, cross_entropy, x[kept], y[kept], max_grad_norm=0.5, clipping=clipping)
    x = x.clone()
    x[2, 0, 1, 1] = bad
    result = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.5, clipping=clipping)
    moved = math.sqrt(sum((result.gradients[n] - g).square().sum().item() for n, g in expected.gradients.items()))
    assert moved <= 0.5 * (1 + 1e-5)
    if not math.isfinite(bad):
        assert not result.norms[2].isfinite()
        assert moved < 1e-6
    torch.testing.assert_close(result.norms[kept], expected.norms)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
@pytest.mark.parametrize(
    "name", ["a network", "conv2d in groups", "layer norm of two axes", "embedding", "linear of a sequence"]
)
def test_an_empty_batch_gives_zeros(engine, name, clipping):
    model, x, y = batch_of(name)
    result = ENGINES[engine](model, cross_entropy, x[:0], y[:0], max_grad_norm=1.0, clipping=clipping)
    assert {n: g.shape for n, g in result.gradients.items()} == {
        n: p.shape for n, p in model.named_parameters() if p.requires_grad
    }
    assert all((gradient == 0).all() for gradient in result.gradients.values())
    assert result.norms.shape == (0,)


@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
def test_an_unknown_clipping_function(engine):
    model, x, y = batch_of("linear")
    with pytest.raises(ValueError, match=r"^clipping='soft': expected one of flat, per_layer, automatic$"):
        ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=1.0, clipping="soft")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("engine", GENERAL)
def test_model_and_data_stay_as_they_are(engine):
    model, x, y = batch_of("a network")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = x.clone()
    ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, copy)
    assert all(p.grad is None for p in model.parameters())
    assert all(not module._forward_hooks and not module._backward_hooks for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
def test_batch_norm_is_refused_and_swapped(engine):
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()), nn.Flatten(), nn.Linear(96, 3)
    )
    x, y = torch.randn(3, 2, 6, 6), torch.tensor([0, 1, 2])
    with pytest.raises(UserError, match=r"^module '1\.0' \(BatchNorm2d\): batch normalisation mixes examples"):
        ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=1.0)
    fixed = without_batch_norm(model)
    assert isinstance(fixed.get_submodule("1.0"), nn.GroupNorm)
    assert isinstance(model.get_submodule("1.0"), nn.BatchNorm2d)
    expected = loop_engine(fixed, cross_entropy, x, y, max_grad_norm=1.0)
    assert_same(ENGINES[engine](fixed, cross_entropy, x, y, max_grad_norm=1.0), expected)


@pytest.mark.parametrize(
    ("norm", "groups"),
    [
        (nn.BatchNorm2d(64), 32),
        (nn.BatchNorm2d(32), 16),
        (nn.BatchNorm3d(7), 1),
        (nn.BatchNorm2d(6), 3),
        (nn.BatchNorm2d(1), 1),
        (nn.BatchNorm1d(32), 1),
        (nn.BatchNorm1d(64), 1),
    ],
)
def test_no_channel_is_normalised_by_itself(norm, groups):
    swapped = without_batch_norm(norm)
    assert isinstance(swapped, nn.GroupNorm)
    assert swapped.num_groups == groups


def test_a_swapped_network_still_sees_its_inputs():
    model = without_batch_norm(nn.Sequential(nn.Linear(5, 32), nn.BatchNorm1d(32), nn.Linear(32, 3)))
    outputs = model(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    assert outputs.std(0).min() > 1e-2


def test_what_was_frozen_stays_frozen_when_it_is_swapped():
    norm = frozen(nn.BatchNorm2d(4), "weight")
    swapped = without_batch_norm(nn.Sequential(nn.Conv2d(4, 4, 3), norm))
    assert {name: p.requires_grad for name, p in swapped.get_submodule("1").named_parameters()} == {
        "weight": False,
        "bias": True,
    }


def test_a_batch_norm_in_two_places_is_swapped_in_both():
    norm = nn.BatchNorm2d(4)
    swapped = without_batch_norm(nn.Sequential(nn.Conv2d(4, 4, 3), norm, nn.Conv2d(4, 4, 3), norm))
    assert [type(module) for module in swapped.children()] == [nn.Conv2d, nn.GroupNorm] * 2
    check_private(swapped)


def test_what_cannot_be_swapped():
    with pytest.raises(UserError, match="does not know its channels yet"):
        without_batch_norm(nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d()))
    with pytest.raises(ValueError, match="max_groups=0: expected a whole number ≥ 1"):
        without_batch_norm(nn.BatchNorm2d(4), max_groups=0)


def test_hooks_serve_a_model_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 4)).eval()
    x, y = torch.randn(3, 5), torch.tensor([0, 1, 2])
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.1)
    assert_same(ENGINES["hooks"](model, cross_entropy, x, y, max_grad_norm=0.1), expected)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_losses_that_are_not_one_an_example(strategy):
    x, y = torch.randn(3, 5), torch.tensor([0, 1, 2])
    with pytest.raises(
        UserError, match=r"^loss of shape \(\) for .* expected one number an example, reduction=\"none\"$"
    ):
        per_example_gradients(nn.Linear(5, 4), F.cross_entropy, x, y, strategy=strategy)
    with pytest.raises(ValueError, match="copies=2: does not divide the 3 rows"):
        per_example_gradients(nn.Linear(5, 4), cross_entropy, x, y, strategy=strategy, copies=2)


@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
def test_shared_parameters_are_refused(engine):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(UserError, match=r"^module '2' \(Linear\): its weight is the same tensor as 0\.weight"):
        ENGINES[engine](model, cross_entropy, torch.randn(2, 4), torch.tensor([0, 1]), max_grad_norm=1.0)


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost", "crb"])
def test_a_layer_used_twice_is_refused(engine):
    layer = nn.Linear(4, 4)
    model = nn.Sequential()
    model.add_module("layer", layer)
    model.forward = lambda x: layer(torch.tanh(layer(x)))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(
        UserError, match=r"^module 'layer' \(Linear\): is used twice; take engine='vmap' \(PrivacyEngine has none\)$"
    ):
        ENGINES[engine](model, cross_entropy, torch.randn(2, 4), torch.tensor([0, 1]), max_grad_norm=1.0)


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost", "crb"])
def test_a_layer_without_a_rule_is_refused_by_name(engine):
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU())
    with pytest.raises(
        UserError,
        match=r"^module '1' \(PReLU\): no rule for per-example gradients of its weight .*take engine='vmap' \(PrivacyEngine has none\)",
    ):
        ENGINES[engine](model, cross_entropy, torch.randn(2, 4), torch.tensor([0, 1]), max_grad_norm=1.0)


def test_running_statistics_of_instance_norm_are_refused():
    with pytest.raises(UserError, match="keeps running statistics of private data"):
        check_private(nn.InstanceNorm2d(3, affine=True, track_running_stats=True))


def test_the_mixed_rule_goes_by_the_shapes():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Conv2d(8, 64, 2), nn.Flatten())
    table = decisions(model, cross_entropy, torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))
    # 2·T²: 2·256² against 8·27, and 2·1 against 64·32.
    assert [str(decision) for decision in table] == ["0 (Conv2d): per-example gradients", "3 (Conv2d): ghost norm"]


@pytest.mark.parametrize(("outputs", "ghost"), [(14, False), (15, True)])
def test_the_mixed_rule_counts_both_gram_matrices(outputs, ghost):
    # 2·6² = 72 against 5·14 = 70 and 5·15 = 75.
    layer = nn.Linear(5, outputs)
    (decision,) = decisions(layer, lambda o, _: o.square().sum((1, 2)), torch.randn(2, 6, 5), torch.zeros(2))
    assert decision.ghost == ghost


@pytest.mark.parametrize("name", OPACUS_LACKS)
def test_what_opacus_gets_wrong_is_refused(name):
    model, x, y = batch_of(name)
    with pytest.raises(
        UserError, match=r"Opacus (ignores its padding|serves no trainable layer with buffers); take another engine$"
    ):
        ENGINES["hooks"](model, cross_entropy, x, y, max_grad_norm=1.0)


@pytest.mark.parametrize(("features", "shortened"), [(40, 1e-3), (2000, 1e-2), (2000, 1e-6)])
def test_what_is_taken_from_inputs_is_not_in_the_rounding(features, shortened):
    """An example moves the sum by the bound at most, however long inputs were before A: the sum is of what norms were taken of."""
    layer = PreconditionedLinear(features, 10, directions=1)
    direction = torch.full((features, 1), features**-0.5)
    layer.precondition = Precondition(direction, torch.tensor([shortened]))
    for seed in range(4):
        length = 1e4 * (1 + torch.rand(1, 1, generator=torch.Generator().manual_seed(seed)))
        x, y = (length * direction.t()).expand(401, -1).contiguous(), torch.ones(401, dtype=torch.long)
        sums = [ENGINES["mixed_ghost"](layer, cross_entropy, x[i:], y[i:], max_grad_norm=1.0).gradients for i in (0, 1)]
        moved = torch.cat([(sums[0][name].double() - sums[1][name]).flatten() for name in sums[0]]).norm()
        assert 0.5 < moved <= 1 + 1e-4


def test_a_preconditioned_layer_takes_rows():
    with pytest.raises(ValueError, match=r"expected \(b, 7\)"):
        preconditioned()(torch.zeros(2, 3, 7))


@pytest.mark.parametrize("side", [32, 64])
def test_there_is_room_for_the_rounding_of_many_positions(side):
    """Output gradients that nearly cancel over thousands of positions: the sum rounds in proportion to what they were."""
    convolution, positions = nn.Conv2d(8, 8, 1, bias=False), side * side
    for left in (0.003, 0.012):
        signs = torch.where(torch.arange(positions) < positions // 2, 1.0, -1.0) + left**0.5
        gradient = (1.37 * signs).view(1, 1, side, side).expand(1, 8, -1, -1)
        x = torch.full((1, 8, side, side), 1.234)
        clipped = ENGINES["ghost"](
            convolution, lambda o, _, g=gradient: (o * g).flatten(1).sum(1), x, torch.zeros(1), max_grad_norm=1e-3
        )
        assert 0.9e-3 < clipped.gradients["weight"].double().norm() <= 1e-3 * (1 + 1e-6)


def test_the_mixed_engine_does_what_it_decides(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Conv2d(8, 64, 2), nn.Flatten())
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    expected = [decision.ghost for decision in decisions(model, cross_entropy, x, y)]
    done = []
    squared_norms = rules.ConvolutionRule.squared_norms

    def noted(rule: rules.ConvolutionRule, *, ghost: bool) -> Tensor:
        done.append(ghost)
        return squared_norms(rule, ghost=ghost)

    monkeypatch.setattr(rules.ConvolutionRule, "squared_norms", noted)
    ENGINES["mixed_ghost"](model, cross_entropy, x, y, max_grad_norm=1.0)
    ENGINES["ghost"](model, cross_entropy, x, y, max_grad_norm=1.0)
    assert done == [*reversed(expected), True, True]  # as the backward pass comes to them
    assert sorted(expected) == [False, True]


# ---------------------------------------------------------------- where products cancel


def cancelling() -> dict[str, tuple[nn.Module, Tensor]]:
    """Gradients that are small differences of large products: nearly constant inputs, output gradients that sum to nearly nothing."""
    torch.manual_seed(0)
    deep = nn.Sequential(
        nn.Conv2d(81, 64, 3), nn.GroupNorm(64, 64), nn.ReLU(), nn.Conv2d(64, 32, 3), nn.GroupNorm(32, 32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in deep.parameters():
            parameter.mul_(20)
    only_first = copy.deepcopy(deep)
    for parameter in list(only_first.parameters())[2:]:
        parameter.requires_grad_(False)
    flat = torch.rand(1, 81, 1, 1).expand(1, 81, 8, 8) + 1e-4 * torch.randn(1, 81, 8, 8)
    white = torch.zeros(1, 3, 16, 16)
    white[0, :, 7, 7] = 1.0
    normed = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)
    )
    difference = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(4, 4), nn.Flatten(), nn.Linear(256, 10))
    sequence = nn.Sequential(nn.Linear(20, 32), nn.LayerNorm(32), nn.Flatten(), nn.Linear(32 * 50, 10))
    return {
        "deep": (deep, flat),
        "only the first layer": (only_first, flat),
        "one white pixel": (normed, white + 5),
        "one pixel's kernel": (difference, torch.full((1, 3, 8, 8), 3.0) + 1e-5 * torch.randn(1, 3, 8, 8)),
        "constant sequence": (sequence, torch.full((1, 50, 20), 7.0)),
    }


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
@pytest.mark.parametrize("name", cancelling())
def test_the_bound_holds_where_products_cancel(engine, name, clipping):
    model, x = cancelling()[name]
    result = ENGINES[engine](model, cross_entropy, x, torch.tensor([3]), max_grad_norm=0.1, clipping=clipping)
    assert math.sqrt(sum(g.double().square().sum().item() for g in result.gradients.values())) <= 0.1 * (1 + 1e-5)


def inner_product(outputs: Tensor, gradients: Tensor) -> Tensor:
    """A loss with these gradients at the outputs."""
    return (outputs * gradients).flatten(1).sum(1)


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost"])
def test_an_example_whose_terms_cancel_swallows_no_others(engine):
    """Wherever a product of matrices is cut, one cut in two leaves half of its terms, 10⁶ times the bound, beside the examples that follow."""
    layer = nn.Linear(16, 48, bias=False)
    x, g = torch.ones(150, 7, 16), torch.full((150, 7, 48), 0.04 / (16 * 48) ** 0.5)
    odd_x, odd_g = torch.zeros(1, 7, 16), torch.zeros(1, 7, 48)
    odd_x[:, 0] = odd_x[:, 6] = 1
    odd_g[:, 0], odd_g[:, 6] = 1e6, -1e6

    def total(x: Tensor, g: Tensor) -> Tensor:
        return ENGINES[engine](layer, inner_product, x, g, max_grad_norm=1.0).gradients["weight"].double()

    without = total(x, g)
    for place in range(151):
        whole = total(torch.cat([x[:place], odd_x, x[place:]]), torch.cat([g[:place], odd_g, g[place:]]))
        assert (whole - without).norm() <= 1e-3


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost", "loop"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(4), (4,)),
        (nn.GroupNorm(2, 4), (4, 2, 2)),
        (frozen(nn.Linear(3, 4), "weight"), (3,)),
        (frozen(nn.Conv2d(3, 4, 1), "weight"), (3, 2, 2)),
    ],
    ids=["layer norm", "group norm", "bias", "bias of a convolution"],
)
def test_copies_that_cancel_swallow_no_other_examples(engine, layer, shape):
    x = torch.randn(400, *shape, generator=torch.Generator().manual_seed(0))
    x[201] = x[200]
    g = torch.full_like(layer(x), 0.3)

    def total() -> Tensor:
        sums = ENGINES[engine](layer, inner_product, x, g, max_grad_norm=1.0, copies=2).gradients
        return torch.cat([value.double().flatten() for value in sums.values()])

    g[200], g[201] = 0, 0
    without = total()
    g[200], g[201] = 1e17, -1e17
    assert (total() - without).norm() <= 1e-3


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(30, 40), (12, 30)),
        (nn.Conv1d(9, 40, 3, stride=2), (9, 17)),
        (nn.Conv2d(40, 40, 3), (40, 6, 6)),
        (nn.Conv2d(40, 60, 3, groups=2), (40, 6, 6)),
    ],
    ids=["sequence", "strided", "images", "groups"],
)
def test_sums_of_examples_whose_terms_cancel_and_of_others(layer, shape, engine, copies):
    torch.manual_seed(0)
    axes = tuple(range(2, 1 + len(shape))) if layer.weight.ndim > 2 else (1,)
    rows, double = 6 * copies, copy.deepcopy(layer).double()
    x = 1 + 1e-3 * torch.randn(rows, *shape)
    g = torch.randn_like(layer(x))
    cancels = torch.tensor([True, False, True, True, False, False]).repeat_interleave(copies)
    g[cancels] = 1e5 * (g - g.mean(axes, keepdim=True))[cancels]
    x[-copies:] = torch.inf
    rule = bookkeeping.backward(layer, inner_product, x, g, copies=copies, use_ghost=bookkeeping.everywhere)[0][1]
    assert rule._apart.tolist() == [True, False, True, True, False, False]  # pyright: ignore
    ours = ENGINES[engine](layer, inner_product, x, g, max_grad_norm=0.3, copies=copies)
    expected = loop_engine(
        double, inner_product, x[:-copies].double(), g[:-copies].double(), max_grad_norm=0.3, copies=copies
    )
    for name, value in expected.gradients.items():
        torch.testing.assert_close(ours.gradients[name].double(), value, rtol=0, atol=1e-4 * 0.3)
    assert ours.norms[-1].isnan() or ours.norms[-1].isinf()


# ---------------------------------------------------------------- models that do not do what they seem to


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h *= 2
        return self.second(torch.relu_(h))


@pytest.mark.parametrize("engine", sorted(set(GENERAL) - {"hooks"}))  # torch refuses Opacus' hooks there
def test_activations_in_place(engine):
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    for model in (InPlace(), nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4))):
        expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.3)
        assert_same(ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.3), expected)


@pytest.mark.parametrize("engine", sorted(set(GENERAL) - {"hooks"}))
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(5, 6), (3, 5)), (nn.InstanceNorm2d(3, affine=True), (3, 4, 4))],
    ids=["linear of a sequence", "instance norm"],
)
def test_activations_in_place_of_outputs_that_are_reshapes(engine, layer, shape):
    torch.manual_seed(0)
    x, y = torch.randn(4, *shape), torch.tensor([0, 1, 2, 3])
    assert layer(x)._is_view()
    model = nn.Sequential(
        layer, nn.LeakyReLU(inplace=True), nn.Flatten(), nn.Linear(layer(x)[0].numel(), 4)
    ).requires_grad_()
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.3)
    assert_same(ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.3), expected)
    assert expected.gradients["0.weight"].abs().max() > 0.01


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost", "crb"])
def test_an_input_that_is_overwritten_is_refused(engine):
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = x * 1.0
            out = self.layer(h.detach())
            h.zero_()
            return out

    class Shares(Overwrites):
        def forward(self, x: Tensor) -> Tensor:
            h = x * 1.0
            out = torch.tanh(self.layer(h))
            with torch.no_grad():
                h.zero_()
            return out

    with pytest.raises((UserError, RuntimeError), match="in place"):
        ENGINES[engine](Shares(), cross_entropy, torch.randn(3, 5), torch.tensor([0, 1, 2]), max_grad_norm=1.0)


class Remembers(nn.Module):
    """Writes into its buffer, or puts another in its place."""

    def __init__(self, *, replaces: bool) -> None:
        super().__init__()
        self.layer, self.replaces = nn.Linear(5, 4), replaces
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.replaces:
            self.seen = 0.9 * self.seen + x.detach().mean(0)
        else:
            self.seen += x.detach().mean(0)
        return self.layer(x)


@pytest.mark.parametrize("engine", [*sorted(set(GENERAL) - {"vmap", "hooks"}), "loop"])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_model_that_writes_what_it_sees_into_itself_is_refused(engine, replaces):
    with pytest.raises(
        UserError, match=r"^seen: the model's forward pass changes it, so private data would reach the model"
    ):
        ENGINES[engine](
            Remembers(replaces=replaces), cross_entropy, torch.randn(3, 5), torch.tensor([0, 1, 2]), max_grad_norm=1.0
        )


@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_embeddings_that_mix_examples_are_refused(engine, option):
    model, x = nn.Embedding(9, 4, **option), torch.randint(0, 9, (3, 2))
    with pytest.raises(UserError, match=r"^module 'Embedding' \(Embedding\): max_norm changes weights"):
        ENGINES[engine](model, cross_entropy, x, torch.tensor([0, 1, 2]), max_grad_norm=1.0)


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost", "crb"])
def test_parameters_beside_weight_and_bias_are_refused(engine):
    layer = nn.Linear(5, 4)
    layer.register_parameter("extra", nn.Parameter(torch.ones(4)))
    with pytest.raises(
        UserError,
        match=r"^module 'Linear' \(Linear\): has extra of its own; take engine='vmap' \(PrivacyEngine has none\)$",
    ):
        ENGINES[engine](layer, cross_entropy, torch.randn(3, 5), torch.tensor([0, 1, 2]), max_grad_norm=1.0)


class Temperature(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 4), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("examples", [0, 1, 6])
def test_a_parameter_without_dimensions_counts(engine, clipping, examples):
    torch.manual_seed(0)
    model, x, y = Temperature(), torch.randn(examples, 5), torch.arange(examples) % 4
    clipped = ENGINES[engine](model, cross_entropy, x, y, max_grad_norm=0.1, clipping=clipping)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    norms = []
    for row, label in zip(x, y, strict=True):
        own = torch.autograd.grad(cross_entropy(model(row[None]), label[None]).sum(), list(model.parameters()))
        norms.append(torch.cat([g.flatten() for g in own]).norm())
        if clipping == "flat":
            for name, g in zip(expected, own, strict=True):
                expected[name] += g * min(1.0, 0.1 / float(norms[-1]))
    assert clipped.norms.tolist() == pytest.approx([float(norm) for norm in norms], rel=1e-5)
    assert {name: g.shape for name, g in clipped.gradients.items()} == {name: g.shape for name, g in expected.items()}
    if clipping == "flat":
        for name, g in clipped.gradients.items():
            torch.testing.assert_close(g, expected[name])


class Hides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(
            torch.tanh(F.linear(self.layer(x), self.layer.weight.new_ones(6, 6)) + x @ self.layer.weight.t())
        )


def test_a_model_that_mixes_examples_is_found_out():
    with pytest.raises(UserError, match=r"^model: what it gives examples together is not what it gives them alone"):
        check_by_example(nn.Sequential(nn.Linear(5, 6), nn.Softmax(0), nn.Linear(6, 4)), torch.randn(3, 5))


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost", "crb"])
def test_a_weight_that_is_used_outside_its_layer_is_refused(engine):
    message = r"^layer.weight: the loss depends on it otherwise than by one call of its layer"
    with pytest.raises(UserError, match=message):
        check_by_example(Hides(), torch.randn(3, 5))
    with pytest.raises(UserError, match=message):
        ENGINES[engine](Hides(), cross_entropy, torch.randn(3, 5), torch.arange(3), max_grad_norm=1.0)


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost", "crb"])
def test_a_penalty_is_refused_that_would_be_left_out(engine):
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))

    def penalized(outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(outputs, labels) + model.get_parameter("0.weight").square().sum()

    with pytest.raises(UserError, match=r"^0.weight: the loss depends on it otherwise .* weight_decay"):
        ENGINES[engine](model, penalized, torch.randn(3, 5), torch.arange(3), max_grad_norm=1.0)
    with pytest.raises(UserError, match=r"^loss of shape \(\).*: expected one number an example"):
        ENGINES[engine](model, F.cross_entropy, torch.randn(3, 5), torch.arange(3), max_grad_norm=1.0)


@pytest.mark.parametrize("name", [name for name in LAYERS if "batch norm" not in name])
def test_models_that_keep_examples_apart_pass(name):
    model, x, _ = batch_of(name)
    check_by_example(model, torch.randn_like(x))
    check_by_example(nn.Sequential(model, nn.Dropout(0.5)), torch.randn_like(x))


def both_signs(count: int, scale: float) -> Tensor:
    """``(1, count)`` numbers, first those above 0, that cancel but for a millionth."""
    half = scale * torch.randn(count // 2, generator=torch.Generator().manual_seed(0)).abs()
    values = torch.cat([half, -half])
    values[0] += 1e-6 * scale
    return values[None]


def signed_series() -> tuple[nn.Module, Tensor, Tensor]:
    """A series without inputs and targets of both signs: only the bias has a gradient, a small rest of large ones."""
    model = nn.Linear(64, 1)
    with torch.no_grad():
        model.bias.zero_()
    return model, torch.zeros(1, 256, 64), both_signs(256, 1e5)


def signed_pixels() -> tuple[nn.Module, Tensor, Tensor]:
    """The same of a convolution of black images."""
    model = nn.Sequential(nn.Conv2d(64, 1, 3, bias=True), nn.Flatten())
    with torch.no_grad():
        model[0].bias.zero_()  # pyright: ignore
    return model, torch.zeros(1, 64, 8, 8), both_signs(36, 1e5)


def signed_tokens() -> tuple[nn.Module, Tensor, Tensor]:
    """One token at 512 places, pulled both ways."""
    model = nn.Embedding(600, 1)
    with torch.no_grad():
        model.weight.zero_()
    return model, torch.zeros(1, 512, dtype=torch.int64), both_signs(512, 1e3)


@pytest.mark.parametrize("engine", [*GENERAL, "loop"])
@pytest.mark.parametrize("bound", [1e-2, 1e-4])
@pytest.mark.parametrize("make", [signed_series, signed_pixels, signed_tokens])
def test_the_bound_holds_where_gradients_cancel_over_positions(engine, make, bound):
    model, x, targets = make()

    def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.flatten(1) - targets).square().sum(1)

    sums = ENGINES[engine](model, squared_error, x, targets, max_grad_norm=bound).gradients
    assert torch.cat([value.flatten() for value in sums.values()]).double().norm() <= bound * (1 + 1e-5)


@pytest.mark.parametrize("engine", ["ghost", "mixed_ghost"])
@pytest.mark.parametrize("channels", [256, 2304])
def test_equal_products_are_all_rounded_the_same_way(engine, channels):
    """Constant columns: rounding errors of long sums add up in place of averaging out."""
    convolution, linear = nn.Conv2d(channels, 4, 1, bias=False), nn.Linear(8, 4, bias=False).requires_grad_(False)
    model = nn.Sequential(convolution, nn.Flatten(), linear)
    with torch.no_grad():
        convolution.weight.zero_()
        linear.weight.copy_(torch.eye(4).repeat_interleave(2, 1) * torch.tensor([1.0, -1.0]).repeat(4))
    generator = torch.Generator().manual_seed(0)
    values = 0.5 + torch.rand(200, 2, generator=generator)
    values[0] = torch.tensor([1.2165749073028564, 1.2165749073028564 * 0.8012941479682922])
    x = values[:, None, None, :].expand(-1, channels, 1, 2).contiguous()
    y = torch.zeros(200, dtype=torch.int64)
    for i in (0, *range(1, 200, 20)):
        sums = ENGINES[engine](model, cross_entropy, x[i : i + 1], y[i : i + 1], max_grad_norm=0.01).gradients
        assert sums["0.weight"].double().norm() <= 0.01 * (1 + 2e-5)


def test_a_large_stride_takes_no_gram_matrix_of_all_pixels():
    model = nn.Sequential(nn.Conv2d(3, 64, 16, stride=16), nn.Flatten(), nn.Linear(64 * 9, 3))
    x, y = torch.randn(2, 3, 48, 48), torch.tensor([0, 2])
    (_, rule), *_ = bookkeeping.backward(model, cross_entropy, x, y)
    assert isinstance(rule, ConvolutionRule)
    assert not rule._few_pixels
    expected = loop_engine(model, cross_entropy, x, y, max_grad_norm=0.5)
    ours = ENGINES["ghost"](model, cross_entropy, x, y, max_grad_norm=0.5)
    torch.testing.assert_close(ours.norms, expected.norms, rtol=1e-4, atol=0)  # from above: long sums
    assert (ours.norms >= expected.norms).all()
