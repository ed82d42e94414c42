"""The network of a run: public weights where there are any, the first layers frozen."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scatterdp.finetuning.config import FinetuneConfig
from scatterdp.heads.resnet_v2 import CLASS_LAYER, ResNetV2, freeze_layers
from scatterdp.heads.weights import load_weights, read_weights, tensors_digest
from scatterdp.training.fit import Network


def make_network(config: FinetuneConfig, shape: tuple[int, int, int], num_classes: int) -> tuple[Network, list[str]]:
    """How the run's network is made, and what a certificate has to say about its start.

    Everything that can go wrong with the weights does so here, before training.

    Args:
        config: of the command.
        shape: ``(C, H, W)`` of the images.
        num_classes: outputs.

    Raises:
        UserError: weights that cannot be read or are another network's; layers out of range.
    """
    weights: dict[str, Tensor] = {}
    assumptions: list[str] = []
    path = config.finetune_path
    if path is not None:
        weights = read_weights(path, argument="finetune_path")
        if config.finetune_cut_last_layer:
            weights = {name: value for name, value in weights.items() if not name.startswith(f"{CLASS_LAYER}.")}
        assumptions = _assumptions(config, path, weights)

    def make(seed: int) -> ResNetV2:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = ResNetV2(config.model, shape, num_classes)
        if path is not None:
            own = {name: value for name, value in network.state_dict().items() if name.startswith(f"{CLASS_LAYER}.")}
            load_weights(
                network,
                weights | own if config.finetune_cut_last_layer else weights,
                source=str(path),
                argument="finetune_path",
            )
        freeze_layers(network, config.num_layers_to_freeze)
        return network

    make(0)  # says what does not fit
    parts = (config.model, shape, num_classes, config.num_layers_to_freeze, config.precision, config.augment)
    description = repr((*parts, tensors_digest(weights)))

    def prepare(network: ResNetV2) -> None:
        network.precision = config.precision

    return Network(description, make, prepare), assumptions


def _assumptions(config: FinetuneConfig, path: Path, weights: dict[str, Tensor]) -> list[str]:
    sentences = [
        f"The run starts from weights that are taken to be public ({path.name}, SHA-256 of the tensors {tensors_digest(weights)}), and so are the images "
        "and the choices behind them. If private examples were among those, what that cost is not covered."
    ]
    if (path.parent / "certificate.json").exists():
        sentences.append(
            "The weights lie beside a certificate of their own: where that one speaks of the same people, compose the two ledgers."
        )
    if config.num_layers_to_freeze:
        sentences.append(
            f"The first {config.num_layers_to_freeze} of the network's layers are those weights, unchanged by the private images."
        )
    return sentences
