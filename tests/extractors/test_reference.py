"""Features of synthetic images: their shape, their determinism, what the extractor is shown."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import fingerprint
from scatterdp.extractors.reference import DESCRIPTION, NUM_IMAGES, SEED, reference_features
from scatterdp.extractors.synthetic import dead_leaves


@dataclasses.dataclass(frozen=True)
class NoConfig:
    pass


class Recorder:
    """Gives the images back, and remembers the sizes of its batches."""

    name = "recorder"
    config = NoConfig()

    def __init__(self, input_shape: tuple[int, int, int]) -> None:
        self.input_shape = self.output_shape = input_shape
        self.fingerprint = fingerprint("Recorder", self.config, input_shape, preprocessing={}, versions={})
        self.batches: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return images.clone()

    def to(self, device: torch.device | str) -> Recorder:
        return self


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 9, 12)])
def test_shape_of_scatternet_features(input_shape):
    extractor = make_extractor("scatternet", input_shape)
    features = reference_features(extractor)
    assert features.shape == (256, *extractor.output_shape)
    assert features.dtype == torch.float32
    assert features.device.type == "cpu"
    assert features.isfinite().all()
    assert features.std() > 0


def test_same_numbers_every_time_and_for_every_batch_size():
    extractor = make_extractor("scatternet", (1, 8, 8))
    first = reference_features(extractor)
    assert torch.equal(first, reference_features(extractor))
    torch.testing.assert_close(first, reference_features(extractor, batch_size=100), rtol=0, atol=1e-6)


def test_grey_images_are_two_tone_at_their_median():
    images = reference_features(Recorder((1, 8, 8)))
    assert sorted(images.unique().tolist()) == [0.0, 1.0]
    share = images.mean((1, 2, 3))
    assert ((share > 0.4) & (share <= 0.5)).all()
    leaves = torch.from_numpy(dead_leaves(NUM_IMAGES, (1, 8, 8), seed=SEED))
    darkest_white = torch.where(images == 1, leaves, torch.inf).amin((1, 2, 3))
    brightest_black = torch.where(images == 0, leaves, -torch.inf).amax((1, 2, 3))
    assert (darkest_white > brightest_black).all()


def test_colour_images_are_dead_leaves_as_they_are():
    images = reference_features(Recorder((3, 8, 8)))
    assert torch.equal(images, torch.from_numpy(dead_leaves(NUM_IMAGES, (3, 8, 8), seed=SEED)))


def test_batches_are_as_large_as_asked():
    recorder = Recorder((1, 8, 8))
    reference_features(recorder, batch_size=100)
    assert recorder.batches == [100, 100, 56]


def test_description_names_what_was_done():
    assert DESCRIPTION == ("256 synthetic dead-leaves images (seed 0; two-tone when grey) through the same extractor")
