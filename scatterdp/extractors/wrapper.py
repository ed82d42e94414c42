"""What extractors share that show other images to a given one: everything but the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from scatterdp.extractors.base import Block, Extractor, blocks_of, check_images, fingerprint


class Wrapper:
    """An extractor around another; see :class:`~scatterdp.extractors.base.Extractor`. Features have the given one's shape and blocks.

    Args:
        extractor: the given one.
        config_class: a frozen dataclass with ``extractor`` and ``config``, the given one's, and ``settings``.
        preprocessing: constants that the images depend on.
        algorithm: another number is another fingerprint.
        settings: of this extractor, as its config has them.
    """

    name: str

    def __init__(
        self,
        extractor: Extractor,
        config_class: Callable[..., Any],
        *,
        preprocessing: Mapping[str, Any],
        algorithm: int,
        **settings: Any,
    ) -> None:
        self.extractor = extractor
        self.input_shape, self.output_shape = extractor.input_shape, extractor.output_shape
        self.blocks: tuple[Block, ...] = blocks_of(extractor)
        self.config = config_class(extractor=extractor.name, config=extractor.config, **settings)
        self.fingerprint = fingerprint(
            type(self).__name__,
            config_class(extractor=extractor.fingerprint, config=None, **settings),
            self.input_shape,
            preprocessing=preprocessing,
            versions={"algorithm": str(algorithm)},
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The features of a batch ``(B, C, H, W)``.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        return self._features(images.float())

    def _features(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Self:
        """Move the given extractor to a device, in place."""
        self.extractor.to(device)
        return self
