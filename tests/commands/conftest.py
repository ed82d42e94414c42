"""A person's own features and images for ``fit`` and ``predict``, and a run of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scatterdp.commands.fit import FitConfig, fit
from scatterdp.datasets import load_dataset

NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


@pytest.fixture(scope="session")
def own_files(tmp_path_factory) -> Path:
    """The digits as a person may have them: pixels in ``x.npy``, labels in ``y.npy`` (numbers) and ``y.txt`` (names), ``x_test.npy`` …"""
    folder = tmp_path_factory.mktemp("own")
    digits = load_dataset("digits")
    for end, split in (("", "train"), ("_test", "test")):
        images, labels = digits.split(split)
        np.save(folder / f"x{end}.npy", (images.reshape(len(images), -1) / 255).astype(np.float16))
        np.save(folder / f"y{end}.npy", labels)
        (folder / f"y{end}.txt").write_text("".join(f"{name}\n" for name in NAMES[labels]))
    return folder


@pytest.fixture(scope="session")
def own_images(tmp_path_factory) -> Path:
    """180 digits of three classes as ``train/<class>/*.png``, 60 as ``test/…``."""
    folder = tmp_path_factory.mktemp("images") / "figures"
    digits = load_dataset("digits")
    for split, count in (("train", 60), ("test", 20)):
        images, labels = digits.split(split)
        for label in (0, 1, 7):
            place = folder / split / NAMES[label]
            place.mkdir(parents=True)
            for number, image in enumerate(images[labels == label][:count]):
                Image.fromarray(image).save(place / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def features_run(own_files, tmp_path_factory) -> Path:
    """A run on features, whose classes are names."""
    return fit(
        FitConfig(
            features=str(own_files / "x.npy"),
            labels=str(own_files / "y.txt"),
            test_features=str(own_files / "x_test.npy"),
            test_labels=str(own_files / "y_test.txt"),
            target_delta=1e-4,
            seed=0,
            run_dir=tmp_path_factory.mktemp("runs") / "features",
        )
    )


@pytest.fixture(scope="session")
def images_run(own_images, tmp_path_factory) -> Path:
    """A run on images."""
    return fit(
        FitConfig(
            features=str(own_images),
            target_epsilon=8.0,
            target_delta=1e-4,
            seed=0,
            run_dir=tmp_path_factory.mktemp("runs") / "images",
        )
    )
