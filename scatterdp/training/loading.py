"""Which rows a process holds, and which of them in memory."""

from __future__ import annotations

import torch
from torch import nn

from scatterdp.cache import Features, Split
from scatterdp.training.distributed import Processes, part_of
from scatterdp.training.rows import FeatureRows
from scatterdp.training.streaming import StreamedRows, default_budget, open_rows, rows_bytes


class RowLoader:
    """Opens this process's part of one split after another; what no longer fits the budget stays on the disk.

    Args:
        normalizer: applied to features.
        device: where rows are kept.
        physical_batch_size: rows in work at once.
        budget: bytes that all rows in memory may take together; None: a share of what is free.
        processes: that share the rows.
    """

    def __init__(
        self,
        normalizer: nn.Module,
        *,
        device: torch.device | str,
        physical_batch_size: int,
        budget: int | None,
        processes: Processes,
    ) -> None:
        self._normalizer, self._device, self._physical_batch_size = normalizer, device, physical_batch_size
        self._budget = default_budget(device, processes.size) if budget is None else budget
        self._processes = processes

    def __call__(self, features: Features, split: Split) -> FeatureRows | StreamedRows:
        """This process's rows.

        Raises:
            UserError: a row that is not finite after normalisation; no room on the disk for preconditioned rows.
        """
        first, stop = part_of(features.num_rows(split), self._processes.rank, self._processes.size)
        rows = open_rows(
            features,
            split,
            self._normalizer,
            device=self._device,
            physical_batch_size=self._physical_batch_size,
            budget=self._budget,
            first=first,
            stop=stop,
        )
        if self._budget is not None and isinstance(rows, FeatureRows):
            self._budget -= rows_bytes(features, stop - first)
        return rows
