"""ResNet-18 and ResNet-50 for large images (He et al. 2016, arXiv 1603.05027: version 2, pre-activation), with group normalisation.

The layout is that of the networks of Kurakin et al. 2022 (arXiv 2201.12328), so that their weights fit (:mod:`scatterdp.heads.objax`): a stride in
the *last* block of a group, 32 groups in every normalisation, and eleven layers in a row, by which ``num_layers_to_freeze`` counts.

| number | 0 | 1 | 2 | 3–6 | 7 | 8 | 9 | 10 |
|---|---|---|---|---|---|---|---|---|
| layer | stem | pad | pool | group1–group4 | norm | relu | mean | linear |
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from scatterdp.errors import ConfigError

Precision = Literal["float32", "bfloat16"]
NUM_LAYERS = 11
#: The layer that is specific to the classes.
CLASS_LAYER = "linear"
_STEM_CHANNELS, _GROUPS, _EPS = 64, 32, 1e-5
#: Name → (blocks, output channels and strides of the four groups, bottleneck blocks or not).
RESNETS_V2: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]] = {
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512), (1, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), (256, 512, 1024, 2048), (2, 2, 2, 1), True),
}


class ResNetV2(nn.Sequential):
    """Logits ``(b, num_classes)`` of flat rows ``(b, C·H·W)``, as the training loop gives them.

    Args:
        name: a key of :data:`RESNETS_V2`.
        shape: ``(C, H, W)`` of the images.
        num_classes: outputs.
        precision: of convolutions and the last layer; weights stay float32, ``bfloat16`` is autocast. Logits are float32.

    Raises:
        ConfigError: an unknown name.
    """

    def __init__(
        self, name: str, shape: tuple[int, int, int], num_classes: int, *, precision: Precision = "float32"
    ) -> None:
        if name not in RESNETS_V2:
            raise ConfigError(f"model={name!r}: expected one of {', '.join(RESNETS_V2)}")
        blocks, widths, strides, bottleneck = RESNETS_V2[name]
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            stem=_convolution(shape[0], _STEM_CHANNELS, 7, stride=2),
            pad=nn.ZeroPad2d(1),
            pool=nn.MaxPool2d(3, stride=2),
        )
        inputs = _STEM_CHANNELS
        for number, (count, outputs, stride) in enumerate(zip(blocks, widths, strides, strict=True), start=1):
            group: list[nn.Module] = []
            for block in range(count):
                projected = block == 0 and inputs != outputs
                group.append(_Block(inputs, outputs, stride if block == count - 1 else 1, projected, bottleneck))
                inputs = outputs
            layers[f"group{number}"] = nn.Sequential(*group)
        linear = nn.Linear(inputs, num_classes)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers |= {"norm": _norm(inputs), "relu": nn.ReLU(), "mean": _Mean(), CLASS_LAYER: linear}
        assert len(layers) == NUM_LAYERS
        super().__init__(layers)
        self.shape, self.precision = shape, precision

    def forward(self, input: Tensor) -> Tensor:
        images = input.unflatten(1, self.shape)
        if self.precision == "float32":
            return super().forward(images)
        with torch.autocast(input.device.type, dtype=torch.bfloat16):
            return super().forward(images).float()


def freeze_layers(network: ResNetV2, count: int) -> None:
    """Make the first ``count`` layers constants.

    Raises:
        ConfigError: not 0 to 10; with all eleven frozen nothing would be trained.
    """
    if not 0 <= count < NUM_LAYERS:
        raise ConfigError(
            f"num_layers_to_freeze={count}: expected 0 to {NUM_LAYERS - 1}, the network has {NUM_LAYERS} layers and the last is always trained"
        )
    for layer in list(network.children())[:count]:
        layer.requires_grad_(False)


class _Block(nn.Module):
    """Normalisation, activation and convolution, two or three times, beside the identity or a projection of the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, projected: bool, bottleneck: bool) -> None:
        super().__init__()
        inner = outputs // 4
        plan = (
            [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
            if bottleneck
            else [(inputs, outputs, 3, 1), (outputs, outputs, 3, stride)]
        )
        self.stride, self.depth = stride, len(plan)
        self.proj_conv = _convolution(inputs, outputs, 1, stride=stride) if projected else None
        for number, (before, after, kernel, step) in enumerate(plan):
            self.add_module(f"norm_{number}", _norm(before))
            self.add_module(f"conv_{number}", _convolution(before, after, kernel, stride=step))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        for number in range(self.depth):
            x = torch.relu(self.get_submodule(f"norm_{number}")(x))
            if number == 0 and self.proj_conv is not None:
                shortcut = self.proj_conv(x)
            x = self.get_submodule(f"conv_{number}")(x)
        return x + shortcut


class _Mean(nn.Module):
    """Over all places of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return layer


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=_EPS)
