"""First weights and fixed parts of networks from synthetic images' maps: no data set is read, so they cost no privacy."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from scatterdp.extractors.map_layer import fitted_components, fitted_filters, views_to_fit
from scatterdp.heads.patch_cnn import PatchCNN
from scatterdp.training.preconditioning import synthetic_precondition
from scatterdp.training.synthetic_views import SyntheticFeatures, images_for

WHITENING = 0.3  # added to the eigenvalues of the covariance that is whitened
NUM_IMAGES = 1000
_BATCH = 250
_SEED = 0


@torch.no_grad()
def start_from_synthetic(network: PatchCNN, synthetic: SyntheticFeatures, normalizer: nn.Module) -> None:
    """Fill a network's buffers and its convolution's weights, in place.

    Args:
        network: on the CPU.
        synthetic: features of views of synthetic images; its extractor pushes more of them through.
        normalizer: what is applied to features before the network, on the CPU.
    """
    extractor = synthetic.extractor
    images = images_for(extractor.input_shape, NUM_IMAGES)
    views = tuple(
        torch.cat([normalizer(extractor(batch).cpu()) for batch in view.split(_BATCH)]).flatten(2)
        for view in views_to_fit(images, seed=_SEED)
    )
    components = fitted_components([views], len(network.vectors))
    filters = fitted_filters(
        [views],
        components,
        (len(network.vectors), *network.shape[1:]),
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
    pooled = torch.cat([network.pooled(batch.flatten(1)) for batch in views[0].split(_BATCH)])
    network.pooled_mean.copy_(pooled.mean((0, 2, 3))[:, None, None])
    network.pooled_scale.copy_((pooled.var((0, 2, 3)) + 1e-6).rsqrt()[:, None, None])
    precondition = network.linear.precondition
    scale = synthetic_precondition(
        synthetic,
        lambda maps: network.features(normalizer(maps)),
        directions=len(precondition.factors),
        power=1.0,
    )
    precondition.load_state_dict(scale.state_dict())
