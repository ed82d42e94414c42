"""A picture of a scattering transform: its wavelets, and what one image becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from scatterdp.datasets.images import to_channels_first_float
from scatterdp.extractors.scatternet import ScatterNet


def plot_scattering(extractor: ScatterNet, image: np.ndarray, path: Path) -> None:
    """Write :func:`draw_scattering` to ``path``, a PNG file."""
    draw_scattering(extractor, image).savefig(path, dpi=150)


def draw_scattering(extractor: ScatterNet, image: np.ndarray) -> Figure:
    """Draw the wavelets and one image's coefficients.

    Args:
        extractor: without mirror folding or with; coefficients are drawn without, of the first colour.
        image: ``(H, W)`` or ``(H, W, 3)`` uint8.
    """
    config = extractor.config
    J, L = config.J, config.L
    channels = [channel for channel in extractor.channels if channel.colour == 0]
    maps = extractor.unfolded(torch.from_numpy(to_channels_first_float(image[None])))[0, : len(channels)].cpu().numpy()
    figure = Figure(
        figsize=(1.1 * (L + 2), 1.1 * (2 * J + 1.5 + 1.9 * (config.max_order == 2 and J > 1))), layout="constrained"
    )
    parts: Any = [figure, None]
    if config.max_order == 2 and J > 1:
        parts = figure.subfigures(2, 1, height_ratios=(2 * J + 0.9, 2.2))
    top, bottom = parts
    axes = top.subplots(2 * J, L + 2, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for theta in range(L):
        for j in range(J):
            _show(axes[j, theta + 2], _around_origin(extractor.wavelet(j, theta), 5 * 2**j), "RdBu", symmetric=True)
            _show(axes[J + j, theta + 2], maps[1 + j * L + theta], "viridis")
    for j in range(J):
        axes[j, 2].set_title(f"ψ, j = {j}", fontsize=9.5, loc="left")
        axes[J + j, 2].set_title(f"|x ⋆ ψ| ⋆ φ, j = {j}", fontsize=9.5, loc="left")
    axes[0, 0].imshow(image, cmap="gray" if image.ndim == 2 else None)
    axes[0, 0].set_title("x", fontsize=9.5)
    _show(axes[J, 0], maps[0], "viridis")
    axes[J, 0].set_title("x ⋆ φ", fontsize=9.5)
    if bottom is not None:
        pairs = [(j1, j2) for j1 in range(J) for j2 in range(j1 + 1, J)]
        for axis, (j1, j2) in zip(bottom.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            energy = np.zeros((L, L))
            for channel, values in zip(channels, maps, strict=True):
                if channel.scales == (j1, j2):
                    energy[channel.orientations] = values.mean()
            axis.imshow(energy, cmap="viridis")
            axis.set_title(f"order 2, j = {j1}, {j2}", fontsize=9.5)
            axis.set_xlabel("θ₂", fontsize=9.5)
            axis.set_ylabel("θ₁", fontsize=9.5)
            axis.tick_params(labelsize=8)
            axis.grid(visible=False)
    return figure


def _around_origin(response: np.ndarray, reach: int) -> np.ndarray:
    """The filter of a frequency response, at most ``reach`` pixels around its centre."""
    height, width = (np.clip(np.arange(-reach, reach + 1), -(n // 2), n // 2) for n in response.shape)
    return np.fft.ifft2(response).real[np.ix_(np.unique(height), np.unique(width))]


def _show(axis, values: np.ndarray, colours: str, *, symmetric: bool = False) -> None:
    limit = float(np.abs(values).max()) or 1.0
    axis.imshow(values, cmap=colours, vmin=-limit if symmetric else None, vmax=limit if symmetric else None)
