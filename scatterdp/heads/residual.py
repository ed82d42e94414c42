"""ResNet-20 for small images (He et al. 2015, arXiv 1512.03385, section 4.2; pre-activation: 1603.05027), with group normalisation.

Batch normalisation mixes examples, so every normalisation is a group normalisation of 16 groups.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Activation = Literal["relu", "tanh"]
_GROUPS = 16


def resnet20(
    shape: tuple[int, int, int], num_classes: int, *, activation: Activation = "relu", pre_activation: bool = False
) -> nn.Sequential:
    """Three stages of three blocks, 16, 32 and 64 channels; about 270 thousand parameters.

    Args:
        shape: ``(C, H, W)``; rows come flat, ``(b, C·H·W)``.
        num_classes: outputs.
        activation: of every block.
        pre_activation: normalisation and activation before each convolution, a clean path for the identity.
    """
    blocks: list[nn.Module] = []
    channels = 16
    for stage in (16, 32, 64):
        for number in range(3):
            stride = 2 if number == 0 and stage > 16 else 1
            blocks.append(_Block(channels, stage, stride, activation, pre_activation))
            channels = stage
    stem: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)]
    last: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)]
    if pre_activation:
        last = [nn.GroupNorm(_GROUPS, 64), _activation(activation), *last]
    else:
        stem += [nn.GroupNorm(_GROUPS, 16), _activation(activation)]
    return nn.Sequential(nn.Unflatten(1, shape), *stem, *blocks, *last)


class _Block(nn.Module):
    """Two convolutions beside the identity; where the shape changes, the identity is subsampled and padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation, pre_activation: bool) -> None:
        super().__init__()
        self.pre_activation, self.stride, self.added = pre_activation, stride, outputs - inputs
        self.norm1 = nn.GroupNorm(_GROUPS, inputs if pre_activation else outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.activation = _activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        identity = x[:, :, :: self.stride, :: self.stride]
        identity = nn.functional.pad(identity, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        if self.pre_activation:
            x = self.conv1(self.activation(self.norm1(x)))
            return identity + self.conv2(self.activation(self.norm2(x)))
        x = self.activation(self.norm1(self.conv1(x)))
        return self.activation(identity + self.norm2(self.conv2(x)))


def _activation(name: Activation) -> nn.Module:
    return nn.ReLU() if name == "relu" else nn.Tanh()
