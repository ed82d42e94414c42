r"""Differentially private channel means and variances of features (Tramèr & Boneh 2021, section 2.3).

For example i with features :math:`x_i` of shape (K, h, w), or several such blocks whose channels count together, and public channel
scales :math:`s_k`,

.. math::
    u_{ik} = \operatorname{mean}_{hw} x_{ikhw} / s_k, \qquad
    w_{ik} = \operatorname{mean}_{hw} x_{ikhw}^2 / s_k^2 .

Each vector is scaled down to its public bound, :math:`\lVert u_i\rVert \le b_u`, :math:`\lVert w_i\rVert \le b_w`, and

.. math::
    \hat u = \tfrac1N \bigl(\textstyle\sum_i u_i + \sigma b_u\,\mathcal N(0, I)\bigr), \qquad
    \hat w = \tfrac1N \bigl(\textstyle\sum_i w_i + \sigma b_w\,\mathcal N(0, I)\bigr)

are released.

**Formal guarantee.** Adding or removing one example moves the first sum by at most :math:`b_u` and the second by at
most :math:`b_w` in L2, so the two releases are two Gaussian mechanisms of noise multiplier σ: the event returned is
``2 × Gaussian(σ)``. With a selection that samples (Poisson, rate q), one sample of the examples serves both sums, and they are divided by the
expected number q·N. The two sums together, each in units of its bound, move by at most :math:`\sqrt2` in L2 under noise σ: one Gaussian
mechanism of noise multiplier :math:`\sigma/\sqrt2` on a Poisson sample, so the event is ``PoissonSampled(q, Gaussian(σ/√2))``. N, :math:`s` and the bounds are public: scales and bounds are computed from synthetic images
pushed through the same extractor (:func:`bounds_from_reference`), never from private data. Everything after the two
sums (variance, its floor, the model) is post-processing.

The noise is drawn from a key bound to what it is added to: two releases from one key share noise only if they are the very same
release, so that no difference of releases cancels it.

Why scale: channels of order 0, 1 and 2 differ by two orders of magnitude and one noise level serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dp_accounting
import torch
from torch import Tensor

from scatterdp.errors import UserError
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.noise import bound_to_sums, gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import PoissonSelection

RELEASES = ("mean", "mean of squares")
_TELLS = 0.05  # means shorter than this share of what the squares allow are what cancelling left
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class StatisticsBounds:
    """What bounds the release; all of it public.

    Args:
        scale: ``(ΣK,)`` float64 > 0, the unit of each channel.
        mean_bound: L2 bound of an example's scaled channel means.
        square_bound: L2 bound of an example's scaled channel means of squares.
        source: where the three came from, for the certificate.
        shapes: ``(K, h, w)`` of each block of the features, whose flat values follow each other; None: one, of the features' shape.
    """

    scale: Tensor
    mean_bound: float
    square_bound: float
    source: str
    shapes: tuple[Shape, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Released statistics: ``mean`` and ``variance``, both ``(ΣK,)`` float64; the variance is at least its noise level."""

    mean: Tensor
    variance: Tensor


def bounds_from_reference(reference: Tensor, source: str, *, shapes: Sequence[Shape] | None = None) -> StatisticsBounds:
    """Scales and bounds from features of public or synthetic images.

    The scale of a channel is its root mean square; the bounds are the largest norms seen on the reference. Where its means tell nothing, because they cancel in
    each example (two-tone images as ±1), their bound is what the squares allow: a mean is at most the root mean square.

    Args:
        reference: ``(n, K, h, w)`` features that depend on no private data.
        source: their description.
        shapes: of the features' blocks; by default one, of the features' shape.

    Raises:
        UserError: all features are 0.
    """
    shapes = None if shapes is None else tuple(shapes)
    scale = _vectors(reference, shapes)[1].mean(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    means, squares = _vectors(reference, shapes, scale)
    if not squares.any():
        raise UserError(
            "features: all 0 for synthetic images, so nothing bounds their statistics; take another --input_norm"
        )
    mean_bound, largest = means.norm(dim=1).max().item(), squares.sum(1).sqrt().max().item()
    return StatisticsBounds(
        scale=scale,
        mean_bound=mean_bound if mean_bound > _TELLS * largest else largest,
        square_bound=squares.norm(dim=1).max().item(),
        source=source,
        shapes=shapes,
    )


def bounds_from_norm(norm: float, num_channels: int, *, shapes: Sequence[Shape] | None = None) -> StatisticsBounds:
    r"""Bounds from a public bound C of an example's features, for features whose extractor cannot see synthetic images.

    With all scales 1, :math:`\lVert u_i\rVert \le \lVert x_i\rVert` and
    :math:`\lVert w_i\rVert_2 \le \lVert w_i\rVert_1 \le \lVert x_i\rVert^2`: an example of norm at most C is clipped by neither bound.

    Args:
        norm: C > 0. It must be chosen without looking at the private features.
        num_channels: ΣK.
        shapes: as in :class:`StatisticsBounds`.
    """
    return StatisticsBounds(
        scale=torch.ones(num_channels, dtype=torch.float64),
        mean_bound=norm,
        square_bound=norm**2,
        source=f"feature_clip_norm={norm:g}, given as a public number",
        shapes=None if shapes is None else tuple(shapes),
    )


def statistics_event(noise_multiplier: float, sample_rate: float = 1.0) -> dp_accounting.DpEvent:
    """The event of one :func:`release_channel_statistics`, known before it happens.

    Args:
        noise_multiplier: σ of each of the two releases.
        sample_rate: q of the Poisson sample that both are of; 1 for all examples.
    """
    if sample_rate == 1:
        return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise_multiplier), len(RELEASES))
    both = dp_accounting.GaussianDpEvent(noise_multiplier / math.sqrt(len(RELEASES)))
    return dp_accounting.PoissonSampledDpEvent(sample_rate, both)


def statistics_selection(num_examples: int, expected: int) -> PoissonSelection | None:
    """The sampler of statistics of ``expected`` of ``num_examples`` examples; None where that is all of them."""
    if expected == num_examples:
        return None
    return PoissonSelection(num_examples=num_examples, batch_size=expected, steps=1)


def release_channel_statistics(
    blocks: Iterable[Tensor],
    *,
    num_examples: int,
    bounds: StatisticsBounds,
    noise_multiplier: float,
    key: RandomKey,
    selection: PoissonSelection | None = None,
    rows: range | None = None,
    of_all: Callable[[Iterator[Tensor]], Iterable[Tensor]] = lambda sums: sums,
) -> tuple[ChannelStatistics, LedgerEntry]:
    """Channel means and variances of private features, and what they cost.

    Args:
        blocks: the training features, each row once, in pieces ``(b, K, h, w)``.
        num_examples: N, public; the sums are divided by it, for the neighbour with one row more or less too.
        bounds: public scales and clipping bounds.
        noise_multiplier: σ of each of the two releases.
        key: the run's key.
        selection: samples the examples whose statistics are released; None for all.
        rows: which examples ``blocks`` hold; None: all.
        of_all: where ``blocks`` are only this process's: from the sums of its blocks to those of all processes' blocks, in the rows' order.
            Added one by one, they give the very sum of a single process, and with it the very same release.

    Raises:
        UserError: NaN or infinite features.
    """
    if selection is not None:
        if selection.num_examples != num_examples:
            raise ValueError(f"num_examples={num_examples}: the selection samples from {selection.num_examples}")
        blocks = _sampled(blocks, selection, key, range(num_examples) if rows is None else rows)
    divisor = num_examples if selection is None else selection.batch_size
    total = torch.zeros(2, *bounds.scale.shape, dtype=torch.float64)
    for sums in of_all(_sums_of_blocks(blocks, bounds)):
        total += sums
    mean_sum, square_sum = total
    bound_key = bound_to_sums(key, mean_sum, square_sum, bounds.scale).bound_to(
        repr((divisor, noise_multiplier, bounds.mean_bound, bounds.square_bound))
    )
    released = []
    for draw, (exact_sum, bound) in enumerate(((mean_sum, bounds.mean_bound), (square_sum, bounds.square_bound))):
        noise = gaussian_noise(
            tuple(exact_sum.shape),
            noise_multiplier=noise_multiplier,
            sensitivity=bound,
            key=bound_key,
            purpose="channel statistics",
            counter=draw,
            dtype=torch.float64,
        )
        released.append((exact_sum + noise) / divisor)
    mean, square = released
    # Below the noise of the released squares a variance is not distinguishable from 0. The level is public.
    noise_level = max(noise_multiplier * bounds.square_bound / divisor, 1e-12)
    variance = (square - mean.square()).clamp(min=noise_level)
    statistics = ChannelStatistics(mean=mean * bounds.scale, variance=variance * bounds.scale.square())
    details: dict[str, Any] = {
        "releases": list(RELEASES),
        "feature_clip_norm": [bounds.mean_bound, bounds.square_bound],
        "bound_source": bounds.source,
        "noise_standard_deviation": [
            noise_multiplier * bounds.mean_bound,
            noise_multiplier * bounds.square_bound,
        ],
    }
    rate = 1.0
    if selection is not None:
        rate, details["sample"] = selection.sample_rate, selection.describe()
    return statistics, LedgerEntry("channel statistics", statistics_event(noise_multiplier, rate), details)


def _sampled(blocks: Iterable[Tensor], selection: PoissonSelection, key: RandomKey, rows: range) -> Iterator[Tensor]:
    """The rows that the selection takes, of blocks that hold ``rows``."""
    # A key of its own: the first batch of training must not be told by who is in this sample.
    own = key.bound_to("sample for channel statistics")
    chosen = torch.from_numpy(selection.indices(0, own, first=rows.start, stop=rows.stop))
    first = rows.start
    for block in blocks:
        here = chosen[(chosen >= first) & (chosen < first + len(block))]
        if len(here):
            yield block[here - first]
        first += len(block)
    if first != rows.stop:
        raise ValueError(f"{first} rows, expected the {rows.stop} that the sample is of")


def _sums_of_blocks(blocks: Iterable[Tensor], bounds: StatisticsBounds) -> Iterator[Tensor]:
    """``(2, ΣK)`` float64 of each block: the sums of its examples' clipped channel means, and of those of the squares. Private."""
    for block in blocks:
        means, squares = _vectors(block, bounds.shapes, bounds.scale)
        yield torch.stack([clip_rows(means, bounds.mean_bound).sum(0), clip_rows(squares, bounds.square_bound).sum(0)])


def clip_rows(rows: Tensor, bound: float) -> Tensor:
    """Rows scaled down to L2 norm ``bound`` where they exceed it; shorter rows unchanged."""
    if not (math.isfinite(bound) and bound > 0):
        raise ValueError(f"bound={bound}: expected a finite number > 0")
    return rows * (bound / rows.norm(dim=1, keepdim=True).clamp(min=bound))


def _vectors(features: Tensor, shapes: tuple[Shape, ...] | None, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each example's channel means and channel means of squares ``(b, ΣK)``, in units of ``scale``."""
    if shapes is None:
        _, channels, height, width = features.shape
        shapes = ((channels, height, width),)
    # Double precision: no finite feature's square overflows, so no example decides by its size whether there is a run.
    flat = features.flatten(1).double()
    parts = [
        part.unflatten(1, (shape[0], -1))
        for part, shape in zip(flat.split([math.prod(shape) for shape in shapes], 1), shapes, strict=True)
    ]
    if scale is not None:
        units = scale.to(flat.device).split([shape[0] for shape in shapes])
        parts = [part / unit[:, None] for part, unit in zip(parts, units, strict=True)]
    means = torch.cat([part.mean(2) for part in parts], 1)
    squares = torch.cat([part.square().mean(2) for part in parts], 1)
    if not (means.isfinite().all() and squares.isfinite().all()):
        raise UserError("features: found NaN or infinite values; remove the examples or choose another extractor")
    return means.cpu(), squares.cpu()
