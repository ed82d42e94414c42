r"""ResNeXt-29, 8×64d, for 32×32 images (Xie et al. 2017, arXiv 1611.05431, section 5.3), without its classifier.

Three stages of three bottlenecks, of 256, 512 and 1024 channels at 32×32, 16×16 and 8×8; inside a bottleneck 8 groups of 64, 128 and 256
channels. 34 426 698 parameters with a classifier of 10 classes, 34 518 948 with one of 100, 34 416 448 without.

Published checkpoints name the tensors in one of two ways:

| here | :func:`numbered_bottlenecks` (the CIFAR-100 file of the published experiment has these) | :func:`plain_sequences` |
|---|---|---|
| ``stem.0.`` | ``conv_1_3x3.`` | ``conv_1_3x3.`` |
| ``stem.1.`` | ``bn_1.`` | ``bn_1.`` |
| ``stages.0.2.reduce.0.`` | ``stage_1.stage_1_bottleneck_2.conv_reduce.`` | ``stage_1.2.conv_reduce.`` |
| ``stages.0.2.reduce.1.`` | ``….bn_reduce.`` | ``….bn_reduce.`` |
| ``….spread.0.``, ``….spread.1.`` | ``….conv_conv.``, ``….bn.`` | the same |
| ``….expand.0.``, ``….expand.1.`` | ``….conv_expand.``, ``….bn_expand.`` | the same |
| ``stages.0.0.shortcut.0.``, ``….1.`` | ``….shortcut.shortcut_conv.``, ``….shortcut_bn.`` | ``….downsample.0.``, ``….downsample.1.`` |
"""

from __future__ import annotations

import itertools
import re

import torch
from torch import Tensor, nn

FEATURES = 1024
_GROUPS = 8
_GROUP_WIDTH = 64
_BLOCKS = 3
_EXPANSION = 4  # a stage's channels ÷ a group's


def _convolution(inputs: int, outputs: int, size: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Bottleneck(nn.Module):
    """``(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)``: narrow, in groups, wide, plus the input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = _GROUPS * outputs // _EXPANSION
        self.reduce = _convolution(inputs, width)
        self.spread = _convolution(width, width, 3, stride=stride, groups=_GROUPS)
        self.expand = _convolution(width, outputs)
        self.shortcut = nn.Sequential() if inputs == outputs else _convolution(inputs, outputs, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.spread(self.reduce(x).relu()).relu())
        return (y + self.shortcut(x)).relu()


class ResNeXt29(nn.Module):
    """``(B, 3, 32, 32) -> (B, 1024)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, _GROUP_WIDTH, 3)
        widths = [_GROUP_WIDTH, *(_GROUP_WIDTH * _EXPANSION * 2**stage for stage in range(3))]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    Bottleneck(inputs, outputs, stride=1 if stage == 0 else 2),
                    *(Bottleneck(outputs, outputs, stride=1) for _ in range(_BLOCKS - 1)),
                )
                for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths))
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.stages(self.stem(x).relu()).mean((2, 3)), 1)


_PARTS = {"reduce": ("conv_reduce", "bn_reduce"), "spread": ("conv_conv", "bn"), "expand": ("conv_expand", "bn_expand")}


def _published(key: str, *, block: str, shortcut: tuple[str, str]) -> str:
    if found := re.fullmatch(r"stem\.(\d)\.(.+)", key):
        return f"{('conv_1_3x3', 'bn_1')[int(found[1])]}.{found[2]}"
    found = re.fullmatch(r"stages\.(\d)\.(\d)\.(\w+)\.(\d)\.(.+)", key)
    assert found is not None, key
    names = _PARTS.get(found[3], shortcut)
    return f"{block.format(stage=int(found[1]) + 1, block=found[2])}.{names[int(found[4])]}.{found[5]}"


def numbered_bottlenecks(key: str) -> str:
    """A tensor's name in files with numbered bottlenecks."""
    names = ("shortcut.shortcut_conv", "shortcut.shortcut_bn")
    return _published(key, block="stage_{stage}.stage_{stage}_bottleneck_{block}", shortcut=names)


def plain_sequences(key: str) -> str:
    """A tensor's name in files whose stages are plain sequences."""
    return _published(key, block="stage_{stage}.{block}", shortcut=("downsample.0", "downsample.1"))
