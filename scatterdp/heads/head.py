"""A head: a fixed normaliser and the classifier that is trained, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scatterdp.errors import ConfigError
from scatterdp.heads.convolutional import Shape, end_to_end_cnn, scatternet_cnn
from scatterdp.heads.patch_cnn import PatchCNN
from scatterdp.heads.residual import resnet20


def linear(shape: Shape, num_classes: int) -> nn.Linear:
    """One linear layer on flat rows. It starts at zero: nothing random, and every class equally likely."""
    classifier = nn.Linear(math.prod(shape), num_classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier


#: Name → function of ``(shape, num_classes)`` that makes a classifier of flat rows ``(b, K·h·w)``.
CLASSIFIERS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "linear": linear,
    "scatternet_cnn": scatternet_cnn,
    "scatternet_cnn_small": lambda shape, classes: scatternet_cnn(shape, classes, small=True),
    "cnn": end_to_end_cnn,
    "cnn_small": lambda shape, classes: end_to_end_cnn(shape, classes, small=True),
    "patch_cnn": PatchCNN,
    "resnet20": resnet20,
    "resnet20_tanh": lambda shape, classes: resnet20(shape, classes, activation="tanh"),
    "preact_resnet20": lambda shape, classes: resnet20(shape, classes, pre_activation=True),
    "preact_resnet20_tanh": lambda shape, classes: resnet20(shape, classes, activation="tanh", pre_activation=True),
}


class Head(nn.Module):
    """``(B, K, h, w) -> (B, num_classes)`` logits.

    Args:
        normalizer: fixed map of features (no trainable parameter); its numbers are buffers of the state dict.
        classifier: takes normalised, flattened features.
    """

    def __init__(self, normalizer: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.normalizer(x).flatten(1))


def linear_head(normalizer: nn.Module, shape: Shape, num_classes: int) -> Head:
    """A head with one linear layer."""
    return Head(normalizer, linear(shape, num_classes))


def make_classifier(name: str, shape: Shape, num_classes: int, *, seed: int = 0) -> nn.Module:
    """A classifier by name; its initial weights are a function of ``seed`` (no secret: they are published with the model).

    Raises:
        ConfigError: an unknown name, or maps too small for the network.
    """
    if name not in CLASSIFIERS:
        raise ConfigError(f"head={name!r}: expected one of {', '.join(CLASSIFIERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLASSIFIERS[name](shape, num_classes)
