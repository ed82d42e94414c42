"""The large ResNets: the published network's numbers, freezing, autocast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scatterdp.engines import mixed_ghost_engine
from scatterdp.errors import ConfigError
from scatterdp.heads.objax import from_objax
from scatterdp.heads.resnet_v2 import NUM_LAYERS, ResNetV2, freeze_layers
from scatterdp.heads.weights import WeightsError, load_weights, read_weights

#: Names, shapes and logits of objax 1.8.0's networks with GroupNorm2D, for the weights and inputs of :func:`drawn`.
REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "objax_resnets.json").read_text())


def drawn(name: str) -> tuple[dict[str, Any], np.ndarray]:
    """The content of an objax file, and two images ``(2, 3, 48, 40)``."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"names": np.array(REFERENCE[name]["names"])}
    for number, (label, shape) in enumerate(zip(REFERENCE[name]["names"], REFERENCE[name]["shapes"], strict=True)):
        values = rng.standard_normal(shape).astype(np.float32)
        if label.endswith(".gamma"):
            values = 1 + 0.1 * values
        elif label.endswith(".w"):
            values = values / np.sqrt(np.prod(shape[:-1]))
        else:
            values = 0.1 * values
        arrays[str(number)] = values.astype(np.float32)
    return arrays, rng.standard_normal((2, 3, 48, 40)).astype(np.float32)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_published_file_gives_the_published_networks_logits(name, tmp_path):
    arrays, images = drawn(name)
    np.savez(tmp_path / "ckpt.npz", **arrays)
    network = ResNetV2(name, (3, 48, 40), 7)
    load_weights(network, read_weights(tmp_path / "ckpt.npz"), source="ckpt.npz")
    with torch.no_grad():
        logits = network(torch.from_numpy(images).flatten(1))
    np.testing.assert_allclose(logits.numpy(), REFERENCE[name]["logits"], atol=2e-5)


def test_every_array_of_a_published_file_comes_back():
    """Each of our tensors is one of the file's, with its axes moved back, and none is left over."""
    arrays, _ = drawn("resnet18")
    ours = from_objax(arrays)
    assert len(ours) == len(arrays["names"]) == len(ResNetV2("resnet18", (3, 48, 40), 7).state_dict())
    for (name, tensor), number in zip(ours.items(), range(len(ours)), strict=True):
        array = tensor.numpy()
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif name == "linear.weight":
            array = array.T
        np.testing.assert_array_equal(array.reshape(arrays[str(number)].shape), arrays[str(number)])


def test_another_networks_names_are_named(tmp_path):
    arrays, _ = drawn("resnet18")
    arrays["names"] = np.array([n.replace("GroupNorm2D", "BatchNorm2D") for n in arrays["names"].tolist()])
    np.savez(tmp_path / "bn.npz", **arrays)
    with pytest.raises(WeightsError, match=r"bn.npz: .*norm_0\(BatchNorm2D\).gamma' is no layer"):
        read_weights(tmp_path / "bn.npz", argument="finetune_path")


def test_a_pickle_in_an_npz_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", names=np.array([print], dtype=object))
    with pytest.raises(WeightsError, match=r"finetune_path=.*x.npz: not a readable checkpoint.*allow_pickle"):
        read_weights(tmp_path / "x.npz", argument="finetune_path")


@pytest.mark.parametrize("count", [-1, NUM_LAYERS])
def test_layers_to_freeze_out_of_range(count):
    with pytest.raises(ConfigError, match=rf"num_layers_to_freeze={count}: expected 0 to 10"):
        freeze_layers(ResNetV2("resnet18", (3, 32, 32), 2), count)


def test_six_layers_are_all_but_the_last_group_and_the_head():
    network = ResNetV2("resnet18", (3, 32, 32), 2)
    freeze_layers(network, 6)
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"group4", "norm", "linear"}


def test_half_precision_is_clipped_in_single_precision(small_resnets):
    torch.manual_seed(0)
    network = ResNetV2("resnet18", (3, 32, 32), 3)
    freeze_layers(network, 4)
    x, y = torch.randn(6, 3 * 32 * 32), torch.arange(6) % 3

    def loss(outputs, labels):
        return F.cross_entropy(outputs, labels, reduction="none")

    exact = mixed_ghost_engine(network, loss, x, y, max_grad_norm=0.5)
    network.precision = "bfloat16"
    half = mixed_ghost_engine(network, loss, x, y, max_grad_norm=0.5)
    assert all(g.dtype == torch.float32 for g in half.gradients.values())
    torch.testing.assert_close(half.norms, exact.norms, rtol=0.3, atol=0)
    assert not torch.equal(half.norms, exact.norms)
    for i in range(6):  # the sum over one example is no longer than the bound, to float32 rounding
        one = mixed_ghost_engine(network, loss, x[i : i + 1], y[i : i + 1], max_grad_norm=0.5)
        length = torch.stack([g.double().square().sum() for g in one.gradients.values()]).sum().sqrt()
        assert one.norms[0] > 0.5
        assert 0.499 < float(length) <= 0.5 * (1 + 1e-5)
