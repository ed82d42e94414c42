"""scikit-learn's 8×8 digits: in the package, so no network is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.published import PUBLISHED
from scatterdp.errors import DatasetError


def load_digits_dataset() -> Dataset:
    """The 1797 images ``(8, 8)``; values 0…16 become round(v · 255/16).

    The split is fixed: the first 1437 images (in scikit-learn's order) are for training, the last 360 for testing.

    Raises:
        DatasetError: the installed scikit-learn ships other data.
    """
    published = PUBLISHED["digits"]
    bunch: Any = load_digits()
    images = np.rint(np.asarray(bunch["images"]) * (255 / 16)).astype(np.uint8)
    labels = np.asarray(bunch["target"]).astype(np.uint8)
    count = published.train_count
    arrays = {"x_train": images[:count], "y_train": labels[:count], "x_test": images[count:], "y_test": labels[count:]}
    try:
        return published.to_dataset(arrays)
    except DatasetError as error:
        raise DatasetError(f"--dataset=digits: the installed scikit-learn ships other data: {error}") from error
