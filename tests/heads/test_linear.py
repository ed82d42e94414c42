"""The linear head."""

from __future__ import annotations

import torch
from torch import nn

from scatterdp.heads import Standardize, linear_head


def test_maps_features_to_logits():
    head = linear_head(nn.Identity(), (6, 2, 3), 4)
    assert head.classifier.get_parameter("weight").shape == (4, 36)
    assert head(torch.ones(5, 6, 2, 3)).shape == (5, 4)
    assert head(torch.ones(0, 6, 2, 3)).shape == (0, 4)


def test_starts_at_zero_so_that_every_class_is_equally_likely():
    head = linear_head(nn.Identity(), (6, 2, 2), 10)
    assert all((parameter == 0).all() for parameter in head.parameters())
    probabilities = torch.softmax(head(torch.randn(3, 6, 2, 2)), 1)
    torch.testing.assert_close(probabilities, torch.full((3, 10), 0.1))


def test_is_one_affine_map_of_the_flattened_normalised_features():
    torch.manual_seed(0)
    mean, scale = torch.randn(2), torch.rand(2) + 0.5
    head = linear_head(Standardize(mean, scale), (2, 3, 2), 4)
    nn.init.normal_(head.classifier.get_parameter("weight"))
    nn.init.normal_(head.classifier.get_parameter("bias"))
    x = torch.randn(7, 2, 3, 2)
    normalised = (x - mean[None, :, None, None]) * scale[None, :, None, None]
    expected = normalised.reshape(7, 12) @ head.classifier.get_parameter("weight").T + head.classifier.get_parameter(
        "bias"
    )
    torch.testing.assert_close(head(x), expected)


def test_state_dict_carries_the_normaliser():
    head = linear_head(Standardize(torch.arange(2.0), torch.ones(2)), (2, 1, 1), 3)
    assert head.state_dict().keys() == {
        "normalizer.mean",
        "normalizer.scale",
        "classifier.weight",
        "classifier.bias",
    }
    assert {name for name, _ in head.named_parameters()} == {"classifier.weight", "classifier.bias"}
