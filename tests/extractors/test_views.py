"""Features averaged over views of an image."""

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
from scatterdp.extractors.views import view


def images(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def by_scipy(image: np.ndarray, side: float, degrees: float, right: float, down: float) -> np.ndarray:
    """A view of one channel ``(H, W)``, one pixel at a time by the definition: where it comes from, and SciPy's interpolation there."""
    height, width = image.shape
    y, x = np.mgrid[:height, :width]
    x, y = (x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1
    turn = np.deg2rad(degrees)
    from_x = side * (np.cos(turn) * x - np.sin(turn) * y) + 2 * right / width
    from_y = side * (np.sin(turn) * x + np.cos(turn) * y) + 2 * down / height
    places = [(from_y + 1) / 2 * height - 0.5, (from_x + 1) / 2 * width - 0.5]
    return ndimage.map_coordinates(image, places, order=1, mode="reflect")


@pytest.mark.parametrize("crop", [(0.8, 0, 0, 0), (0.9, 10, 0, 0), (0.7, -25, 1.5, -2), (1, 0, 3, 0), (1.3, 0, 0, 0)])
def test_a_view_is_what_scipy_interpolates(crop):
    pictures = images(2, 3, 12, 10).double()
    expected = [[by_scipy(channel, *crop) for channel in picture] for picture in pictures.numpy()]
    torch.testing.assert_close(view(pictures, crop), torch.from_numpy(np.array(expected)), rtol=0, atol=1e-9)


def test_a_shift_by_whole_pixels_is_a_shift():
    picture = images(1, 1, 6, 6)
    shown = view(picture, (1, 0, 2, 1))
    torch.testing.assert_close(shown[..., :5, :4], picture[..., 1:, 2:])
    torch.testing.assert_close(shown[..., 5, :4], picture[..., 5, 2:])  # beside the edge: its reflection


def test_features_are_the_mean_of_those_of_the_views():
    extractor = make_extractor(
        "views(scatternet(J=1) + 0.5*patches(patches=32, size=3), crops=((1, 0), (0.8, 0)))", (3, 8, 8)
    )
    inner = make_extractor("scatternet(J=1) + 0.5*patches(patches=32, size=3)", (3, 8, 8))
    pictures = images(3, 3, 8, 8)
    expected = (inner(pictures) + inner(view(pictures, (0.8, 0, 0, 0)))) / 2
    torch.testing.assert_close(extractor(pictures), expected)
    assert (extractor(pictures) - inner(pictures)).abs().max() > 0.01
    assert tuple(extractor(pictures).shape[1:]) == extractor.output_shape == inner.output_shape
    assert extractor(pictures[:0]).shape == (0, *extractor.output_shape)


def test_the_image_alone_is_the_extractor_itself():
    pictures = images(2, 1, 8, 8)
    alone = make_extractor("views(scatternet(J=1), crops=((1, 0),))", (1, 8, 8))
    assert torch.equal(alone(pictures), make_extractor("scatternet(J=1)", (1, 8, 8))(pictures))


@given(st.integers(0, 2**31))
def test_each_image_on_its_own_and_unchanged(seed):
    extractor = make_extractor("views(pixels)", (3, 7, 9))
    pictures = images(3, 3, 7, 9, seed=seed)
    before = pictures.clone()
    together = extractor(pictures)
    assert torch.equal(pictures, before)
    torch.testing.assert_close(torch.cat([extractor(picture) for picture in pictures.split(1)]), together)
    others = torch.cat([pictures[:1], 1 - pictures[1:]])
    torch.testing.assert_close(extractor(others)[0], together[0])
    assert torch.equal(extractor(pictures), together)


def test_views_of_views_and_upright_images():
    pictures = images(2, 1, 8, 8)
    twice = make_extractor("views(views(pixels, crops=((0.9, 0),)), crops=((0.8, 0), (1, 5)))", (1, 8, 8))
    inner = make_extractor("pixels", (1, 8, 8))
    shown = [view(view(pictures, crop), (0.9, 0, 0, 0)) for crop in ((0.8, 0, 0, 0), (1, 5, 0, 0))]
    torch.testing.assert_close(twice(pictures), (inner(shown[0]) + inner(shown[1])) / 2)
    upright = make_extractor("views(deskew(pixels), crops=((0.8, 10),))", (1, 8, 8))
    torch.testing.assert_close(upright(pictures), inner(deskewed(view(pictures, (0.8, 10, 0, 0)))))


def test_the_fingerprint_names_the_views_and_what_sees_them():
    texts = ["pixels", "views(pixels)", "views(pixels, crops=((1, 0), (0.9, 0)))", "views(pixels, crops=((0.9, 0), (1, 0)))",
             "views(pixels, crops=((1, 0), (0.9, 1)))", "views(pixels, crops=((1, 0), (0.9, 0, 1, 0)))", "views(scatternet)",
             "deskew(pixels)", "views(deskew(pixels))"]  # fmt: skip
    assert len({make_extractor(text, (1, 8, 8)).fingerprint for text in texts}) == len(texts)
    same = ("views(pixels, crops=[[1, 0]])", "views(pixels, crops=((1.0, 0, 0, 0),))")
    assert len({make_extractor(text, (1, 8, 8)).fingerprint for text in same}) == 1


def test_before_one_part_or_several():
    extractor = make_extractor("pixels + 0.5*views(pixels + 2*scatternet(J=1, L=1))", (1, 8, 8))
    assert isinstance(extractor, Concat)
    assert blocks_of(extractor) == (
        Block(name="pixels", shape=(1, 8, 8)),
        Block(name="views.pixels", shape=(1, 8, 8), scale=0.5),
        Block(name="views.scatternet", shape=(2, 4, 4), scale=1.0),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("views", "views: of which extractor? such as views(scatternet)"),
        ("views(resnet)", "extractor='resnet': expected one of deep_patches, patches, pixels, scatternet, or deskew(…) or map_patches(…) or views(…) of"),
        ("views(pixels, angle=3)", "angle=3: views has no such setting, expected one of crops"),
        ("deskew(pixels, crops=3)", "crops=3: deskew has no settings"),
        ("views(pixels, crops=())", "crops=(): of views, expected 1 to 64 crops, such as"),
        ("views(pixels, crops=3)", "crops=3: of views, expected 1 to 64 crops"),
        ("views(pixels, crops=(1, 0))", "crops: of views, 1 in it, expected (side, degrees) or"),
        ("views(pixels, crops=((1, 0, 2),))", "crops: of views, (1, 0, 2) in it, expected (side, degrees) or"),
        ("views(pixels, crops=((1, 'a'),))", "crops: of views, (1, 'a') in it, expected (side, degrees) or"),
        ("views(pixels, crops=((1, True),))", "crops: of views, (1, True) in it, expected (side, degrees) or"),
        ("views(pixels, crops=((1, 1e999),))", "crops: of views, (1, inf) in it, expected (side, degrees) or"),
        ("views(pixels, crops=((0, 0),))", "crops: of views, (0, 0) in it, expected (side, degrees) or"),
        ("views(pixels, crops=((1, 0, 4.5, 0),))", "crops: of views, the middle of (1.0, 0.0, 4.5, 0.0) lies outside the image of 8×8"),
    ],
)  # fmt: skip
def test_bad_specifications(text, message):
    with pytest.raises(ConfigError) as raised:
        make_extractor(text, (1, 8, 8))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("bad", [float("nan"), 1.5])
def test_refuses_what_is_no_image(bad):
    with pytest.raises(UserError, match="images"):
        make_extractor("views(pixels)", (1, 4, 4))(torch.full((1, 1, 4, 4), bad))
