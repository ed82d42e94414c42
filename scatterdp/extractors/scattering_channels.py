"""What each scattering channel is: a colour and a path of wavelets, in Kymatio's order.

Order 0; order 1 by scale, then orientation; order 2 by the first wavelet, then the second's scale j₂ > j₁, then its
orientation. All channels of a colour come before the next colour's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Path = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One channel.

    Args:
        colour: index of the image's channel.
        scales: j of each wavelet on the path; its centre frequency is 3π/4 · 2^-j radians a pixel.
        orientations: index θ of each wavelet.
        angles: the same in radians, of the direction across the wavelet's crests, from downwards (0) to rightwards (π/2).
    """

    colour: int
    scales: tuple[int, ...]
    orientations: tuple[int, ...]
    angles: tuple[float, ...]

    @property
    def order(self) -> int:
        """0, 1 or 2 wavelets."""
        return len(self.scales)

    @property
    def name(self) -> str:
        """For people.

        >>> scattering_channels(J=2, L=8, max_order=2, colours=1)[30].name
        'colour 0, j=0 θ=1, j=1 θ=5'
        """
        path = (f", j={j} θ={theta}" for j, theta in zip(self.scales, self.orientations, strict=True))
        return f"colour {self.colour}" + "".join(path)


def scattering_paths(*, J: int, L: int, max_order: int) -> list[Path]:
    """The paths ``((j₁, θ₁), (j₂, θ₂))``, shorter for lower orders, of one colour in the order of the channels."""
    first = [(j, theta) for j in range(J) for theta in range(L)]
    paths: list[Path] = [(), *((wavelet,) for wavelet in first)]
    if max_order == 2:
        paths += [
            ((j1, theta1), (j2, theta2)) for j1, theta1 in first for j2 in range(j1 + 1, J) for theta2 in range(L)
        ]
    return paths


def scattering_channels(*, J: int, L: int, max_order: int, colours: int) -> tuple[Channel, ...]:
    """Every channel of a scattering transform.

    >>> [len(scattering_channels(J=2, L=8, max_order=order, colours=3)) for order in (1, 2)]
    [51, 243]
    """
    return tuple(
        Channel(
            colour=colour,
            scales=tuple(j for j, _ in path),
            orientations=tuple(theta for _, theta in path),
            angles=tuple(angle_of(theta, L) for _, theta in path),
        )
        for colour in range(colours)
        for path in scattering_paths(J=J, L=L, max_order=max_order)
    )


def angle_of(theta: int, L: int) -> float:
    """Radians of orientation index θ in Kymatio's filter bank."""
    return (int(L - L / 2 - 1) - theta) * math.pi / L


def mirrored_orientation(theta: int, L: int) -> int:
    """The orientation index of ψ_θ's mirror image: the one of the opposite angle, up to half a turn."""
    return (2 * int(L - L / 2 - 1) - theta) % L
