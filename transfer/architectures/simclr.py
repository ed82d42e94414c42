r"""SimCLR v2's ResNet-50 of width 2 with selective kernels (Chen et al. 2020, arXiv 2006.10029), without its heads.

A stem of three 3×3 convolutions, then 3, 4, 6 and 3 bottlenecks of 512, 1024, 2048 and 4096 channels at 56×56 … 7×7 for 224×224 images.
The 3×3 convolution of a bottleneck is a selective kernel (Li et al. 2019, arXiv 1903.06586): two kernels' maps, mixed for each image and
channel by a softmax of what the pooled sum of both says. Where sizes change, the shortcut is an average over 2×2 pixels and a 1×1
convolution. 140 306 048 parameters (the paper says 140 M), and 4 097 000 of the linear classifier that the file holds beside them.

This is the network of the PyTorch conversion (``r50_2x_sk1.pth``), down to its borders, so that its numbers can be compared. It differs from the
TensorFlow original in two places: the stem's pooling pads one pixel on every side, not on the lower and right one alone; the first shortcut's
averages count padded zeros.

| here | in the file, under ``"resnet"`` |
|---|---|
| ``stem.0.0.``, ``stem.0.1.`` … ``stem.2.1.`` | ``net.0.0.``, ``net.0.1.0.``, ``net.0.2.``, ``net.0.3.0.``, ``net.0.4.``, ``net.0.5.0.`` |
| ``stages.S.B.shortcut.0.``, ``….1.`` | ``net.S+1.blocks.B.projection.shortcut.2.``, ``….projection.bn.0.`` |
| ``stages.S.B.reduce.0.``, ``….1.`` | ``net.S+1.blocks.B.net.0.``, ``….net.1.0.`` |
| ``stages.S.B.select.kernels.0.``, ``….1.`` | ``….net.2.main_conv.0.``, ``….main_conv.1.0.`` |
| ``stages.S.B.select.squeeze.0.``, ``….1.``, ``….select.mix.`` | ``….net.2.mixing_conv.0.``, ``….mixing_conv.1.0.``, ``….mixing_conv.2.`` |
| ``stages.S.B.expand.0.``, ``….1.`` | ``….net.3.``, ``….net.4.0.`` |
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 4096
_WIDTH = 2
_BLOCKS = (3, 4, 6, 3)
_EXPANSION = 4
_MIXING_RATIO = 1 / 16
_LEAST_MIXING = 32


def _convolution(inputs: int, outputs: int, size: int = 1, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class SelectiveKernel(nn.Module):
    """``(B, channels, H, W) -> (B, channels, H / stride, W / stride)``."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        narrow = max(int(channels * _MIXING_RATIO), _LEAST_MIXING)
        self.kernels = _convolution(channels, 2 * channels, 3, stride=stride)
        self.squeeze = _convolution(channels, narrow)
        self.mix = nn.Conv2d(narrow, 2 * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.kernels(x).relu().unflatten(1, (2, -1))
        pooled = maps.sum(1).mean((2, 3), keepdim=True)
        shares = self.mix(self.squeeze(pooled).relu()).unflatten(1, (2, -1)).softmax(1)
        return (maps * shares).sum(1)


class Shortcut(nn.Sequential):
    """2×2 averages, then a 1×1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(*_convolution(inputs, outputs))
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.avg_pool2d(F.pad(input, (0, 1, 0, 1)), 2, stride=self.stride))


class Bottleneck(nn.Module):
    """``(B, inputs, H, W) -> (B, 4 · channels, H / stride, W / stride)``; the first of a stage changes sizes."""

    def __init__(self, inputs: int, channels: int, *, first: bool, stride: int = 1) -> None:
        super().__init__()
        self.shortcut = Shortcut(inputs, _EXPANSION * channels, stride) if first else nn.Sequential()
        self.reduce = _convolution(inputs, channels)
        self.select = SelectiveKernel(channels, stride)
        self.expand = _convolution(channels, _EXPANSION * channels)

    def forward(self, x: Tensor) -> Tensor:
        return (self.expand(self.select(self.reduce(x).relu())) + self.shortcut(x)).relu()


class SimCLR(nn.Module):
    """``(B, 3, H, W) -> (B, 4096)``; H and W as trained: 224."""

    def __init__(self) -> None:
        super().__init__()
        channels = 64 * _WIDTH
        self.stem = nn.Sequential(
            _convolution(3, channels // 2, 3, stride=2),
            _convolution(channels // 2, channels // 2, 3),
            _convolution(channels // 2, channels, 3),
        )
        stages, inputs = [], channels
        for stage, count in enumerate(_BLOCKS):
            inside = channels * 2**stage
            blocks = [Bottleneck(inputs, inside, first=True, stride=1 if stage == 0 else 2)]
            inputs = _EXPANSION * inside
            blocks += [Bottleneck(inputs, inside, first=False) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.stem:
            x = layer(x).relu()
        return self.stages(F.max_pool2d(x, 3, stride=2, padding=1)).mean((2, 3))


_PARTS = {
    "shortcut.0": "projection.shortcut.2",
    "shortcut.1": "projection.bn.0",
    "reduce.0": "net.0",
    "reduce.1": "net.1.0",
    "select.kernels.0": "net.2.main_conv.0",
    "select.kernels.1": "net.2.main_conv.1.0",
    "select.squeeze.0": "net.2.mixing_conv.0",
    "select.squeeze.1": "net.2.mixing_conv.1.0",
    "select.mix": "net.2.mixing_conv.2",
    "expand.0": "net.3",
    "expand.1": "net.4.0",
}


def converted(key: str) -> str:
    """A tensor's name in the PyTorch conversion."""
    if found := re.fullmatch(r"stem\.(\d)\.(\d)\.(.+)", key):
        place, norm = 2 * int(found[1]), found[2] == "1"
        return f"net.0.{place + 1}.0.{found[3]}" if norm else f"net.0.{place}.{found[3]}"
    found = re.fullmatch(r"stages\.(\d)\.(\d)\.(.+)\.(\w+)", key)
    assert found is not None, key
    return f"net.{int(found[1]) + 1}.blocks.{found[2]}.{_PARTS[found[3]]}.{found[4]}"
