r"""A preconditioner that costs no budget: which changes of *synthetic* images' features carry no meaning.

Two views of one picture (cropped, turned, in another light) show the same thing, yet their features differ, and most of the difference
lies along few directions. Every example is strewn along them whatever its class, so much of a clipped gradient is spent on them. Features are
therefore scaled along the k largest principal directions of such differences, of singular values
:math:`\lambda_1 \ge \dots \ge \lambda_k`, by :math:`(\lambda_k / \lambda_i)^\gamma`. With every image a class of its own this is the whitening
of the variation within classes of linear discriminant analysis (Fisher 1936), cut off at k. To a linear head a direction is one of all features; to a
network, whose kernels are the same at every place, one of the channels.

No private number enters: images come from a seed, the normaliser is a fixed function or released already. For a linear head this is DP-SGD
with a public preconditioner (the private counterpart: Mehta et al. 2022, arXiv 2211.13403; from synthetic inputs too, but by curvature at the
current weights: arXiv 2605.13418), and it folds into the weights afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from scatterdp.errors import ConfigError
from scatterdp.extractors.base import Extractor
from scatterdp.heads import Precondition
from scatterdp.training import synthetic_views
from scatterdp.training.synthetic_views import SyntheticFeatures

_SPARE = 100  # directions beyond the last, so that the last is exact too
_SEED = 77


@torch.no_grad()
def synthetic_precondition(
    synthetic: SyntheticFeatures,
    normalizer: Callable[[Tensor], Tensor],
    *,
    directions: int,
    power: float,
    of_channels: bool = False,
) -> Precondition:
    """The preconditioner for normalised features.

    Args:
        synthetic: features of views of synthetic images.
        normalizer: what is applied to features first.
        directions: k.
        power: γ; 0 changes nothing, 1 makes views differ equally along the k directions.
        of_channels: for networks: directions are of channels, and features are brought back, by one number for all, to the mean squared length that they
            had, on synthetic images. Initial weights of networks count on it; to a linear head that starts from zero it is a change of learning rate.

    Raises:
        ConfigError: more directions than features or synthetic images have.
    """
    extractor = synthetic.extractor
    most = check_directions(directions, extractor, of_channels=of_channels)
    differences = _differences(synthetic, normalizer)
    if of_channels:
        values, vectors = _principal_channels(differences, extractor.output_shape[0])
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            _, values, vectors = torch.svd_lowrank(
                torch.cat(list(differences)), q=min(directions + _SPARE, most), niter=2
            )
    values = values[:directions].clamp(min=1e-6 * values[0])
    scale = Precondition(vectors[:, :directions].contiguous(), (values[-1] / values) ** power)
    if of_channels:
        features = torch.cat([normalizer(rows).flatten(1) for rows in synthetic.sample()])
        scale.gain = features.norm() / scale(features).norm()
    return scale


def check_directions(directions: int, extractor: Extractor, *, of_channels: bool = False) -> int:
    """The most directions that there are.

    Raises:
        ConfigError: these are more.
    """
    if of_channels:
        most = extractor.output_shape[0]
        what = f"a network on {most} channels"
    else:
        size = int(np.prod(extractor.output_shape))
        most = min(synthetic_views.NUM_IMAGES // 2, size)
        what = f"{size} features"
    if directions > most:
        raise ConfigError(f"precondition={directions}: expected at most {most} directions for {what}")
    return most


def folded(weights: dict[str, Tensor], precondition: Precondition) -> dict[str, Tensor]:
    """A linear classifier's weights on features that are not preconditioned: the same logits, for A is symmetric."""
    return {**weights, "weight": precondition(weights["weight"])}


def _principal_channels(differences: Iterable[Tensor], channels: int) -> tuple[Tensor, Tensor]:
    """``(C,)`` singular values, falling, and ``(C, C)`` directions in columns, of differences at all places together."""
    products = torch.zeros(channels, channels, dtype=torch.float64)
    for piece in differences:
        places = piece.unflatten(1, (channels, -1)).movedim(1, 2).flatten(0, 1).double()
        products += places.t() @ places
    squares, vectors = torch.linalg.eigh(products)
    return squares.clamp(min=0).sqrt().flip(0).float(), vectors.flip(1).float()


def _differences(synthetic: SyntheticFeatures, normalizer: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """``(b, D)`` each: features of one view of an image minus those of another."""
    for one, other in synthetic.pairs():
        yield normalizer(one).flatten(1) - normalizer(other).flatten(1)
