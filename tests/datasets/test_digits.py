from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from scatterdp.datasets import digits, load_dataset
from scatterdp.errors import DatasetError


def test_scale_and_split() -> None:
    dataset = load_dataset("digits")
    bunch: Any = load_digits()
    assert dataset.public
    assert dataset.x_train.shape == (1437, 8, 8)
    assert dataset.x_test.shape == (360, 8, 8)
    assert dataset.y_test.tolist() == bunch["target"][1437:].tolist()
    levels = np.array([int(np.rint(v * 255 / 16)) for v in range(17)])
    np.testing.assert_array_equal(dataset.x_train, levels[bunch["images"][:1437].astype(int)])


def test_other_data_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    bunch: Any = load_digits()
    bunch["images"][0, 0, 0] = 9
    monkeypatch.setattr(digits, "load_digits", lambda: bunch)
    with pytest.raises(DatasetError, match=r"--dataset=digits: the installed scikit-learn .* x_train is not that"):
        digits.load_digits_dataset()
