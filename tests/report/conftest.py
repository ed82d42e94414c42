"""A run of ``fit`` beside those of the published command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scatterdp.commands.fit import FitConfig, fit
from scatterdp.datasets import load_dataset


@pytest.fixture(scope="session")
def own_fit(tmp_path_factory) -> Path:
    """The run folder of a classifier of someone's own features."""
    folder = tmp_path_factory.mktemp("fit")
    digits = load_dataset("digits")
    for split in ("train", "test"):
        images, labels = digits.split(split)
        np.save(folder / f"{split}.npy", (images.reshape(len(images), -1) / 255).astype(np.float32))
        np.save(folder / f"{split}_labels.npy", labels)
    return fit(
        FitConfig(
            features=str(folder / "train.npy"),
            labels=str(folder / "train_labels.npy"),
            test_features=str(folder / "test.npy"),
            test_labels=str(folder / "test_labels.npy"),
            head="class_means",
            seed=13572468,
            run_dir=folder / "run",
        )
    )
