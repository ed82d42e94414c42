"""Features averaged over a few fixed views of the image: as it is, closer, turned or moved a little to either side.

What a picture shows stays the same when it is cropped or turned a little, and features that are averages over such views change less when
it is: an invariance for free, like a mirror image's features. Averages over views of *training* images under differential privacy are
those of gradients (augmentation multiplicity: De et al. 2022, arXiv 2204.13650); here features are averaged, once, and training costs what it
cost before. The views are the same for all images, so this is a fixed function of one image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.synthetic.views import crop
from scatterdp.extractors.wrapper import Wrapper

Crop = tuple[float, float, float, float]

_AS_IT_IS: Crop = (1.0, 0.0, 0.0, 0.0)
_MOST_VIEWS = 64
_LEAST_SIDE, _LARGEST_SIDE = 0.1, 2.0
_ALGORITHM = 1


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Which views.

    Args:
        crops: of each view ``(side, degrees, right, down)``: the side of what is shown, in sides of the image (0.8 shows it closer, 1.25
            from farther away, in its reflections), by how much it is turned, and where its middle lies, in pixels from the image's middle;
            ``right`` and ``down`` may be left out.

    Raises:
        ConfigError: no crops, or one out of range.
    """

    crops: tuple[tuple[float, ...], ...] = (
        *((1, 0), (0.85, 0), (0.7, 0)),
        *((0.92, 10), (0.92, -10), (0.8, 18), (0.8, -18)),
        *((0.9, 0, 2, 0), (0.9, 0, -2, 0)),
    )

    def __post_init__(self) -> None:
        crops: Any = self.crops
        if not isinstance(crops, tuple | list) or not 1 <= len(crops) <= _MOST_VIEWS:
            raise ConfigError(f"crops={crops!r}: expected 1 to {_MOST_VIEWS} crops, such as ((1, 0), (0.85, 0))")
        object.__setattr__(self, "crops", tuple(_checked(given) for given in crops))


def _checked(given: Any) -> Crop:
    """A crop of four numbers; one notation for equal views, so that they have one fingerprint."""
    expected = f"crops: {given!r} in it, expected (side, degrees) or (side, degrees, right, down)"
    if not isinstance(given, tuple | list) or len(given) not in (2, 4):
        raise ConfigError(expected)
    if not all(isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6 for value in given):
        raise ConfigError(f"{expected}, finite numbers")
    side, degrees, right, down = (float(value) for value in (*given, 0, 0)[:4])
    if not _LEAST_SIDE <= side <= _LARGEST_SIDE:
        raise ConfigError(f"{expected}, the side from {_LEAST_SIDE} to {_LARGEST_SIDE:g}")
    return side, degrees, right, down


@dataclass(frozen=True, kw_only=True)
class _WrappedConfig:
    """What sees the views: an extractor and its configuration; and the views."""

    extractor: str
    config: Any
    crops: tuple[tuple[float, ...], ...]


class Views(Wrapper):
    """Another extractor's features, averaged over views; see :class:`~scatterdp.extractors.base.Extractor`.

    Args:
        extractor: sees each view.
        config: which views.

    Raises:
        ConfigError: a view whose middle lies outside the image.
    """

    name = "views"

    def __init__(self, extractor: Extractor, config: ViewsConfig) -> None:
        _, height, width = extractor.input_shape
        for given in config.crops:
            if abs(given[2]) > width / 2 or abs(given[3]) > height / 2:
                raise ConfigError(f"crops: the middle of {given} lies outside the image of {height}×{width} pixels")
        super().__init__(extractor, _WrappedConfig, preprocessing={}, algorithm=_ALGORITHM, crops=config.crops)

    def _features(self, images: Tensor) -> Tensor:
        """The mean of the extractor's features of every :func:`view`."""
        first, *others = self.config.crops
        features = self.extractor(view(images, first))
        for given in others:
            features += self.extractor(view(images, given))
        return features.div_(len(self.config.crops))


def view(images: Tensor, given: tuple[float, ...]) -> Tensor:
    """One view of each image.

    Args:
        images: ``(B, C, H, W)`` float in [0, 1].
        given: ``(side, degrees, right, down)``, as in :class:`ViewsConfig`; ``(1, 0, 0, 0)`` is the image itself, to the bit.

    Returns:
        The same shape, in [0, 1].
    """
    if given == _AS_IT_IS or len(images) == 0:
        return images
    side, degrees, right, down = given
    height, width = images.shape[2:]
    numbers = {"side": side, "angle": math.radians(degrees), "right": 2 * right / width, "down": 2 * down / height}
    tensors = {name: images.new_full((len(images),), value) for name, value in numbers.items()}
    return crop(images, **tensors).clamp(0, 1)
