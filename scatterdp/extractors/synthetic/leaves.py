"""Dead leaves: occluding shapes of power-law sizes, dropped until nothing behind them shows.

Their edges, occlusions and scale statistics are those of natural images (Lee, Mumford & Huang 2001), and networks learn
useful features from them (Baradad et al. 2021). No data set is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from scatterdp.errors import ConfigError
from scatterdp.extractors.synthetic.arguments import check_count, check_number, check_request, random_streams
from scatterdp.extractors.synthetic.spectrum import power_law

_BLOCK_VALUES = 1 << 16  # pixels painted together: the working arrays stay in the processor's cache
_GROUP_VALUES = 1 << 15  # pixels under leaves whose geometry is computed together


@dataclass(frozen=True, kw_only=True)
class DeadLeavesConfig:
    """What the leaves look like. The defaults are the images that released bounds rest on."""

    rectangles: float = 0.5
    """Proportion of rectangles among the leaves, in [0, 1]; the others are ellipses."""
    smallest: float = 1 / 16
    """Smallest radius, as a fraction of the image's shorter side, in (0, largest]."""
    largest: float = 1 / 2
    """Largest radius, likewise, at most 4."""
    exponent: float = 3.0
    """p in [0, 6] of the density ∝ r⁻ᵖ of radii. 3: each octave of sizes covers the same area."""
    leaves: int = 200
    """Leaves an image, some of them outside. 200 cover about 99 % of the background at the default sizes."""
    colours: Literal["uniform", "correlated"] = "uniform"
    """uniform: every leaf and channel by itself. correlated: as in photographs, around one colour an image, brightness
    varying more than hue."""
    base_spread: float = 0.08
    """correlated: standard deviation over images of each channel of that colour, around ½."""
    luminance_spread: float = 0.25
    """correlated: standard deviation over leaves of brightness."""
    chroma_spread: float = 0.07
    """correlated: standard deviation over leaves of each channel by itself."""
    texture: Literal["off", "noise", "gratings"] = "off"
    """What fills the leaves: one flat colour, 1/f noise or sinusoidal gratings."""
    texture_strength: float = 0.08
    """Largest standard deviation of a leaf's texture; leaves draw theirs uniformly from 0."""
    gradient: float = 0.3
    """Range, around 0, of the change of brightness over one radius along each axis of a leaf."""
    edge_softness: float = 1.0
    """Width in pixels over which a leaf's edge fades, in [0.01, 100]."""
    supersampling: int = 1
    """k: paint k times larger a side and average k×k pixels, in 1 … 8."""
    noise: float = 0.02
    """Standard deviation of white Gaussian noise, added last."""

    def __post_init__(self) -> None:
        check_number("rectangles", self.rectangles, 0, 1)
        check_number("largest", self.largest, 1e-4, 4)
        check_number("smallest", self.smallest, 1e-4, self.largest)
        check_number("exponent", self.exponent, 0, 6)
        for name in ("base_spread", "luminance_spread", "chroma_spread", "texture_strength", "gradient", "noise"):
            check_number(name, getattr(self, name), 0, 2)
        check_number("edge_softness", self.edge_softness, 0.01, 100)
        check_count("leaves", self.leaves, 1, 100_000)
        check_count("supersampling", self.supersampling, 1, 8)
        for name, allowed in (("colours", ("uniform", "correlated")), ("texture", ("off", "noise", "gratings"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")


def dead_leaves(
    num_images: int, image_shape: tuple[int, int, int], *, seed: int, config: DeadLeavesConfig | None = None
) -> np.ndarray:
    """Seeded images of occluding ellipses and rectangles (Lee, Mumford & Huang 2001).

    By default radii r have density ∝ r⁻³ (each octave of sizes covers the same area), axis ratios are in [½, 2] and
    orientations are uniform; a leaf has a random colour, a slight linear gradient and a soft edge of one pixel; the
    image has slight Gaussian noise.

    Args:
        num_images: n.
        image_shape: ``(C, H, W)``, any C ≥ 1.
        seed: non-negative integer. Image i depends on the seed, i, the shape and the config only, not on ``num_images``.
        config: other leaves than the default ones.

    Returns:
        ``(n, C, H, W)`` float32 in [0, 1].

    Raises:
        ConfigError: a negative count or seed, or an empty image shape.

    >>> a, b = dead_leaves(2, (3, 16, 16), seed=0), dead_leaves(5, (3, 16, 16), seed=0)
    >>> bool((a == b[:2]).all())
    True
    >>> dead_leaves(1, (1, 8, 8), seed=0, config=DeadLeavesConfig(texture="noise", rectangles=0)).shape
    (1, 1, 8, 8)
    """
    check_request(num_images, image_shape, seed)
    config = config or DeadLeavesConfig()
    channels, height, width = image_shape
    images = np.empty((num_images, channels, height, width), np.float32)
    block = max(1, _BLOCK_VALUES // max(height * width * config.supersampling**2, config.leaves))
    for start in range(0, num_images, block):
        part = images[start : start + block]
        _fill(part, random_streams(seed, start, start + len(part)), config)
    return images


def photographic_leaves(num_images: int, image_shape: tuple[int, int, int], *, seed: int) -> np.ndarray:
    """Dead leaves in correlated colours, as :func:`dead_leaves` otherwise."""
    return dead_leaves(num_images, image_shape, seed=seed, config=DeadLeavesConfig(colours="correlated"))


def _fill(images: np.ndarray, streams: list[np.random.Generator], config: DeadLeavesConfig) -> None:
    """Fill ``(b, C, H, W)`` with one image a random stream."""
    count, channels, height, width = images.shape
    k = config.supersampling
    uniforms = np.stack([stream.random((config.leaves, 8 + channels), np.float32) for stream in streams])
    background = np.stack([stream.random(channels, np.float32) for stream in streams])
    noise = np.stack([stream.standard_normal(images.shape[1:], np.float32) for stream in streams])

    colours = uniforms[:, :, 8:]
    if config.colours == "correlated":
        normals = np.stack(
            [stream.standard_normal((config.leaves + 2, channels + 1), np.float32) for stream in streams]
        )
        base = 0.5 + config.base_spread * normals[:, :1, 1:]
        spread = config.luminance_spread * normals[:, 1:, :1] + config.chroma_spread * normals[:, 1:, 1:]
        palette = np.clip(base + spread, 0, 1)
        background, colours = palette[:, 0], palette[:, 1:]

    canvas = np.empty((channels, count, k * height, k * width), np.float32)
    canvas[...] = background.T[:, :, None, None]
    texture = _Texture(streams, config, (k * height, k * width)) if config.texture != "off" else None
    _paint(canvas.reshape(channels, -1), (k * height, k * width), uniforms, colours, config, texture)
    if k > 1:
        canvas = canvas.reshape(channels, count, height, k, width, k).mean((3, 5))
    images[...] = canvas.transpose(1, 0, 2, 3)
    images += config.noise * noise
    np.clip(images, 0, 1, out=images)


def _paint(
    canvas: np.ndarray,
    size: tuple[int, int],
    uniforms: np.ndarray,
    colours: np.ndarray,
    config: DeadLeavesConfig,
    texture: _Texture | None,
) -> None:
    """Blend the leaves of all images, back to front, into a canvas ``(C, b·H·W)`` of backgrounds.

    Only pixels in a leaf's bounding box are visited: a list of (leaf, pixel) pairs, in the order of the leaves.
    """
    height, width = size
    count, leaves, _ = uniforms.shape
    side = min(size)
    margin = config.largest * side  # leaves centred outside still reach in
    softness = np.float32(config.edge_softness * config.supersampling)
    draws = uniforms.transpose(1, 0, 2).reshape(leaves * count, -1)  # all first leaves, all second leaves, …

    radius = side / _inverse_radius(draws[:, 0], config)
    ratio = np.exp2(draws[:, 1] - 0.5)  # √(axis ratio)
    angle = 2 * np.pi * draws[:, 2]
    centre_y = draws[:, 3] * (height + 2 * margin) - margin
    centre_x = draws[:, 4] * (width + 2 * margin) - margin
    cos, sin = np.cos(angle), np.sin(angle)
    is_rectangle = draws[:, 5] < config.rectangles

    # The bounding box, with the soft edge and one part in a thousand for rounding.
    along_x, across_x, along_y, across_y = np.abs(
        radius * np.stack([ratio * cos, sin / ratio, ratio * sin, cos / ratio])
    )
    reach = 1.001 * (1 + softness / (2 * radius))
    reach_x = reach * np.where(is_rectangle, along_x + across_x, np.hypot(along_x, across_x))
    reach_y = reach * np.where(is_rectangle, along_y + across_y, np.hypot(along_y, across_y))
    left, top = (
        np.maximum(np.floor(c - r - 0.5), 0).astype(np.int64) for c, r in ((centre_x, reach_x), (centre_y, reach_y))
    )
    right = np.minimum(np.ceil(centre_x + reach_x + 0.5), width).astype(np.int64)
    bottom = np.minimum(np.ceil(centre_y + reach_y + 0.5), height).astype(np.int64)
    seen = np.flatnonzero((right > left) & (bottom > top))

    # One column a leaf that can be seen, in the order of painting.
    left, top, right, bottom = left[seen], top[seen], right[seen], bottom[seen]
    radius, ratio, cos, sin, is_rectangle = radius[seen], ratio[seen], cos[seen], sin[seen], is_rectangle[seen]
    step, image = np.divmod(seen, count)
    gradient = config.gradient * (draws[seen, 6:8] - 0.5)  # change of brightness over one radius, along each axis
    colour = np.ascontiguousarray(colours[image, step].T)
    u_of_x, u_of_y = cos / (radius * ratio), sin / (radius * ratio)
    v_of_x, v_of_y = sin * ratio / radius, cos * ratio / radius
    centre_x, centre_y = centre_x[seen], centre_y[seen]
    sharpness = radius / softness

    pixels_until = np.cumsum((right - left) * (bottom - top))
    start = 0
    while start < len(seen):
        limit = _GROUP_VALUES + (pixels_until[start - 1] if start else 0)
        stop = max(start + 1, int(np.searchsorted(pixels_until, limit)))
        # From leaves to their rows, from rows to their pixels.
        heights = bottom[start:stop] - top[start:stop]
        leaf = np.repeat(np.arange(start, stop), heights)
        row = np.arange(len(leaf)) - np.repeat(np.cumsum(heights) - heights - top[start:stop], heights)
        dy = (row + 0.5).astype(np.float32) - centre_y[leaf]
        widths = (right - left)[leaf]
        ends = np.cumsum(widths)
        column = np.arange(ends[-1]) - np.repeat(ends - widths - left[leaf], widths)
        pixel = np.repeat((image[leaf] * height + row) * width, widths) + column
        dx = (column + 0.5).astype(np.float32) - np.repeat(centre_x[leaf], widths)
        # Coordinates along the leaf's axes, in radii: its edge is at distance 1.
        u = dx * np.repeat(u_of_x[leaf], widths) + np.repeat(dy * u_of_y[leaf], widths)
        v = np.repeat(dy * v_of_y[leaf], widths) - dx * np.repeat(v_of_x[leaf], widths)
        distance = np.where(
            np.repeat(is_rectangle[leaf], widths), np.maximum(np.abs(u), np.abs(v)), np.sqrt(u * u + v * v)
        )
        leaf = np.repeat(leaf, widths)
        cover = np.clip((1 - distance) * sharpness[leaf] + 0.5, 0, 1)
        inside = np.flatnonzero(cover)
        leaf, pixel, cover, u, v = leaf[inside], pixel[inside], cover[inside], u[inside], v[inside]
        shade = gradient[leaf, 0] * u + gradient[leaf, 1] * v
        if texture is not None:
            shade += texture.at(step[leaf], image[leaf], pixel)
        paint = colour[:, leaf] + shade
        # Leaves of one step lie on different images: they are blended together.
        bounds = np.flatnonzero(np.diff(step[leaf], prepend=-1, append=-1))
        for begin, end in pairwise(bounds):
            at = pixel[begin:end]
            below = canvas[:, at]
            canvas[:, at] = below + cover[begin:end] * (paint[:, begin:end] - below)
        start = stop


def _inverse_radius(uniform: np.ndarray, config: DeadLeavesConfig) -> np.ndarray:
    """1/r, r over the shorter side: the inverse distribution function of the density ∝ r⁻ᵖ between the two radii."""
    power = 1 - config.exponent
    if power == 0:
        return 1 / (config.smallest * (config.largest / config.smallest) ** uniform)
    between = config.smallest**power + uniform * (config.largest**power - config.smallest**power)
    return np.sqrt(between) if power == -2 else between ** (-1 / power)


class _Texture:
    """What is added to the leaves' colours: for each image periodic 1/f noise, seen by each leaf at another place, or for
    each leaf a sinusoid."""

    def __init__(self, streams: list[np.random.Generator], config: DeadLeavesConfig, size: tuple[int, int]) -> None:
        draws = np.stack([stream.random((config.leaves, 4), np.float32) for stream in streams], axis=1)
        self.height, self.width = size
        self.strength = config.texture_strength * draws[:, :, 0]
        self.fields = None
        if config.texture == "noise":
            white = np.stack([stream.standard_normal(size, np.float32) for stream in streams])
            self.fields = power_law(white, np.ones(len(streams), np.float32)).reshape(len(streams), -1)
            self.shift = (draws[:, :, 1] * (self.height * self.width)).astype(np.int64)
        else:
            frequency = 2 * np.pi / config.supersampling * np.exp2(-4 + 2.5 * draws[:, :, 1])  # 1/16 … 1/3 a pixel
            self.along_y, self.along_x = (frequency * f(2 * np.pi * draws[:, :, 2]) for f in (np.sin, np.cos))
            self.phase = 2 * np.pi * draws[:, :, 3]

    def at(self, step: np.ndarray, image: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        """The texture of leaf ``step`` of an image at a pixel, an index into all images' pixels; all ``(m,)``."""
        place = pixel - image * (self.height * self.width)
        if self.fields is not None:
            values = self.fields[image, (place + self.shift[step, image]) % (self.height * self.width)]
        else:
            row, column = (value.astype(np.float32) for value in np.divmod(place, self.width))
            phase = self.along_y[step, image] * row + self.along_x[step, image] * column + self.phase[step, image]
            values = np.float32(np.sqrt(2)) * np.sin(phase)
        return self.strength[step, image] * values
