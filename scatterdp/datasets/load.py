"""One function for every data set: by published name, from a folder, or from an ``.npz``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.digits import load_digits_dataset
from scatterdp.datasets.fetch import default_data_dir, fetch_published
from scatterdp.datasets.folder import read_image_folder
from scatterdp.datasets.npz import read_npz
from scatterdp.datasets.published import PUBLISHED
from scatterdp.errors import DatasetError

DATASET_NAMES: tuple[str, ...] = tuple(PUBLISHED)
"""Names that ``--dataset`` knows; paths are the alternative."""

_OTHER_SPELLINGS = {
    "fashion-mnist": "fmnist",
    "fashion_mnist": "fmnist",
    "fashionmnist": "fmnist",
    "cifar-10": "cifar10",
}


def load_dataset(
    dataset: str,
    *,
    data_dir: Path | None = None,
    on_event: Callable[[str], None] | None = None,
    local_only: bool = False,
) -> Dataset:
    """Load a data set.

    Args:
        dataset: ``mnist``, ``fmnist``, ``cifar10`` or ``digits``; or a folder ``train/<class>/*.png|jpg|jpeg``,
            ``test/<class>/…`` (see :func:`scatterdp.datasets.folder.read_image_folder`); or an ``.npz`` with
            ``x_train``, ``y_train``, ``x_test``, ``y_test`` (see :func:`scatterdp.datasets.npz.read_npz`).
            A folder that is called like a published set is written with a slash: ``./mnist``.
        data_dir: where published sets are looked for and stored. Default: the environment variable
            ``SCATTERDP_DATA``, else ``./data``.
        on_event: receives a short sentence for each step that a user may want to see.
        local_only: take a published set that is in ``data_dir``; fetch nothing and write nothing.

    Returns:
        The data set: images ``(N, H, W)`` or ``(N, H, W, 3)`` uint8, labels ``(N,)`` int64.

    Raises:
        DatasetError: unknown name, missing or unreadable files, no source reachable, or other data than published.
    """
    report = on_event if on_event is not None else _discard
    if dataset == "digits":
        return load_digits_dataset()
    if dataset in PUBLISHED:
        directory = Path(data_dir) if data_dir is not None else default_data_dir()
        return fetch_published(dataset, data_dir=directory, on_event=report, local_only=local_only)
    if dataset and os.path.isdir(dataset):
        return read_image_folder(Path(dataset), on_event=report)
    is_npz = dataset.lower().endswith(".npz")
    if is_npz and os.path.isfile(dataset):
        return read_npz(Path(dataset))
    expected = f"expected {', '.join(DATASET_NAMES)}, a folder with train/ and test/, or an .npz file"
    if os.path.isfile(dataset):
        raise DatasetError(f"--dataset={dataset}: a file that is not an .npz: {expected}")
    if is_npz or os.sep in dataset:
        raise DatasetError(f"--dataset={dataset}: no such file or folder: {expected}")
    raise DatasetError(f"--dataset={dataset}: unknown{_suggestion(dataset)}: {expected}")


def _discard(sentence: str) -> None:
    """Take an event that nobody listens to."""


def _suggestion(dataset: str) -> str:
    spellings = {name: name for name in DATASET_NAMES} | _OTHER_SPELLINGS
    matches = difflib.get_close_matches(dataset.casefold(), spellings, n=1)
    return f", did you mean {spellings[matches[0]]}?" if matches else ""
