"""Random views of images."""

from __future__ import annotations

import pytest
import torch

from scatterdp.extractors.synthetic import ALIGNED, dead_leaves, random_views


def leaves(*, channels: int = 3, num: int = 20) -> torch.Tensor:
    return torch.from_numpy(dead_leaves(num, (channels, 16, 18), seed=3))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_resembles_its_own_image_most(channels):
    images = leaves(channels=channels)
    views = random_views(images, seed=1)
    assert views.shape == images.shape
    assert views.min() >= 0
    assert views.max() <= 1

    def shape_alone(x: torch.Tensor) -> torch.Tensor:
        flat = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)
        return torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True), dim=1)

    nearest = (shape_alone(views) @ shape_alone(images).t()).argmax(1)
    assert (nearest == torch.arange(len(images))).float().mean() > 0.8
    assert (views - images).abs().mean() > 0.02


def test_aligned_views_stay_where_they_are():
    """The place of every corner of a leaf moves by a few pixels at most, where other views move it across the image."""
    bright = torch.zeros(200, 1, 32, 32)
    bright[:, :, 15:17, 15:17] = 1

    def places(views: torch.Tensor) -> torch.Tensor:
        excess = views - views.amin((2, 3), keepdim=True)
        weights = excess / excess.sum((1, 2, 3), keepdim=True)
        axis = torch.arange(32) - 15.5
        return torch.stack([(weights.sum((1, side)) * axis).sum(1) for side in (3, 2)], 1)

    moved, elsewhere = (places(random_views(bright, seed=0, **kw)).norm(dim=1) for kw in ({"changes": ALIGNED}, {}))
    assert moved.max() <= 0.08 * 16 / 0.88 * 2**0.5 + 0.1
    assert moved.median() > 0.4  # but they do move
    assert elsewhere.max() > 3


def test_seeds_name_views_and_touch_no_other_randomness():
    images = leaves()
    state = torch.get_rng_state()
    assert torch.equal(random_views(images, seed=1), random_views(images, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(random_views(images, seed=1), random_views(images, seed=2))


def test_grey_stays_grey_in_every_light():
    flat = torch.full((50, 1, 8, 8), 0.5)
    views = random_views(flat, seed=0)
    assert (views.amax((1, 2, 3)) - views.amin((1, 2, 3))).max() < 1e-5  # no structure appears
    means = views.mean((1, 2, 3))
    assert 0.05 < means.std() < 0.2
    assert 0.5 - 0.15 - 0.09 - 1e-6 <= means.min() <= means.max() <= 0.5 + 0.15 + 0.09 + 1e-6
