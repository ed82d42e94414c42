"""Extractors in words, and side by side."""

from __future__ import annotations

import re

import pytest
import torch

from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Block, blocks_of
from scatterdp.extractors.concat import Concat
from scatterdp.extractors.specification import Part, parse_extractor


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pixels", [Part("pixels", {})]),
        (" patches( size = 5, mirror=False ) ", [Part("patches", {"size": 5, "mirror": False})]),
        ("a+b(x='y')+0.5*c", [Part("a", {}), Part("b", {"x": "y"}), Part("c", {}, 0.5)]),
        ("2*a(x=-1.5)", [Part("a", {"x": -1.5}, 2.0)]),
    ],
)
def test_words(text, parts):
    assert parse_extractor(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", "a+", "a-b", "a b", "a(1)", "a(**x)", "a.b", "[a]", "(" * 500, "lambda: a", "1", "'a'"],
)  # fmt: skip
def test_what_is_no_specification(text):
    with pytest.raises(ConfigError, match="expected extractors joined by"):
        parse_extractor(text)


@pytest.mark.parametrize(
    "text",
    ["2*(a+b)", "a*2", "2*3*a", "True*a", "-1*a", "-a", "0*a", "nan*a", "1e-300*a", "1e7*a", "1" + "0" * 400 + "*a"],
)
def test_what_is_no_weight(text):
    with pytest.raises(
        ConfigError, match=r"expected a number from 1e-06 to 1e\+06 before one extractor, such as 0\.5\*"
    ):
        parse_extractor(f"b+{text}")


@pytest.mark.parametrize("value", ["y", "nan", "__import__('os')", "1+x", "{**y}"])
def test_what_is_no_value(value):
    with pytest.raises(
        ConfigError, match=r"^x=.*: of a, expected a number, True, False, words in quotes or a tuple of these$"
    ):
        parse_extractor(f"b+a(x={value})")


def test_messages_say_what_is_wrong():
    with pytest.raises(ConfigError, match=r"\('\(' was never closed\)$"):
        parse_extractor("a(")
    with pytest.raises(ConfigError, match=r"^x: of a, is given twice; give it once$"):
        parse_extractor("b+a(x=1, y=2, x=1)")
    with pytest.raises(ConfigError, match="extractor='patchs': did you mean patches"):
        make_extractor("patchs", (1, 8, 8))


SPECIFICATION = "scatternet(J=1, L=4) + 0.5*patches(patches=32, size=3, grid=2) + patches(patches=32, size=4, grid=1)"


def test_parts_stand_side_by_side():
    extractor = make_extractor(SPECIFICATION, (1, 8, 8))
    assert isinstance(extractor, Concat)
    images = torch.rand(3, 1, 8, 8)
    expected = torch.cat([part(images).flatten(1) for part in extractor.parts], 1)
    assert torch.equal(extractor(images), expected[:, :, None, None])
    assert extractor.output_shape == (expected.shape[1], 1, 1)
    assert blocks_of(extractor) == (
        Block(name="scatternet", shape=(5, 4, 4)),
        Block(name="patches", shape=(64, 2, 2), scale=0.5),
        Block(name="patches-2", shape=(64, 1, 1)),
    )
    assert extractor(images[:0]).shape == (0, *extractor.output_shape)


def test_the_fingerprint_names_parts_order_and_scales():
    texts = [SPECIFICATION, SPECIFICATION.replace("0.5*", "0.25*"), SPECIFICATION.replace("J=1", "J=2"), "patches(size=3)",
             "2*patches(size=3)", "patches(size=3)+pixels", "pixels+patches(size=3)"]  # fmt: skip
    assert len({make_extractor(text, (1, 8, 8)).fingerprint for text in texts}) == len(texts)
    assert make_extractor(SPECIFICATION, (1, 8, 8)).fingerprint == make_extractor(SPECIFICATION, (1, 8, 8)).fingerprint


def test_a_single_part_is_itself():
    assert make_extractor("patches(size=3)", (1, 8, 8)).fingerprint == (
        make_extractor("patches", (1, 8, 8), size=3).fingerprint
    )


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("resnet", {}, "extractor='resnet': expected one of deep_patches, patches, pixels, scatternet, or deskew"),
        ("scatternet+resnet", {}, "extractor='resnet': expected one of"),
        ("scatternet+patches", {"J": 1}, "J: of which part?"),
        ("scatternet(J=2)", {"J": 1}, "J=1: of scatternet, whose brackets say J=2; give one of them"),
        ("deskew(scatternet(J=2))", {"J": 1}, "J=1: of scatternet, whose brackets say J=2; give one of them"),
        ("patches(scatternet)", {}, "extractor='patches(…)': patches takes settings and no extractor in its brackets"),
        ("pixels+patches(size=9)", {}, "size=9: of patches, the images are 1×8×8, take smaller patches"),
        ("views(deskew(pixels+patches(size=9)))", {}, "size=9: of patches, the images are 1×8×8"),
        ("map_patches(scatternet)", {}, "grid=3: of map_patches, expected 1 to 2, the positions a side"),
        ("views(deskew(scatternet(J=2)))", {"J": 1}, "J=1: of scatternet, whose brackets say J=2; give one of them"),
        ("scatternet(K=3)", {}, "K=3: scatternet has no such setting"),
        ("pixels(x=1)+pixels", {}, "x=1: pixels has no settings"),
    ],
)
def test_bad_parts(text, settings, message):
    with pytest.raises(ConfigError) as raised:
        make_extractor(text, (1, 8, 8), **settings)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("shape", [(32, 32), (3, -1, 32), (3.0, 8, 8)])
def test_what_is_no_shape_of_images(shape):
    with pytest.raises(
        ConfigError, match=rf"^input_shape={re.escape(str(shape))}: expected \(C, H, W\), whole numbers"
    ):
        make_extractor("scatternet", shape)


def test_scales_are_finite_and_positive():
    with pytest.raises(ConfigError, match=r"extractor: scales 0.0: expected a finite number > 0"):
        Concat([make_extractor("pixels", (1, 8, 8))], [0.0])


def test_parts_must_take_the_same_images():
    with pytest.raises(ConfigError, match="they take images of"):
        Concat([make_extractor("pixels", (1, 8, 8)), make_extractor("pixels", (1, 8, 9))], [1.0, 1.0])
    with pytest.raises(ConfigError, match="at least one"):
        Concat([], [])
    with pytest.raises(UserError, match="NaN"):
        make_extractor("pixels+pixels", (1, 8, 8))(torch.full((1, 1, 8, 8), float("nan")))
