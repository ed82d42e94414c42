"""Private examples kept out of training, and the accuracy on them.

**Formal guarantee.** Whether an example is held out depends on a public rule and on the example alone, so adding or removing one moves no other: the
neighbouring data sets stay those that differ by one example, which is in one of the two parts. The numbers of both parts are public, as N is: more than N
alone, since they tell in which part an otherwise unknown example is (:data:`LIMITS_OF_HOLDING_OUT`, which the certificate says). On the
held-out part the number of right answers changes by at most 1 with one example: with Gaussian noise of standard deviation σ it is the
Gaussian mechanism of noise multiplier σ, an entry of the ledger. Without noise it is outside the guarantee, and so is every choice that is made by it.

The rule keeps equal images together, so no copy of a held-out image is trained on.

>>> from scatterdp.datasets import load_dataset
>>> digits = load_dataset("digits")
>>> held_out = held_out_rows(digits, 0.1)
>>> int(held_out.sum()), len(held_out)
(145, 1437)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import torch
from torch import nn

from scatterdp.cache import Features, RowReader, Split
from scatterdp.datasets import Dataset
from scatterdp.errors import ConfigError
from scatterdp.privacy.ledger import LedgerEntry
from scatterdp.privacy.noise import bound_to_sums, noisy_count
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes
from scatterdp.training.evaluation import evaluate
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.rows import LabelledRows

HELD_OUT_RULE = "SHA-256 of 'scatterdp validation' and the image's bytes, its first 8 bytes as a little-endian number below share·2⁶⁴"
LIMITS_OF_HOLDING_OUT = (
    "How many examples were trained on and how many were held out are two public numbers, beside which the rule of holding out is public: someone who "
    "knows all examples but one learns from them, exactly, which part the last one is in. Sample rate, divisors and noise are computed from them and stay "
    "as they are for the neighbour; so one example in place of another is not covered as two changes unless both are in the same part.",
)
_RULE = hashlib.sha256(b"scatterdp validation")


def held_out_rows(dataset: Dataset, share: float) -> np.ndarray:
    """``(N,)`` bool: which training examples are kept out, each a function of its own pixels.

    Args:
        dataset: images.
        share: of the examples, 0 to 1, on average.

    Raises:
        ConfigError: none is left on one of the two sides.
    """
    limit = int(share * 2**64)
    held_out = np.zeros(len(dataset.x_train), bool)
    for row, image in enumerate(dataset.x_train):
        rule = _RULE.copy()
        rule.update(np.ascontiguousarray(image).data)
        held_out[row] = int.from_bytes(rule.digest()[:8], "little") < limit
    if held_out.all() or not held_out.any():
        raise ConfigError(
            f"validation={share}: keeps {int(held_out.sum())} of {len(held_out)} examples out of training; give another share"
        )
    return held_out


@dataclass(frozen=True)
class TrainingSubset:
    """Features of which only some training rows are seen; the test split stays whole.

    Args:
        whole: features of all rows.
        rows: row numbers of the training split, ascending.
    """

    whole: Features
    rows: np.ndarray

    def digest(self) -> str:
        """SHA-256 of the row numbers; with the data set's fingerprint it says whose features these are."""
        return hashlib.sha256(np.ascontiguousarray(self.rows, "<i8").tobytes()).hexdigest()

    @property
    def path(self) -> Path:
        return self.whole.path

    @property
    def dataset_name(self) -> str:
        return self.whole.dataset_name

    @property
    def dataset_fingerprint(self) -> str:
        return self.whole.dataset_fingerprint

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.whole.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.whole.image_shape

    @property
    def extractor_name(self) -> str:
        return self.whole.extractor_name

    @property
    def extractor_fingerprint(self) -> str:
        return self.whole.extractor_fingerprint

    @property
    def extractor_config(self) -> dict[str, Any]:
        return self.whole.extractor_config

    @property
    def output_shape(self) -> tuple[int, int, int]:
        return self.whole.output_shape

    @property
    def dtype(self) -> str:
        return self.whole.dtype

    def content_digest(self) -> str:
        return self.whole.content_digest()

    def num_rows(self, split: Split) -> int:
        return len(self.rows) if split == "train" else self.whole.num_rows(split)

    def labels(self, split: Split) -> np.ndarray:
        labels = self.whole.labels(split)
        return labels[self.rows] if split == "train" else labels

    def iter_rows(
        self, split: Split, rows_per_block: int, *, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of at most ``rows_per_block`` rows, numbered from 0 without gaps; those from ``first`` to before ``stop``."""
        if split != "train":
            yield from self.whole.iter_rows(split, rows_per_block, first=first, stop=stop)
            return
        start, stop = first, len(self.rows) if stop is None else stop
        if start >= stop:
            return
        rows = self.rows[first:stop]
        # Blocks of its own rows, full but for the last: what is summed by blocks is the same however the rows are dealt out.
        pieces: list[np.ndarray] = []
        for begin, block in self.whole.iter_rows(split, rows_per_block, first=int(rows[0]), stop=int(rows[-1]) + 1):
            wanted = rows[slice(*np.searchsorted(rows, [begin, begin + len(block)]))]
            pieces.append(block[wanted - begin])
            if sum(map(len, pieces)) >= rows_per_block:
                joined = np.concatenate(pieces)
                yield start, joined[:rows_per_block]
                start, pieces = start + rows_per_block, [joined[rows_per_block:]]
        if start < stop:
            yield start, np.concatenate(pieces)

    def row_reader(self, split: Split) -> RowReader:
        """Reads rows by their number among those that are seen."""
        reader = self.whole.row_reader(split)
        return reader if split != "train" else _SubsetReader(reader, self.rows)


@dataclass(frozen=True, eq=False)
class _SubsetReader:
    """Some rows of a reader, numbered from 0."""

    whole: RowReader
    rows: np.ndarray

    def expect(self, rows: np.ndarray) -> None:
        """Passed on."""
        self.whole.expect(self.rows[rows])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Passed on."""
        return self.whole.read(self.rows[rows])


def validation_accuracy(
    classifier: nn.Module, rows: LabelledRows, plan: TrainingPlan, key: RandomKey, *, processes: Processes = ONE
) -> tuple[float, list[LedgerEntry]]:
    """The accuracy on held-out rows and what it cost: with the plan's noise, or exact and without an entry.

    Args:
        classifier: after the last step.
        rows: the held-out examples.
        plan: says how much noise.
        key: the run's.
        processes: each of which has a part of the held-out examples.

    Returns:
        The accuracy, which noise may take out of [0, 1], and its ledger entry, if it has one.
    """
    accuracy, _ = evaluate(classifier, rows, processes=processes)
    count = sum(processes.gather(len(rows.y)))
    sigma = plan.validation_noise_multiplier
    if sigma is None:
        return accuracy, []
    exact = round(accuracy * count)
    key = bound_to_sums(key, torch.tensor(exact), *classifier.state_dict().values())
    right = noisy_count(exact, noise_multiplier=sigma, key=key, purpose="validation accuracy", counter=0)
    details = {"noise_multiplier": sigma, "sensitivity": 1.0, "noise_standard_deviation": sigma}
    entry = LedgerEntry("validation accuracy", dp_accounting.GaussianDpEvent(sigma), details)
    return right / count, [entry]
