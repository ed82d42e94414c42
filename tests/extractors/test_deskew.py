"""Upright figures before features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Block, blocks_of
from scatterdp.extractors.concat import Concat
from scatterdp.extractors.deskew import deskewed


def bar(*, slant: float, right: float = 0.0, size: int = 28) -> torch.Tensor:
    """A smooth bar that leans by ``slant`` pixels a row and stands ``right`` of the middle: ``(1, 1, size, size)``."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    image = np.exp(-((x - right - slant * y) ** 2) / 4 - (y / 6) ** 4)
    return torch.from_numpy(image).float()[None, None]


def moments(image: torch.Tensor) -> tuple[float, float, float]:
    """Column and row of the centre of mass, and the slant, by SciPy and the definition."""
    picture = image[0, 0].double().numpy()
    row, column = np.asarray(ndimage.center_of_mass(picture)).tolist()
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    covariance = (picture * (y - row) * (x - column)).sum() / picture.sum()
    return column, row, covariance / ((picture * (y - row) ** 2).sum() / picture.sum())


@given(st.floats(-0.6, 0.6), st.floats(-3, 3))
def test_a_leaning_bar_stands_upright_in_the_middle(slant, right):
    upright = deskewed(bar(slant=slant, right=right))
    column, row, left_over = moments(upright)
    assert abs(column - 13.5) < 0.05
    assert abs(row - 13.5) < 0.05
    assert abs(left_over) < 0.03
    assert (upright - bar(slant=0)).abs().max() < 0.12  # interpolation blurs a little


def test_without_the_correction_it_leans():
    assert moments(bar(slant=0.5))[2] == pytest.approx(0.5, abs=0.01)


def test_black_stays_black_and_a_thin_line_has_no_slant():
    assert torch.equal(deskewed(torch.zeros(2, 1, 5, 6)), torch.zeros(2, 1, 5, 6))
    line = torch.zeros(1, 1, 7, 9)
    line[0, 0, 3, 1:8] = 1.0
    torch.testing.assert_close(deskewed(line), line)


@given(st.integers(0, 2**31), st.sampled_from([(5, 6), (28, 28), (1, 4)]))
def test_each_image_on_its_own_within_its_range(seed, size):
    images = torch.rand(3, 1, *size, generator=torch.Generator().manual_seed(seed)) ** 8
    together = deskewed(images)
    assert together.min() >= 0
    assert together.max() <= 1
    torch.testing.assert_close(torch.cat([deskewed(image) for image in images.split(1)]), together)


def test_features_of_upright_images():
    images = bar(slant=0.4, size=8)
    extractor = make_extractor("deskew(scatternet(J=1))", (1, 8, 8))
    inner = make_extractor("scatternet(J=1)", (1, 8, 8))
    torch.testing.assert_close(extractor(images), inner(deskewed(images)))
    assert (extractor(images) - inner(images)).abs().max() > 0.01
    assert extractor.fingerprint not in (inner.fingerprint, make_extractor("deskew(scatternet)", (1, 8, 8)).fingerprint)
    assert extractor.output_shape == inner.output_shape


def test_before_one_part_or_several():
    extractor = make_extractor("pixels + 0.5*deskew(pixels + 2*scatternet(J=1, L=1))", (1, 8, 8))
    assert isinstance(extractor, Concat)
    assert blocks_of(extractor) == (
        Block(name="pixels", shape=(1, 8, 8)),
        Block(name="deskew.pixels", shape=(1, 8, 8), scale=0.5),
        Block(name="deskew.scatternet", shape=(2, 4, 4), scale=1.0),
    )


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("deskew(pixels)", (3, 8, 8), "deskew: takes grey images, bright figures on black; these have 3 channels"),
        ("deskew", (1, 8, 8), "deskew: of which extractor"),
        (
            "deskew(resnet)",
            (1, 8, 8),
            "extractor='resnet': expected one of deep_patches, patches, pixels, scatternet, or deskew",
        ),
        ("pixels(pixels)", (1, 8, 8), "extractor='pixels(…)': pixels takes settings and no extractor in its brackets"),
    ],
)
def test_bad_specifications(text, shape, message):
    with pytest.raises(ConfigError) as raised:
        make_extractor(text, shape)
    assert str(raised.value).startswith(message)


def test_refuses_what_is_no_image():
    with pytest.raises(UserError, match="NaN"):
        make_extractor("deskew(pixels)", (1, 4, 4))(torch.full((1, 1, 4, 4), float("nan")))
