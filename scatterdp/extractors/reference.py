"""Features of synthetic images: public numbers that bound what is released of private ones.

The images are dead leaves from a fixed seed, so what is computed from them depends on the extractor alone. RGB images
are taken as they are. Grey ones are made two-tone at their median: grey data sets of people's handwriting, clothes or
scans have the contrast of ink, not of photographs. Either choice is valid for any data; a closer one clips fewer
examples and adds less noise.
"""

from __future__ import annotations

import numpy as np
import torch

from scatterdp.extractors.base import Extractor
from scatterdp.extractors.synthetic import dead_leaves

NUM_IMAGES = 256
SEED = 0
DESCRIPTION = f"{NUM_IMAGES} synthetic dead-leaves images (seed {SEED}; two-tone when grey) through the same extractor"


def reference_features(extractor: Extractor, *, batch_size: int = 32) -> torch.Tensor:
    """``(256, K, h, w)`` features of synthetic images of the extractor's input shape, on the CPU."""
    images = dead_leaves(NUM_IMAGES, extractor.input_shape, seed=SEED)
    if extractor.input_shape[0] == 1:
        median = np.median(images, axis=(1, 2, 3), keepdims=True)
        images = (images > median).astype(np.float32)
    return torch.cat([extractor(batch).cpu() for batch in torch.from_numpy(images).split(batch_size)])
