r"""A convolutional network on feature maps that starts where patch features do.

With x the normalised maps ``(K, h, w)``, at every place: some components of the channels, brought to length 1 and whitened; a trained
1 × 1 convolution of F filters; its responses r as :math:`\max(r - t, 0)` and :math:`\max(-r - t, 0)` (Coates & Ng 2011, "The
Importance of Encoding Versus Training", section 3.3); averages over the cells of a grid, standardised. They stand beside x itself, scaled down,
and all that is preconditioned (:class:`~scatterdp.heads.normalizers.Precondition`) for a trained linear layer, which starts at zero.

Everything but convolution and linear layer is fixed, in buffers. Buffers and the convolution's first weights come from synthetic images
(:mod:`scatterdp.training.synthetic_start`), so the network starts as a linear classifier of patch features of the maps and may move away from them. A
place of a ScatterNet's maps has seen a neighbourhood already, therefore patches are single places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scatterdp.errors import ConfigError
from scatterdp.heads.preconditioned_linear import PreconditionedLinear

FILTERS = 512
COMPONENTS = 64
DIRECTIONS = 500
THRESHOLD = 0.45  # in standard deviations of the responses that the network begins with
MAPS_SCALE = 0.5
_MOST_CHANNELS = 1024  # principal components of more take long, and flat features have no places


class PatchCNN(nn.Module):
    """``(b, K·h·w) -> (b, num_classes)`` logits.

    Args:
        shape: ``(K, h, w)`` of the maps.
        num_classes: outputs.

    Raises:
        ConfigError: more channels than maps have, such as those of features side by side.
    """

    vectors: Tensor
    bias: Tensor
    contrast: Tensor
    whitening: Tensor
    mean: Tensor
    cells: Tensor
    pooled_mean: Tensor
    pooled_scale: Tensor

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        if channels > _MOST_CHANNELS:
            raise ConfigError(
                f"arch=patch_cnn: takes maps of at most {_MOST_CHANNELS} channels, these are {channels}×{height}×{width}; take "
                "--extractor=scatternet, or the linear head"
            )
        self.shape, components = shape, min(COMPONENTS, channels)
        self.grid = (_cells(height), _cells(width))
        self.register_buffer("vectors", torch.eye(components, channels))
        self.register_buffer("bias", torch.zeros(components, 1))
        self.register_buffer("contrast", torch.ones(()))
        self.register_buffer("whitening", torch.eye(components))
        self.register_buffer("mean", torch.zeros(components, 1))
        pooling = F.adaptive_avg_pool2d(torch.eye(height * width).view(-1, height, width), self.grid)
        self.register_buffer("cells", pooling.flatten(1), persistent=False)
        self.register_buffer("pooled_mean", torch.zeros(2 * FILTERS, 1, 1))
        self.register_buffer("pooled_scale", torch.ones(2 * FILTERS, 1, 1))
        features = math.prod(shape) + 2 * FILTERS * math.prod(self.grid)
        self.filters = nn.Conv2d(components, FILTERS, 1)
        self.linear = PreconditionedLinear(features, num_classes, directions=min(DIRECTIONS, math.prod(shape) // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """``(b, …)`` maps, flat or not, to ``(b, D)``: standardised averages and the maps, before they are preconditioned."""
        flat = x.flatten(1)
        pooled = (self.pooled(flat) - self.pooled_mean) * self.pooled_scale
        return torch.cat([pooled.flatten(1), MAPS_SCALE * flat], 1)

    def pooled(self, flat: Tensor) -> Tensor:
        """``(b, K·h·w) -> (b, 2F, cells down, cells across)``."""
        patches = self.vectors @ flat.unflatten(1, (self.shape[0], -1)) + self.bias
        squares = patches.square().sum(1, keepdim=True) / max(1, patches.shape[1] - 1)
        patches = patches * (squares + self.contrast).rsqrt()
        whitened = self.whitening @ (patches - self.mean)
        responses = self.filters(whitened.unflatten(2, self.shape[1:])).flatten(2)
        # max(r - t, 0) and max(-r - t, 0) by their difference and their sum, of which only one is not zero.
        difference = F.softshrink(responses, THRESHOLD)
        means, magnitudes = difference @ self.cells, difference.abs() @ self.cells
        return (torch.cat([magnitudes + means, magnitudes - means], 1) / 2).unflatten(2, self.grid)


def _cells(side: int) -> int:
    """Three of the eight places that CIFAR-10's maps have a side."""
    return max(1, round(side * 3 / 8))
