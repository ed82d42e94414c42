"""Mirror folding: coordinates of the projection on scattering features that are equal to their mirrored selves.

Scattering nearly commutes with mirroring: orientation θ becomes -θ and column i of the grid becomes column w - i. (Grid point i
sits at pixel 2^J·i, so the mirror image's point sits one pixel beside it; column 0 has no partner.) The map that swaps both is an
involution G; the features x and Gx of an image are those of its mirror image and back, up to that pixel. Folding keeps the
coordinates of the projection (x + Gx)/√2 … on the G-symmetric subspace, which is all that a classifier blind to mirroring can
use: half the dimensions, so half the memory, half the work and less noise in a private gradient of the same signal. It is a
fixed function of one image.
"""

from __future__ import annotations

import torch

from scatterdp.extractors.scattering_channels import Path, mirrored_orientation


class MirrorFold:
    """The folding of features ``(B, K, h, w)``, a weighted sum of two gathers.

    Args:
        paths: of one colour, in the order of the channels.
        L: number of orientations.
        colours: channels are grouped by colour.
        height, width: the grid h × w.
    """

    def __init__(self, paths: list[Path], *, L: int, colours: int, height: int, width: int) -> None:
        number = {path: channel for channel, path in enumerate(paths)}
        one_colour = torch.tensor([number[tuple((j, mirrored_orientation(theta, L)) for j, theta in p)] for p in paths])
        channels = torch.cat([colour * len(paths) + one_colour for colour in range(colours)])
        columns = torch.arange(width // 2 + 1)
        partners = torch.where(columns == 0, 0, width - columns)
        # Two columns become one: √½ keeps lengths. A column that is its own partner stays, once for a channel and once for
        # the channel's mirror. Column 0 has no partner on the grid and stays as it is.
        own = torch.where(columns == 0, 1.0, torch.where(columns == partners, 0.5, 0.5**0.5))
        self.shape = (len(channels), height, len(columns))
        position = torch.arange(len(channels) * height * width).view(len(channels), height, width)
        self._own = position[:, :, columns].flatten()
        self._mirrored = position[channels][:, :, partners].flatten()
        self._own_weight = own.expand(self.shape).flatten()
        self._mirrored_weight = torch.where(columns == 0, 0.0, own).expand(self.shape).flatten()

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """``(B, K, h, w) -> (B, K, h, ⌊w/2⌋ + 1)``."""
        flat = features.flatten(1)
        folded = flat.index_select(1, self._own).mul_(self._own_weight)
        folded.addcmul_(flat.index_select(1, self._mirrored), self._mirrored_weight)
        return folded.unflatten(1, self.shape)

    def to(self, device: torch.device | str) -> None:
        """Move the indices and weights, in place."""
        for name in ("_own", "_mirrored", "_own_weight", "_mirrored_weight"):
            setattr(self, name, getattr(self, name).to(device))
