"""The networks and their made-up batches."""

from __future__ import annotations

import pytest
import torch

from scatterdp.benchmarking.networks import NETWORKS, make_batch, make_network

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "parameters"), [("scatternet_cnn", 187_210), ("cnn", 550_570), ("resnet20", 269_722), ("vgg11", 9_228_362)]
)
def test_sizes(name, parameters):
    model = make_network(name, CPU)
    assert sum(p.numel() for p in model.parameters()) == parameters
    x, y = make_batch(name, 2, CPU)
    assert model(x).shape == (2, 10)
    assert y.shape == (2,)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_again_and_the_global_random_state_is_left_alone(name):
    before = torch.get_rng_state()
    first, second = make_network(name, CPU), make_network(name, CPU)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(make_batch(name, 3, CPU)[0], make_batch(name, 3, CPU)[0])
    assert not torch.equal(make_batch(name, 3, CPU)[0], make_batch(name, 3, CPU, seed=1)[0])
    assert torch.equal(torch.get_rng_state(), before)
