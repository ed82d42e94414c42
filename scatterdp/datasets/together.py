"""One data set for several processes that work together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scatterdp.datasets.dataset import Dataset
from scatterdp.datasets.load import load_dataset
from scatterdp.ranks import Ranks


def load_together(
    name: str, data_dir: Path | None, ranks: Ranks, *, on_event: Callable[[str], None] = print
) -> Dataset:
    """:func:`scatterdp.datasets.load_dataset` by each of several processes: the first fetches, the others find.

    Raises:
        DatasetError: see there.
    """
    dataset = load_dataset(name, data_dir=data_dir, on_event=on_event) if ranks.rank == 0 else None
    ranks.wait()
    return dataset or load_dataset(name, data_dir=data_dir)
