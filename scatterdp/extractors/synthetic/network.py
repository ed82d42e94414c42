"""Images of untrained convolutional generators (Baradad et al. 2021, "Learning to See by Looking at Noise", §3.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import conv2d, interpolate, leaky_relu_, pad

from scatterdp.extractors.synthetic.arguments import check_count, check_number, check_request, random_streams
from scatterdp.extractors.synthetic.colour import colour_mixing, expose

_GROUP = 8  # images computed by one call: always so many, that rounding does not depend on num_images
_COARSEST = 4  # side of the first layer's noise, at most


def random_network(
    num_images: int,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    width: int = 16,
    noise: float = 0.3,
    chroma: float = 0.15,
) -> np.ndarray:
    """Images of convolutional generators with random weights, fresh for each image, as StyleGAN before training.

    Noise on a grid of at most 4×4 goes through layers of 3×3 convolution, noise, bias and leaky ReLU, with bilinear
    upsampling by two between them. Runs on one of torch's threads, and leaves their number as it was.

    Args:
        num_images: n.
        image_shape: ``(C, H, W)``, any C ≥ 1.
        seed: non-negative integer. Image i depends on it, on i, the shape and the options, not on ``num_images``.
        width: channels inside the network, 2 … 256.
        noise: standard deviation, in [0, 10], of what each layer adds at each pixel: fine structure.
        chroma: largest share of an image's variance, in [0, 1], that is colour and not brightness.

    Returns:
        ``(n, C, H, W)`` float32 in [0, 1].

    Raises:
        ConfigError: a negative count or seed, an empty image shape, or an option out of range.

    >>> random_network(2, (3, 8, 8), seed=0).shape
    (2, 3, 8, 8)
    """
    check_request(num_images, image_shape, seed)
    check_count("width", width, 2, 256)
    check_number("noise", noise, 0, 10)
    check_number("chroma", chroma, 0, 1)
    images = np.empty((num_images, *image_shape), np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a group is too little work to share: on a busy machine waiting costs several times more
    try:
        for start in range(0, num_images, _GROUP):
            streams = random_streams(seed, start, start + _GROUP, 3)
            part = _generate(streams, image_shape, width, noise)
            mixing = colour_mixing(streams, image_shape[0], chroma)
            part = np.matmul(mixing, part.reshape(_GROUP, image_shape[0], -1)).reshape(part.shape)
            expose(part, streams)
            images[start : start + _GROUP] = part[: num_images - start]
    finally:
        torch.set_num_threads(threads)
    return images


@torch.no_grad()
def _generate(
    streams: list[np.random.Generator], image_shape: tuple[int, int, int], width: int, noise: float
) -> np.ndarray:
    """``(b, C, H, W)`` of mean 0 and variance 1 an image and channel."""
    channels, *size = image_shape
    sizes = [tuple(size)]
    while min(sizes[0]) > _COARSEST:
        sizes.insert(0, tuple(-(-side // 2) for side in sizes[0]))
    count = len(streams)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([stream.standard_normal(shape, np.float32) for stream in streams]))

    x = normal(width, *sizes[0])
    for layer, here in enumerate(sizes):
        if layer:
            x = interpolate(x, size=here, mode="bilinear", align_corners=False)
        weight = normal(width, width, 3, 3) / (9 * width) ** 0.5
        framed = pad(x, (1, 1, 1, 1), mode="replicate").reshape(1, count * width, here[0] + 2, here[1] + 2)
        x = conv2d(framed, weight.flatten(0, 1), groups=count).reshape(count, width, -1)
        x = torch.baddbmm(
            0.5 * normal(width, 1), noise * normal(width, 1), normal(1, here[0] * here[1])
        ) + x / _magnitude(x)
        x = leaky_relu_(x, 0.2).reshape(count, width, *here)
    x = torch.bmm(normal(channels, width), x.reshape(count, width, -1))
    x -= x.mean(2, keepdim=True)
    return (x / _magnitude(x)).reshape(count, *image_shape).numpy()


def _magnitude(x: torch.Tensor) -> torch.Tensor:
    """``(b, C, 1)`` root mean squares of ``(b, C, H·W)``."""
    return (torch.linalg.vector_norm(x, dim=2, keepdim=True) / x.shape[2] ** 0.5).clamp_min(1e-6)
