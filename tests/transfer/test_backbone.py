"""A network as an extractor: one image at a time, named by what decides its numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from scatterdp.errors import UserError
from scatterdp.heads.weights import weights_digest
from transfer.backbone import Backbone
from transfer.preprocessing import Preprocessing

PLAIN = Preprocessing(size=None, crop=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), rgb=False)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout()
    )
    layers[1].running_mean = torch.rand(8)
    return layers


def backbone(module: nn.Module, **changed) -> Backbone:
    arguments = {
        "name": "x",
        "source": "x",
        "weights": "f",
        "library": "",
        "preprocessing": PLAIN,
        "input_shape": (3, 12, 12),
    }
    return Backbone(module, **{**arguments, **changed})


def images(count: int = 7) -> torch.Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def test_features_of_an_image_are_those_it_has_alone():
    extractor, batch = backbone(network().train()), images()  # train: dropout and batch statistics, were they left on
    together = extractor(batch)
    assert together.shape == (7, 8, 1, 1)
    assert together.dtype == torch.float32
    assert extractor.output_shape == (8, 1, 1)
    alone = torch.cat([extractor(image[None]) for image in batch])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    others = torch.cat([extractor(torch.cat([batch[:1], torch.zeros(count, 3, 12, 12)]))[:1] for count in range(4)])
    torch.testing.assert_close(others, together[:1].expand(4, -1, -1, -1), rtol=1e-5, atol=1e-6)


def test_maps_stay_maps():
    extractor = backbone(nn.Conv2d(3, 4, 3))
    assert extractor.output_shape == (4, 10, 10)
    assert extractor(images()).shape == (7, 4, 10, 10)


class OverTheBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return flat - flat.mean(0)


class ByChance(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x.flatten(1))


class WithMemory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return x.flatten(1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (OverTheBatch(), "depend on the other images of its batch, or on chance"),
        (ByChance(), "depend on the other images of its batch, or on chance"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()), "depend on the other images"),
        (WithMemory(), "computing features changes its seen"),
        (nn.Conv2d(4, 4, 3), r"cannot take images of 3×12×12 \(.*\); give another --image_size"),
        (nn.Flatten(2), r"answers two images with \(2, 3, 144\), expected features of shape \(2, D\)"),
        (nn.Flatten(0), r"answers two images with \(864,\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_networks_that_are_no_function_of_one_image(module, message):
    with pytest.raises(UserError, match=message) as raised:
        backbone(module, source="mine")
    assert str(raised.value).startswith("backbone=mine: ")
    assert "\n" not in str(raised.value)


def test_nan_weights_are_found():
    module = network()
    with torch.no_grad():
        next(module.parameters())[0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite features"):
        backbone(module)


def test_images_are_checked():
    with pytest.raises(UserError, match="values from"):
        backbone(network())(2 + images())


def test_the_fingerprint_names_network_weights_and_preprocessing():
    first = backbone(network())
    assert first.config.weights_sha256 == weights_digest(network())
    assert backbone(network(), weights="elsewhere").fingerprint == first.fingerprint  # the file's place decides nothing
    others = {
        backbone(network(seed=1)).fingerprint,
        backbone(network(), source="y").fingerprint,
        backbone(network(), library="torchvision 1").fingerprint,
        backbone(network(), preprocessing=dataclasses.replace(PLAIN, std=(1.0, 1.0, 2.0))).fingerprint,
        backbone(network(), input_shape=(3, 13, 13)).fingerprint,
        backbone(network(), definition={"code": "a"}).fingerprint,
        backbone(network(), definition={"code": "b"}).fingerprint,
    }
    assert len(others | {first.fingerprint}) == 8


def test_weights_ask_for_no_gradient():
    assert not backbone(network())(images()).requires_grad
