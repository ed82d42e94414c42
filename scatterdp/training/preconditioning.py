r"""A preconditioner that costs no budget: the covariance of *synthetic* images' features.

A few directions hold most of the features' energy (brightness, contrast, edges here or there), in natural images and in synthetic ones alike:
of the recipe's CIFAR-10 features 70 % lies along 100 principal directions of synthetic images. They say little about classes, but they
make every example resemble every other, so most of a clipped gradient is spent on them. Features are therefore scaled along the k
largest principal directions of synthetic images, of singular values :math:`\lambda_1 \ge \dots \ge \lambda_k`, by
:math:`(\lambda_k / \lambda_i)^\gamma`.

No private number enters: images come from a seed, the normaliser is a fixed function or released already. For a linear head this is DP-SGD
with a public preconditioner (the private counterpart: Mehta et al. 2022, arXiv 2211.13403), and it folds into the weights afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import Extractor
from scatterdp.extractors.synthetic import dead_leaves, photographic_leaves, wavelet_marginals
from scatterdp.heads import Precondition

NUM_IMAGES = 4000
_BATCH = 128
_SPARE = 100  # directions beyond the last, so that the last is exact too
_SEED = 77


@torch.no_grad()
def synthetic_precondition(
    extractor: Extractor, normalizer: nn.Module, *, directions: int, power: float
) -> Precondition:
    """The preconditioner for normalised features.

    Args:
        extractor: pushes synthetic images through.
        normalizer: what is applied to features first.
        directions: k.
        power: γ; 0 changes nothing, 1 makes the k directions equally long.

    Raises:
        ConfigError: more directions than features or synthetic images have.
    """
    most = check_directions(directions, extractor)
    features = torch.cat([normalizer(extractor(batch).cpu()).flatten(1) for batch in _images(extractor).split(_BATCH)])
    features -= features.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        _, values, vectors = torch.svd_lowrank(features, q=min(directions + _SPARE, most), niter=2)
    values = values[:directions].clamp(min=1e-6 * values[0])
    return Precondition(vectors[:, :directions].contiguous(), (values[-1] / values) ** power)


def check_directions(directions: int, extractor: Extractor) -> int:
    """The most directions that there are.

    Raises:
        ConfigError: these are more.
    """
    size = int(np.prod(extractor.output_shape))
    most = min(NUM_IMAGES // 2, size)
    if directions > most:
        raise ConfigError(f"precondition={directions}: expected at most {most} directions for {size} features")
    return most


def folded(weights: dict[str, Tensor], precondition: Precondition) -> dict[str, Tensor]:
    """A linear classifier's weights on features that are not preconditioned: the same logits, for A is symmetric."""
    return {**weights, "weight": precondition(weights["weight"])}


def _images(extractor: Extractor) -> Tensor:
    """Half dead leaves in photographs' colours, a quarter in any, a quarter sparse wavelets."""
    shape, quarter = extractor.input_shape, NUM_IMAGES // 4
    images = [
        photographic_leaves(2 * quarter, shape, seed=_SEED),
        dead_leaves(quarter, shape, seed=_SEED + 1),
        wavelet_marginals(quarter, shape, seed=_SEED + 2),
    ]
    return torch.from_numpy(np.concatenate(images))
