"""What a feature extractor is: a fixed function of one image, with a name for its numbers.

An extractor never sees labels, other images or a random state, so applying it costs no privacy and its
output can be cached. Its fingerprint names the numbers that it computes: equal fingerprints promise equal
features up to rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from scatterdp.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class Block:
    """Feature maps of one kind.

    Args:
        name: unique among an extractor's blocks.
        shape: ``(K, h, w)``.
        scale: standard deviation that released statistics bring each channel to.
    """

    name: str
    shape: tuple[int, int, int]
    scale: float = 1.0


class Extractor(Protocol):
    """A fixed, deterministic map from images to feature maps.

    Attributes:
        name: short name, the key in :data:`scatterdp.extractors.EXTRACTORS`; part of cache file names.
        config: frozen, keyword-only dataclass of everything the user may choose.
        input_shape: ``(C, H, W)`` of the images that it takes.
        output_shape: ``(K, h, w)`` of the features of one image.
        fingerprint: see :func:`fingerprint`.
    """

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> DataclassInstance: ...

    @property
    def input_shape(self) -> tuple[int, int, int]: ...

    @property
    def output_shape(self) -> tuple[int, int, int]: ...

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of a batch, without gradients.

        Args:
            images: ``(B, C, H, W)`` floating point in [0, 1], on any device.

        Returns:
            ``(B, K, h, w)`` float32 on the extractor's device; row i depends on image i alone.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the extractor (in place) and return it."""
        ...


def blocks_of(extractor: Extractor) -> tuple[Block, ...]:
    """What the features are, in order: one block, or several whose flat values follow each other (attribute ``blocks``)."""
    return getattr(extractor, "blocks", (Block(name=extractor.name, shape=extractor.output_shape),))


def fingerprint(
    name: str,
    config: DataclassInstance,
    input_shape: tuple[int, int, int],
    *,
    preprocessing: Mapping[str, Any],
    versions: Mapping[str, str],
) -> str:
    """SHA-256 (hexadecimal) that names an extractor's numbers.

    Args:
        name: the extractor's class name.
        config: its configuration, hashed as JSON.
        input_shape: ``(C, H, W)``.
        preprocessing: constants applied to the image first (mean, standard deviation, …).
        versions: versions of the libraries that *define* the numbers, such as the one that builds the filters.
            The version of the array library does not belong here: like the device, the number of threads and
            the batch size it moves results by rounding only, and every upgrade would throw caches away. Caches
            record it beside the fingerprint.

    >>> from scatterdp.extractors.scatternet import ScatterNetConfig
    >>> len(fingerprint("A", ScatterNetConfig(), (1, 8, 8), preprocessing={}, versions={"library": "1"}))
    64
    """
    parts = {
        "class": name,
        "config": dataclasses.asdict(config),
        "input_shape": list(input_shape),
        "preprocessing": dict(preprocessing),
        "versions": dict(versions),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_images(images: torch.Tensor, input_shape: tuple[int, int, int]) -> None:
    """Refuse a batch that is not ``(B, C, H, W)`` floating point with finite values in [0, 1].

    Raises:
        UserError: says which of these fails, and for which image.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != input_shape:
        raise UserError(f"images of shape {tuple(images.shape)}: expected (B, {', '.join(map(str, input_shape))})")
    if not images.is_floating_point():
        raise UserError(f"images of type {images.dtype}: expected floating point in [0, 1] (bytes divided by 255)")
    if images.numel() == 0:
        return
    low, high = (float(value) for value in torch.aminmax(images))
    if low >= 0 and high <= 1:  # false for NaN
        return
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        raise UserError(f"images: NaN or infinity in image {int((~finite).nonzero()[0])} of the batch, expected [0, 1]")
    raise UserError(f"images: values from {low:g} to {high:g}, expected [0, 1] (bytes divided by 255)")
