"""Batch selection: the sampler and its privacy event in one object, so that they cannot disagree.

| kind | step t takes | event of T steps with noise multiplier σ |
|---|---|---|
| ``poisson`` | each example independently with probability q = batch_size / N | T × PoissonSampled(q, Gaussian(σ)) |
| ``full`` | every example | T × Gaussian(σ) |
| ``shuffle`` | the next ``batch_size`` rows of a fresh permutation each epoch, the remainder dropped | epochs × Gaussian(σ) |

``shuffle`` is there for comparison with published code that accounts it as Poisson. Its event claims no
amplification: an example is in at most one batch an epoch, so an epoch is one Gaussian. That holds when the
neighbouring data set has the example's contribution replaced by nothing ("zero-out" adjacency, Chua et al. 2024):
adding or removing a row would move the others between batches. The certificate states the adjacency of the selection.

>>> selection = PoissonSelection(num_examples=1000, batch_size=100, steps=5)
>>> batch = selection.indices(2, RandomKey.from_seed(0))
>>> 50 < len(batch) < 150
True
>>> selection.event(4.0).event.sampling_probability == selection.sample_rate == 0.1
True
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import dp_accounting
import numpy as np

from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import ADJACENCY
from scatterdp.privacy.randomness import RandomKey

Sampling = Literal["poisson", "shuffle"]

#: How a key becomes batches. Raised with every change of that, it goes into what keys are bound to: other batches under the old noise would give it away.
DRAWS = 2

_BLOCK = 1 << 16  # rows whose numbers are drawn together


def common_adjacency(adjacencies: Iterable[str]) -> str:
    """What several releases of the same data hold for together: what holds when an example is added or removed holds when it is replaced by nothing; not the other way round."""
    return next((found for found in adjacencies if found != ADJACENCY), ADJACENCY)


@dataclass(frozen=True, kw_only=True)
class BatchSelection(ABC):
    """Which rows each step takes, and what that costs.

    Args:
        num_examples: N > 0, public.
        batch_size: expected batch size in 1 … N; clipped sums are divided by it.
        steps: number of optimizer updates, ≥ 1.

    Raises:
        ConfigError: a value out of range.
    """

    num_examples: int
    batch_size: int
    steps: int

    kind = ""
    adjacency = ADJACENCY

    def __post_init__(self) -> None:
        if not 0 < self.batch_size <= self.num_examples:
            raise ConfigError(
                f"batch_size={self.batch_size}: expected 1 to {self.num_examples}, the number of training examples"
            )
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps}: expected at least 1")

    @property
    def sample_rate(self) -> float:
        """Inclusion probability per step, batch_size / N."""
        return self.batch_size / self.num_examples

    def indices(self, step: int, key: RandomKey, *, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Row numbers (int64, ascending unless shuffled) of step ``step``; a function of key and step. May be empty.

        Args:
            step: counted from 0.
            key: of the run.
            first, stop: only the step's rows from ``first`` to before ``stop`` (None: the last), for who holds no others.

        Raises:
            ValueError: a step that the event does not count, or rows that are not there.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"step={step}: the event counts steps 0 to {self.steps - 1}")
        stop = self.num_examples if stop is None else stop
        if not 0 <= first <= stop <= self.num_examples:
            raise ValueError(f"rows {first} to {stop}: expected 0 ≤ first ≤ stop ≤ {self.num_examples}")
        return self._indices(step, key, first, stop)

    @abstractmethod
    def _indices(self, step: int, key: RandomKey, first: int, stop: int) -> np.ndarray: ...

    @abstractmethod
    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        """What all ``steps`` cost with Gaussian noise of ``noise_multiplier`` on each clipped sum."""

    def describe(self) -> dict[str, Any]:
        """What the certificate says of the sampler."""
        return {
            "kind": self.kind,
            "num_examples": self.num_examples,
            "expected_batch_size": self.batch_size,
            "sample_rate": self.sample_rate,
            "steps": self.steps,
            "adjacency": self.adjacency,
        }


class PoissonSelection(BatchSelection):
    """Each example independently with probability ``sample_rate``: when its own uniform 64-bit number is below ⌊q·2⁶⁴⌋.

    That is within 2⁻⁶⁴ of batch_size / N, and never above it. Numbers are drawn by blocks of 65 536 rows, so that whoever holds a part of the rows draws no
    other blocks, and compared byte by byte: the first, which costs one byte a row, decides but in one case of 256.
    """

    kind = "poisson"

    def _indices(self, step: int, key: RandomKey, first: int, stop: int) -> np.ndarray:
        if self.batch_size == self.num_examples:
            return np.arange(first, stop)
        threshold = self.batch_size * 2**64 // self.num_examples
        blocks, parts = -(-self.num_examples // _BLOCK), [np.empty(0, np.int64)]
        for block in range(first // _BLOCK, -(-stop // _BLOCK)):
            start = block * _BLOCK
            count = min(_BLOCK, self.num_examples - start)
            rows = start + np.flatnonzero(_below(threshold, key, counter=step * blocks + block, count=count))
            parts.append(rows[(rows >= first) & (rows < stop)])
        return np.concatenate(parts)

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        sampled = dp_accounting.PoissonSampledDpEvent(self.sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
        return dp_accounting.SelfComposedDpEvent(sampled, self.steps)


class FullBatch(BatchSelection):
    """Every example at every step: the plain Gaussian mechanism, exact accounting."""

    kind = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size != self.num_examples:
            raise ConfigError(
                f"batch_size={self.batch_size}: a full batch has all {self.num_examples} training examples"
            )

    def _indices(self, step: int, key: RandomKey, first: int, stop: int) -> np.ndarray:
        return np.arange(first, stop)

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise_multiplier), self.steps)


class ShuffledBatches(BatchSelection):
    """Fixed-size batches of a fresh permutation each epoch; no amplification is claimed."""

    kind = "shuffle"
    adjacency = "one example's contribution replaced by nothing (zero-out); N and the batches' rows stay as they are"

    @property
    def batches_per_epoch(self) -> int:
        return self.num_examples // self.batch_size

    def describe(self) -> dict[str, Any]:
        """Without a sample rate: nothing is sampled at random as far as the guarantee goes."""
        return {name: value for name, value in super().describe().items() if name != "sample_rate"}

    def _indices(self, step: int, key: RandomKey, first: int, stop: int) -> np.ndarray:
        epoch, batch = divmod(step, self.batches_per_epoch)
        order = key.generator("shuffle", counter=epoch).permutation(self.num_examples)
        rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        return rows[(rows >= first) & (rows < stop)]

    def event(self, noise_multiplier: float) -> dp_accounting.DpEvent:
        epochs = -(-self.steps // self.batches_per_epoch)
        return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise_multiplier), epochs)


def _below(threshold: int, key: RandomKey, *, counter: int, count: int) -> np.ndarray:
    """``(count,)`` bool: whether each of ``count`` independent uniform 64-bit numbers is below ``threshold`` < 2⁶⁴."""
    high, low = divmod(threshold, 2**56)
    purpose = "batch selection"
    first_bytes = key.words(f"{purpose}, first bytes", counter=counter, count=-(-count // 8)).view(np.uint8)[:count]
    below = first_bytes < high
    undecided = np.flatnonzero(first_bytes == high)
    rest = key.words(f"{purpose}, other bytes", counter=counter, count=len(undecided)) >> np.uint64(8)
    below[undecided] = rest < np.uint64(low)
    return below


def make_selection(sampling: Sampling, *, num_examples: int, batch_size: int, steps: int) -> BatchSelection:
    """``FullBatch`` when ``batch_size`` is N, else the selection named ``sampling``.

    Raises:
        ConfigError: an unknown name or a value out of range.
    """
    kinds: dict[str, type[BatchSelection]] = {"poisson": PoissonSelection, "shuffle": ShuffledBatches}
    if sampling not in kinds:
        raise ConfigError(f"sampling={sampling!r}: expected one of {', '.join(kinds)}")
    kind = FullBatch if batch_size == num_examples else kinds[sampling]
    return kind(num_examples=num_examples, batch_size=batch_size, steps=steps)
