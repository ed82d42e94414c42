"""The rebuilt networks against their published descriptions: counts, shapes, and what the published names mean.

The witness is a second forward pass, written here as functions of tensors under their *published* names.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scatterdp.heads.weights import load_weights
from transfer.architectures.resnext import ResNeXt29, numbered_bottlenecks, plain_sequences
from transfer.architectures.simclr import SimCLR, converted

Tensors = dict[str, Tensor]


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def batch_norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def filled(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Random tensors of such sizes that maps keep theirs."""
    generator = torch.Generator().manual_seed(0)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values *= torch.tensor(shape[1:]).prod().rsqrt()
        elif re.search(r"weight$|running_var$", name):
            values = 1 + 0.1 * values.abs()
        else:
            values *= 0.1
        tensors[name] = values
    return tensors


def normalized(x: Tensor, t: Tensors, name: str) -> Tensor:
    mean, var, weight, bias = (
        t[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


# ---------------------------------------------------------------- ResNeXt-29 8×64d


def resnext_shapes(layout: str) -> dict[str, tuple[int, ...]]:
    shapes = {"conv_1_3x3.weight": (64, 3, 3, 3), **batch_norm("bn_1", 64)}
    for stage in (1, 2, 3):
        outputs, width = 128 * 2**stage, 256 * 2**stage
        for block in range(3):
            inputs = outputs if block else (64 if stage == 1 else outputs // 2)
            at = f"stage_{stage}.stage_{stage}_bottleneck_{block}" if layout == "numbered" else f"stage_{stage}.{block}"
            shapes |= {f"{at}.conv_reduce.weight": (width, inputs, 1, 1), **batch_norm(f"{at}.bn_reduce", width)}
            shapes |= {f"{at}.conv_conv.weight": (width, width // 8, 3, 3), **batch_norm(f"{at}.bn", width)}
            shapes |= {f"{at}.conv_expand.weight": (outputs, width, 1, 1), **batch_norm(f"{at}.bn_expand", outputs)}
            if block == 0:
                conv, norm = (
                    ("shortcut.shortcut_conv", "shortcut.shortcut_bn")
                    if layout == "numbered"
                    else ("downsample.0", "downsample.1")
                )
                shapes |= {f"{at}.{conv}.weight": (outputs, inputs, 1, 1), **batch_norm(f"{at}.{norm}", outputs)}
    return shapes | {"classifier.weight": (100, 1024), "classifier.bias": (100,)}


def resnext_by_published_names(x: Tensor, t: Tensors, layout: str) -> Tensor:
    x = normalized(F.conv2d(x, t["conv_1_3x3.weight"], padding=1), t, "bn_1").relu()
    for stage in (1, 2, 3):
        for block in range(3):
            at = f"stage_{stage}.stage_{stage}_bottleneck_{block}" if layout == "numbered" else f"stage_{stage}.{block}"
            conv, norm = (
                ("shortcut.shortcut_conv", "shortcut.shortcut_bn")
                if layout == "numbered"
                else ("downsample.0", "downsample.1")
            )
            stride = 2 if stage > 1 and block == 0 else 1
            y = normalized(F.conv2d(x, t[f"{at}.conv_reduce.weight"]), t, f"{at}.bn_reduce").relu()
            y = F.conv2d(y, t[f"{at}.conv_conv.weight"], stride=stride, padding=1, groups=8)
            y = normalized(y, t, f"{at}.bn").relu()
            y = normalized(F.conv2d(y, t[f"{at}.conv_expand.weight"]), t, f"{at}.bn_expand")
            if block == 0:
                x = normalized(F.conv2d(x, t[f"{at}.{conv}.weight"], stride=stride), t, f"{at}.{norm}")
            x = (x + y).relu()
    return F.avg_pool2d(x, 8).flatten(1)


def test_resnext_has_the_published_number_of_parameters():
    # Convolutions and batch normalisations (2 a channel). Stem: 3·9·64 + 2·64 = 1856. A bottleneck of in → out = c channels and width 2c:
    # 2c·in + 9·(2c)²/8 + 2c·c + 2·(2c + 2c + c); the first of a stage has a shortcut, c·in + 2c.
    def bottleneck(inputs: int, c: int, first: bool) -> int:
        return 2 * c * inputs + 9 * (2 * c) ** 2 // 8 + 2 * c * c + 10 * c + (c * inputs + 2 * c if first else 0)

    count = 1856
    for inputs, c in ((64, 256), (256, 512), (512, 1024)):
        count += bottleneck(inputs, c, True) + 2 * bottleneck(c, c, False)
    assert parameters(ResNeXt29()) == count == 34_416_448
    assert count + 1025 * 10 == 34_426_698  # published as 34.43 M for CIFAR-10
    assert count + 1025 * 100 == 34_518_948  # and 34.52 M for CIFAR-100


@pytest.mark.parametrize("layout", ["numbered", "plain"])
def test_resnext_computes_what_the_published_names_say(layout):
    tensors = filled(resnext_shapes(layout))
    model = ResNeXt29().eval()
    load_weights(model, tensors, source="x", namings=(numbered_bottlenecks, plain_sequences), ignored=("classifier.",))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(images), resnext_by_published_names(images, tensors, layout)
    assert ours.shape == (2, 1024)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize(("naming", "layout"), [(numbered_bottlenecks, "numbered"), (plain_sequences, "plain")])
def test_resnext_names_every_tensor_once(naming, layout):
    own = ResNeXt29().state_dict()
    published = {naming(name): tuple(value.shape) for name, value in own.items() if "num_batches" not in name}
    expected = {name: shape for name, shape in resnext_shapes(layout).items() if "classifier" not in name}
    assert published == expected


# ---------------------------------------------------------------- SimCLR v2, r50 2× sk1


def simclr_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for place, (outputs, inputs) in ((0, (64, 3)), (2, (64, 64)), (4, (128, 64))):
        shapes |= {
            f"net.0.{place}.weight": (outputs, inputs, 3, 3),
            **batch_norm(f"net.0.{place + 1}.0", outputs),
        }
    inputs = 128
    for stage, blocks in enumerate((3, 4, 6, 3)):
        c = 128 * 2**stage
        mixing = max(c // 16, 32)
        for block in range(blocks):
            at = f"net.{stage + 1}.blocks.{block}"
            if block == 0:
                shapes[f"{at}.projection.shortcut.2.weight"] = (4 * c, inputs, 1, 1)
                shapes |= batch_norm(f"{at}.projection.bn.0", 4 * c)
            shapes |= {f"{at}.net.0.weight": (c, inputs, 1, 1), **batch_norm(f"{at}.net.1.0", c)}
            shapes |= {
                f"{at}.net.2.main_conv.0.weight": (2 * c, c, 3, 3),
                **batch_norm(f"{at}.net.2.main_conv.1.0", 2 * c),
            }
            shapes |= {
                f"{at}.net.2.mixing_conv.0.weight": (mixing, c, 1, 1),
                **batch_norm(f"{at}.net.2.mixing_conv.1.0", mixing),
            }
            shapes[f"{at}.net.2.mixing_conv.2.weight"] = (2 * c, mixing, 1, 1)
            shapes |= {f"{at}.net.3.weight": (4 * c, c, 1, 1), **batch_norm(f"{at}.net.4.0", 4 * c)}
            inputs = 4 * c
    return shapes | {"fc.weight": (1000, 4096), "fc.bias": (1000,)}


def simclr_by_published_names(x: Tensor, t: Tensors) -> Tensor:
    for place, stride in ((0, 2), (2, 1), (4, 1)):
        x = F.conv2d(x, t[f"net.0.{place}.weight"], stride=stride, padding=1)
        x = normalized(x, t, f"net.0.{place + 1}.0").relu()
    x = F.max_pool2d(x, 3, 2, padding=1)
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            at = f"net.{stage + 1}.blocks.{block}"
            stride = 2 if stage and block == 0 else 1
            y = normalized(F.conv2d(x, t[f"{at}.net.0.weight"]), t, f"{at}.net.1.0").relu()
            y = F.conv2d(y, t[f"{at}.net.2.main_conv.0.weight"], stride=stride, padding=1)
            one, other = normalized(y, t, f"{at}.net.2.main_conv.1.0").relu().chunk(2, 1)
            pooled = (one + other).mean((2, 3), keepdim=True)
            mixed = normalized(
                F.conv2d(pooled, t[f"{at}.net.2.mixing_conv.0.weight"]), t, f"{at}.net.2.mixing_conv.1.0"
            )
            a, b = F.conv2d(mixed.relu(), t[f"{at}.net.2.mixing_conv.2.weight"]).exp().chunk(2, 1)
            y = (one * a + other * b) / (a + b)
            y = normalized(F.conv2d(y, t[f"{at}.net.3.weight"]), t, f"{at}.net.4.0")
            if block == 0:
                x = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride)
                x = normalized(F.conv2d(x, t[f"{at}.projection.shortcut.2.weight"]), t, f"{at}.projection.bn.0")
            x = (x + y).relu()
    return x.mean((2, 3))


@pytest.fixture(scope="module")
def simclr() -> SimCLR:
    with torch.device("meta"):  # 140 million initial values are seconds, and nobody looks at them
        return SimCLR().eval()


def test_simclr_has_the_published_number_of_parameters(simclr):
    count = sum(
        torch.Size(shape).numel() for name, shape in simclr_shapes().items() if not re.search("running|fc", name)
    )
    assert parameters(simclr) == count == 140_306_048  # the paper: 140 M


def test_simclr_names_every_tensor_once(simclr):
    own = simclr.state_dict()
    published = {converted(name): tuple(value.shape) for name, value in own.items() if "num_batches" not in name}
    assert published == {name: shape for name, shape in simclr_shapes().items() if not name.startswith("fc.")}


def test_simclr_computes_what_the_published_names_say(simclr):
    tensors = filled(simclr_shapes())
    load_weights(simclr.to_empty(device="cpu"), tensors, source="x", namings=(converted,), ignored=("fc.",))
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = simclr(images), simclr_by_published_names(images, tensors)
    assert ours.shape == (2, 4096)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
