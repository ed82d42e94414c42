"""First weights and fixed parts of networks from synthetic images' maps: no data set is read, so they cost no privacy."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from scatterdp.extractors.base import Extractor
from scatterdp.extractors.map_layer import principal_components, reduced
from scatterdp.extractors.patch_filters import make_map_filters
from scatterdp.heads.patch_cnn import PatchCNN
from scatterdp.training.preconditioning import images_for, synthetic_precondition

WHITENING = 0.3  # added to the eigenvalues of the patches' covariance
NUM_IMAGES = 1000
_BATCH = 250
_SEED = 0


@torch.no_grad()
def start_from_synthetic(network: PatchCNN, extractor: Extractor, normalizer: nn.Module) -> None:
    """Fill a network's buffers and its convolution's weights, in place.

    Args:
        network: on the CPU.
        extractor: pushes synthetic images through.
        normalizer: what is applied to features before the network, on the CPU.
    """
    images = images_for(extractor)
    images = images[:: max(1, len(images) // NUM_IMAGES)]
    maps = torch.cat([normalizer(extractor(batch).cpu()) for batch in images.split(_BATCH)])
    components = principal_components([maps.flatten(2)], len(network.vectors))
    filters = make_map_filters(
        reduced(maps.flatten(2), components).unflatten(2, maps.shape[2:]).numpy(),
        count=len(network.filters.weight),
        size=1,
        whitening=WHITENING,
        seed=_SEED,
    )
    of_whitened = np.linalg.solve(filters.whitening, filters.weight.reshape(len(filters.weight), -1).T).T
    network.vectors.copy_(components.vectors)
    network.bias.copy_(components.bias)
    network.contrast.fill_(filters.contrast)
    network.whitening.copy_(torch.from_numpy(filters.whitening))
    network.mean.copy_(torch.from_numpy(filters.mean)[:, None])
    network.filters.weight.copy_(torch.from_numpy(of_whitened)[:, :, None, None])
    assert network.filters.bias is not None
    nn.init.zeros_(network.filters.bias)
    pooled = torch.cat([network.pooled(batch.flatten(1)) for batch in maps.split(_BATCH)])
    network.pooled_mean.copy_(pooled.mean((0, 2, 3))[:, None, None])
    network.pooled_scale.copy_((pooled.var((0, 2, 3)) + 1e-6).rsqrt()[:, None, None])
    scale = synthetic_precondition(
        extractor, lambda maps: network.features(normalizer(maps)), directions=network.num_directions, power=1.0
    )
    network.precondition.load_state_dict(scale.state_dict())
