"""Normalisers: their formulas, their buffers, their errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scatterdp.errors import ConfigError
from scatterdp.heads import Standardize, group_normalizer
from scatterdp.privacy.statistics import ChannelStatistics


def features() -> torch.Tensor:
    return torch.randn(16, 6, 2, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1


def test_standardize_equals_the_formula():
    x, mean, scale = features(), torch.arange(6.0), torch.linspace(0.5, 2, 6)
    y = Standardize(mean, scale)(x)
    for i, k in ((0, 0), (3, 2), (15, 5)):
        torch.testing.assert_close(y[i, k], (x[i, k] - mean[k]) * scale[k])


def test_standardize_from_statistics_gives_mean_zero_and_variance_one():
    x = features()
    statistics = ChannelStatistics(mean=x.double().mean((0, 2, 3)), variance=x.double().var((0, 2, 3), correction=0))
    y = Standardize.from_statistics(statistics)(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-6)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(6))


def test_standardize_keeps_its_numbers_in_the_state_dict():
    module = Standardize(torch.arange(3).double(), torch.ones(3).double())
    state = module.state_dict()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "mean": (torch.float32, (3,)),
        "scale": (torch.float32, (3,)),
    }
    assert list(module.parameters()) == []
    other = Standardize(torch.zeros(3), torch.zeros(3))
    other.load_state_dict(state)
    assert torch.equal(other.mean, torch.arange(3.0))
    assert torch.equal(other.scale, torch.ones(3))


@pytest.mark.parametrize("num_groups", [1, 2, 3, 6])
def test_group_normalizer_normalises_each_group_of_each_example(num_groups):
    x = features()
    module = group_normalizer(6, num_groups)
    assert isinstance(module, nn.GroupNorm)
    assert list(module.parameters()) == []
    groups = module(x).reshape(16, num_groups, -1)
    torch.testing.assert_close(groups.mean(2), torch.zeros(16, num_groups), rtol=0, atol=1e-6)
    torch.testing.assert_close(groups.var(2, correction=0), torch.ones(16, num_groups), rtol=1e-4, atol=1e-4)


def test_group_normalizer_reads_one_example_at_a_time():
    x = features()
    module = group_normalizer(6, 3)
    changed = x.clone()
    changed[1:] = 100 * torch.randn_like(changed[1:])
    assert torch.equal(module(x)[0], module(changed)[0])


@pytest.mark.parametrize("num_groups", [-1, 0, 7, 28, 82])
def test_groups_that_do_not_divide_are_refused_with_a_choice(num_groups):
    with pytest.raises(
        ConfigError,
        match=rf"^num_groups={num_groups}: does not divide the 81 channels; choose one of 1, 3, 9, 27, 81$",
    ):
        group_normalizer(81, num_groups)
