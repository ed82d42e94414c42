"""Pixels as features."""

from __future__ import annotations

import pytest
import torch

from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import make_extractor
from scatterdp.extractors.scatternet import IMAGENET_MEAN, IMAGENET_STD


def test_grey_is_centred():
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 5)
    extractor = make_extractor("pixels", (1, 4, 5))
    assert extractor.output_shape == (1, 4, 5)
    assert extractor(images)[:, 0, 2, 3].tolist() == [-1.0, 0.0, 1.0]


def test_colour_has_imagenets_constants():
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    extractor = make_extractor("pixels", (3, 2, 2))
    assert extractor(mean).abs().max() < 1e-6
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    torch.testing.assert_close(extractor(mean + std), torch.ones(1, 3, 2, 2))


def test_names_its_numbers_and_refuses_others():
    assert make_extractor("pixels", (3, 2, 2)).fingerprint != make_extractor("pixels", (1, 2, 2)).fingerprint
    with pytest.raises(ConfigError, match="J=2: pixels has no settings"):
        make_extractor("pixels", (1, 8, 8), J=2)
    with pytest.raises(UserError, match="expected"):
        make_extractor("pixels", (1, 8, 8))(torch.full((1, 1, 8, 8), 2.0))
