"""The published data sets: shapes, class names, digests and addresses, in one table.

A source (a local file, the data set's own site, a package) is never trusted: what counts is that the decoded
arrays have these shapes and these SHA-256 digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scatterdp.datasets.dataset import Dataset, array_digest
from scatterdp.errors import DatasetError

Arrays = Mapping[str, np.ndarray]
"""``x_train``, ``y_train``, ``x_test``, ``y_test`` as they are published: all uint8."""


@dataclass(frozen=True, kw_only=True)
class PublishedDataset:
    """What is publicly known about one data set.

    Args:
        name: value of ``--dataset``.
        train_count: images in the training split.
        test_count: images in the test split.
        image_shape: ``(H, W)`` or ``(H, W, 3)``.
        class_names: one name a class; the index is the label.
        digests: SHA-256 (hexadecimal) of each decoded uint8 array in C order.
        addresses: folders on the web that hold the raw files, best first.
    """

    name: str
    train_count: int
    test_count: int
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    digests: Mapping[str, str]
    addresses: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array."""
        return {
            "x_train": (self.train_count, *self.image_shape),
            "y_train": (self.train_count,),
            "x_test": (self.test_count, *self.image_shape),
            "y_test": (self.test_count,),
        }

    def verify(self, arrays: Arrays) -> None:
        """Check dtype, shape and digest of the four decoded arrays.

        Raises:
            DatasetError: an array is missing or is not the published one.
        """
        for array_name, shape in self.shapes.items():
            array = arrays.get(array_name)
            if not isinstance(array, np.ndarray):
                raise DatasetError(f"{array_name} is missing or no array")
            if array.dtype != np.uint8 or array.shape != shape:
                raise DatasetError(
                    f"{array_name} is {array.dtype} of shape {array.shape}, {self.name} has uint8 {shape}"
                )
            digest = array_digest(array)
            if digest != self.digests[array_name]:
                raise DatasetError(
                    f"{array_name} is not that of {self.name}: its SHA-256 is {digest[:12]}…, "
                    f"expected {self.digests[array_name][:12]}…"
                )

    def to_dataset(self, arrays: Arrays) -> Dataset:
        """The verified arrays as a :class:`Dataset`.

        Raises:
            DatasetError: as :meth:`verify`.
        """
        self.verify(arrays)
        return Dataset(
            name=self.name,
            x_train=arrays["x_train"],
            y_train=arrays["y_train"].astype(np.int64),
            x_test=arrays["x_test"],
            y_test=arrays["y_test"].astype(np.int64),
            class_names=self.class_names,
            public=True,
        )


_DIGIT_NAMES = tuple(str(digit) for digit in range(10))

PUBLISHED: dict[str, PublishedDataset] = {
    published.name: published
    for published in (
        PublishedDataset(
            name="mnist",
            train_count=60000,
            test_count=10000,
            image_shape=(28, 28),
            class_names=_DIGIT_NAMES,
            digests={
                "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
                "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
                "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
                "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
            },
            addresses=(
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
        ),
        PublishedDataset(
            name="fmnist",
            train_count=60000,
            test_count=10000,
            image_shape=(28, 28),
            class_names=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            digests={
                "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
                "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
                "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
                "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
            },
            addresses=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        ),
        PublishedDataset(
            name="cifar10",
            train_count=50000,
            test_count=10000,
            image_shape=(32, 32, 3),
            class_names=(
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ),
            digests={
                "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
                "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
                "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
                "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
            },
            addresses=("https://www.cs.toronto.edu/~kriz/",),
        ),
        PublishedDataset(
            name="digits",
            train_count=1437,
            test_count=360,
            image_shape=(8, 8),
            class_names=_DIGIT_NAMES,
            digests={
                "x_train": "1a5fd3b5c524e826767083c882fe4f8c91850d3568a78caadaa66eb3fe78f5b6",
                "y_train": "00d355536cfe54c3c5aaa1bbc756008bcc5ba7030407f225954ebda1d1ca46c9",
                "x_test": "a422c8110b35908d8bc868469498d8bc67c5d5f4357631b3ded0ee283ca6a1e9",
                "y_test": "7a7a9acee298b8862700d7c2a0341a0ee3744e1369c9107a26149f5d0e61b304",
            },
        ),
    )
}
