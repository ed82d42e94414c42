"""Small data for estimators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits


@pytest.fixture(scope="session")
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """600 rows of 6 features around three centres, shuffled, and their class numbers."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(600) % 3)
    centres = 3 * np.eye(3, 6)
    return centres[y] + rng.normal(0, 0.4, (600, 6)), y


@pytest.fixture(scope="session")
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """1797 images of 8×8 bytes, and their digits."""
    X, y = load_digits(return_X_y=True)
    return (X.reshape(-1, 8, 8) / 16 * 255).round().astype(np.uint8), y
