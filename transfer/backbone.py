"""A pre-trained network as a feature extractor: fixed weights, one image at a time.

**Formal guarantee.** Features cost no privacy because row i is a function of image i and of fixed numbers alone. A network can break that in
ways that no type shows: batch normalisation that was left in training mode, dropout, code that normalises over the batch. So the network
runs in evaluation mode, and before it is used the same made-up images go through it twice, in one batch and one by one: the answers
must agree, and the network's own numbers must be untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from scatterdp.engines.modules import versions_of
from scatterdp.errors import UserError
from scatterdp.extractors.base import check_images, fingerprint
from scatterdp.heads.weights import weights_digest
from transfer.preprocessing import Preprocessing

_TOLERANCE = 1e-3  # relative; rounding moves with the batch size
_ALGORITHM = 1


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Where a backbone comes from; what makes it again.

    Args:
        backbone: ``cifar100_resnext``, ``simclr_r50_2x_sk1``, ``torchvision:NAME``, ``timm:NAME`` or ``module:FILE.py:FUNCTION``.
        weights: the file that was given, or ``default``. Not part of the fingerprint: the digest stands for it.
        weights_sha256: of the tensors that the network computes with.
        library: name and version of the library that defines the network; empty for those of this package.
        preprocessing: what happens to images first.
    """

    backbone: str
    weights: str
    weights_sha256: str
    library: str
    preprocessing: Preprocessing


class Backbone:
    """A network's features; see :class:`scatterdp.extractors.base.Extractor`.

    Args:
        network: ``(B, C, h, w) -> (B, D)`` or ``(B, K, h', w')``; set to evaluation mode.
        name: part of cache file names.
        source: what the user wrote for it.
        weights: what the user wrote for its weights.
        library: name and version of the library that defines it.
        preprocessing: from images to the network's input.
        input_shape: ``(C, H, W)`` of the images.
        definition: further values that decide the numbers, such as the digest of the user's code.

    Raises:
        UserError: the network does not take such images; its answer is no batch of features, changes from call to call, or depends on the other
            images.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        source: str,
        weights: str,
        library: str,
        preprocessing: Preprocessing,
        input_shape: tuple[int, int, int],
        definition: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.input_shape = input_shape
        self._network = network.eval().requires_grad_(False)
        self._preprocessing = preprocessing
        self._device = next((p.device for p in network.state_dict().values()), torch.device("cpu"))
        self.output_shape = self._checked_shape(source)
        self.config = BackboneConfig(
            backbone=source,
            weights=weights,
            weights_sha256=weights_digest(network),
            library=library,
            preprocessing=preprocessing,
        )
        self.fingerprint = fingerprint(
            type(self).__name__,
            BackboneConfig(**{**vars(self.config), "weights": "", "backbone": source if not definition else ""}),
            input_shape,
            preprocessing=asdict(preprocessing),
            versions={"library": library, "algorithm": str(_ALGORITHM), **(definition or {})},
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """``(B, D, 1, 1)``, or the network's maps; float32.

        Raises:
            UserError: images of another shape or type, outside [0, 1] or not finite.
        """
        check_images(images, self.input_shape)
        return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        output = self._network(self._preprocessing(images.to(self._device, torch.float32)))
        return output.float().unflatten(1, (-1, 1, 1)) if output.ndim == 2 else output.float()

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device, in place."""
        self._network.to(device)
        self._device = torch.device(device)
        return self

    @torch.no_grad()
    def _checked_shape(self, source: str) -> tuple[int, int, int]:
        images = torch.rand(2, *self.input_shape, generator=torch.Generator().manual_seed(0))
        before = versions_of(self._network)
        try:
            output = self._network(self._preprocessing(images.to(self._device)))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            shape = "×".join(map(str, self.input_shape))
            raise UserError(
                f"backbone={source}: cannot take images of {shape} ({reason}); give another --image_size, or another backbone"
            ) from error
        if not (
            isinstance(output, Tensor) and output.ndim in (2, 4) and len(output) == 2 and output.is_floating_point()
        ):
            what: Any = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"backbone={source}: answers two images with {what}, expected features of shape (2, D) or (2, K, h, w); "
                "wrap it in module:FILE.py:FUNCTION so that it gives those"
            )
        together = self._features(images)
        alone = torch.cat([self._features(image[None]) for image in images.flip(0)]).flip(0)
        largest = max(float(together.abs().max()), 1e-6)
        if not together.isfinite().all():
            raise UserError(f"backbone={source}: gives NaN or infinite features for random images; look at its weights")
        if not float((together - alone).abs().max()) <= _TOLERANCE * largest:
            raise UserError(
                f"backbone={source}: an image's features depend on the other images of its batch, or on chance, so they would cost privacy; "
                "make it without batch statistics and random layers"
            )
        changed = [name for name, version in versions_of(self._network).items() if before.get(name) != version]
        if changed:
            raise UserError(f"backbone={source}: computing features changes its {changed[0]}; make it without memory")
        channels, height, width = together.shape[1:]
        return channels, height, width
