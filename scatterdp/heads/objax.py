"""The published ResNets' files: objax ``.npz`` (Kurakin et al. 2022), and how their names and axes become ours.

Such a file holds ``names``, an array of text, and the arrays ``0``, ``1``, … in that order. Convolutions are stored (height, width, in, out), linear
layers (in, out), scale and shift of a normalisation (1, channels, 1, 1). ``(ResNet18)[3](ResNetV2BlockGroup)[0](ResNetV2Block).norm_0(GroupNorm2D).gamma``
is our ``group1.0.norm_0.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

#: The layers of :class:`scatterdp.heads.resnet_v2.ResNetV2` that have weights, by their number.
_LAYERS = {0: "stem", 3: "group1", 4: "group2", 5: "group3", 6: "group4", 7: "norm", 10: "linear"}
_PARAMETERS = {"w": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}
_NAME = re.compile(
    r"\(\w+\)\[(?P<layer>\d+)\]"
    r"(?:\(ResNetV2BlockGroup\)\[(?P<block>\d+)\]\(ResNetV2Block\)\.(?P<part>\w+))?"
    r"\((?P<kind>Conv2D|GroupNorm2D|Linear)\)\.(?P<parameter>w|b|gamma|beta)"
)


def from_objax(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors under our names.

    Args:
        arrays: the content of an ``.npz``, ``names`` included.

    Raises:
        ValueError: not such a file, or a name that is no layer's of these networks; says which.
    """
    if "names" not in arrays or arrays["names"].dtype.kind != "U" or arrays["names"].ndim != 1:
        raise ValueError("it has no array 'names' of text")
    found: dict[str, Tensor] = {}
    for number, name in enumerate(arrays["names"].tolist()):
        if str(number) not in arrays:
            raise ValueError(f"it has {len(arrays['names'])} names but no array {number}")
        found[_our_name(name)] = _our_axes(name, arrays[str(number)])
    return found


def _our_name(name: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None or int(match["layer"]) not in _LAYERS:
        raise ValueError(f"{name!r} is no layer of ResNet-18 or ResNet-50 with group normalisation")
    inside = "" if match["block"] is None else f"{match['block']}.{match['part']}."
    layer = _LAYERS[int(match["layer"])]
    return f"{layer}.{inside}{_PARAMETERS[match['parameter']]}"


def _our_axes(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind != "f":
        raise ValueError(f"{name!r} has type {array.dtype}, expected floating point")
    if "(Conv2D)" in name and array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif name.endswith("(Linear).w"):
        array = array.T
    else:
        array = array.reshape(-1)
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
