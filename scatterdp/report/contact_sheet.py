"""A sheet of small images, to look at many at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from scatterdp.errors import ConfigError

_GAP = 2  # pixels between images, before enlargement
_DPI = 100
_TITLE, _LABELS = 40, 180  # pixels that the title's line and the labels' column take


def contact_sheet(
    images: np.ndarray, path: Path, *, title: str, columns: int | None = None, labels: Sequence[str] = ()
) -> None:
    """Write a PNG of images in rows, each pixel enlarged to a whole number of pixels and not otherwise changed.

    Args:
        images: ``(n, C, H, W)`` in [0, 1], n ≥ 1, C = 1 (grey) or 3 (RGB).
        path: the PNG file to write; one that is there is replaced.
        title: one line above.
        columns: images a row. None: as many as rows.
        labels: a name for each row, at its left.

    Raises:
        ConfigError: no images, or images of another shape or range; no columns; labels for fewer or more rows than there are.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.size == 0:
        raise ConfigError(f"images of shape {images.shape}: expected (n, 1, H, W) or (n, 3, H, W), each ≥ 1")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ConfigError(f"images: values from {images.min():g} to {images.max():g}, expected [0, 1]")
    if columns is not None and columns < 1:
        raise ConfigError(f"columns={columns}: expected a whole number ≥ 1")
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    if labels and len(labels) != rows:
        raise ConfigError(f"labels={list(labels)}: expected one for each of {rows} rows")
    sheet = np.ones((rows, columns, height + _GAP, width + _GAP, channels), np.float32)
    sheet.reshape(-1, *sheet.shape[2:])[:count, :height, :width] = images.transpose(0, 2, 3, 1)
    pixels = sheet.transpose(0, 2, 1, 3, 4).reshape(rows * (height + _GAP), columns * (width + _GAP), channels)
    pixels = np.broadcast_to(np.rint(255 * pixels).astype(np.uint8), (*pixels.shape[:2], 3))
    zoom = max(1, 1200 // max(pixels.shape[:2]))
    pixels = pixels.repeat(zoom, 0).repeat(zoom, 1)

    left = _LABELS if labels else 10
    size = (left + pixels.shape[1] + 10, _TITLE + pixels.shape[0] + 10)
    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI)
    figure.figimage(pixels, left, 10, origin="upper")
    figure.text(left / size[0], 1 - _TITLE / 2 / size[1], title, fontsize=11, va="center")
    for row, label in enumerate(labels):
        middle = _TITLE + zoom * (row * (height + _GAP) + height / 2)
        figure.text((left - 10) / size[0], 1 - middle / size[1], label, fontsize=9, ha="right", va="center")
    figure.savefig(path, dpi=_DPI, format="png")
