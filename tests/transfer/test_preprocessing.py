"""What a network sees of an image, against the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scatterdp.errors import ConfigError
from transfer.preprocessing import NORMALIZATIONS, Preprocessing

AS_IS: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def images(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def cubic_convolution(distance: float, a: float = -0.75) -> float:
    """Keys 1981, equation 4, with TensorFlow 1's constant."""
    d = abs(distance)
    if d < 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def test_corner_bicubic_is_the_cubic_convolution_from_pixels_corners():
    x = images(32, 32)
    out = Preprocessing(size=224, crop=0.875, resize="corner_bicubic", **AS_IS)(x)
    assert out.shape == (2, 3, 224, 224)
    square = x[:, :, 2:30, 2:30].double()  # 28 = 7/8 of 32
    for row, column in ((0, 0), (5, 100), (113, 8), (223, 223), (96, 160)):
        weights = []
        for place in (row * 28 / 224, column * 28 / 224):
            line = np.zeros(28)
            for tap in range(int(place) - 1, int(place) + 3):
                line[min(max(tap, 0), 27)] += cubic_convolution(place - tap)
            weights.append(torch.from_numpy(line))
        expected = torch.einsum("bchw,h,w->bc", square, *weights).clamp(0, 1)
        torch.testing.assert_close(out[:, :, row, column].double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(out[:, :, ::8, ::8], x[:, :, 2:30, 2:30], rtol=0, atol=1e-5)  # every eighth is a pixel


@pytest.mark.parametrize("size", [16, 40])
def test_bicubic_is_that_of_pillow(size):
    pixels = (images(32, 32)[0] * 255).round().to(torch.uint8)
    out = Preprocessing(size=size, crop=1.0, **AS_IS)(pixels[None] / 255)[0]
    expected = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
    difference = (out - torch.from_numpy(np.asarray(expected) / 255).permute(2, 0, 1)).abs()
    assert difference.max() < (0.01 if size == 16 else 0.12)  # enlarging, Pillow's kernel has a = -0.5
    assert difference.mean() < 0.01


@pytest.mark.parametrize(
    ("height", "width", "window"), [(32, 48, (2, 10, 28)), (33, 33, (2, 2, 29)), (7, 5, (2, 1, 4))]
)
def test_the_central_square_is_kept(height, width, window):
    x = images(height, width)
    top, left, side = window
    out = Preprocessing(size=side, crop=0.875, **AS_IS)(x)
    torch.testing.assert_close(out, x[:, :, top : top + side, left : left + side])


def test_colours_are_centred_by_public_constants():
    mean, std = NORMALIZATIONS["cifar"]
    x = images(32, 32)
    out = Preprocessing(size=32, crop=1.0, mean=mean, std=std)(x)
    torch.testing.assert_close(out[:, 1], (x[:, 1] - 0.4822) / 0.1994)


def test_grey_becomes_three_colours_where_that_is_wanted():
    x = images(8, 8, channels=1)
    assert Preprocessing(size=8, crop=1.0, **AS_IS)(x).shape == (2, 3, 8, 8)
    assert Preprocessing(size=None, rgb=False, **AS_IS)(x).shape == (2, 1, 8, 8)


def test_values_stay_between_0_and_1():
    edges = (images(8, 8) > 0.5).float()
    for resize in ("bicubic", "corner_bicubic"):
        out = Preprocessing(size=64, crop=1.0, resize=resize, **AS_IS)(edges)
        assert out.min() == 0
        assert out.max() == 1


@pytest.mark.parametrize(
    ("flags", "message"), [({"size": 0}, "image_size=0"), ({"crop": 1.5}, "crop=1.5"), ({"crop": 0.0}, "crop=0.0")]
)
def test_what_cannot_be(flags, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**flags)
