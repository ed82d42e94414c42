"""One private run by several processes, on one machine or many: the rows are dealt out, the guarantee is that of one process.

    torchrun --nproc_per_node=4 -m scatterdp.baselines --dataset=cifar10

Every process holds a contiguous part of the rows. A step is the step of one process, with its sum taken in parts:

1. **batch** – a function of the run's key and the step's number, which every process computes for the rows that it holds. Nothing is sent for it, and
   the batch does not depend on the number of processes K. Each row is in it with probability q, independently of all others: the union
   of the parts is the Poisson sample that the ledger counts, not an approximation to one.
2. **sum** – each process clips and adds up its rows' gradients; the K sums are added up, in the order of the processes (:meth:`Processes.add_up`).
   The same job done again therefore gives the same bits, which a library's own order of addition does not promise.
3. **noise** – is drawn once. Every process computes the same draw from the run's key and the sum, and adds it to that sum: standard deviation σ·C in all,
   neither K draws of σ·C nor K of σ·C/√K. So all have the same gradient, and the same weights, without sending them. That they do is checked
   after every epoch by a digest; processes that disagree stop the run.

**Formal guarantee.** What leaves the processes (weights, the certificate, test accuracy, all written by rank 0) is a function of the noisy sums.
Adding or removing one example changes one term of one process's sum by at most C in L2, so it changes the sum over all by at most C: each step is the
same sampled Gaussian mechanism as with one process, with the same q and σ, and the ledger, and ε, do not depend on K. Statistics are
released in the same way: clipped sums of all, then one draw. Adjacency is add or remove one example, whichever process would hold it.

**What the processes learn of each other.** The run's key (256 bits, from rank 0) and exact partial sums pass between them over the network, unencrypted,
and each knows the key, so each can take the noise off. There is no privacy *between* the processes: they are one trusted party, on
machines and a network that are as trusted as a single machine would be. Rank 0 alone writes files; the checkpoint of an unfinished run holds the key.

**Another number of processes.** K changes the order in which floating-point numbers are added, and with it the last digits of the sums. The noise of a
step is bound to its sums (:func:`scatterdp.privacy.noise.bound_to_sums`), so the same step with other digits has other noise, as it has with other threads or on
another processor: their exact difference never shows. But it would be a second release, for which the ledger has no entry. So a run
goes on with another K only if nothing has been released beyond its checkpoint. Batches, first weights and, but for a preconditioner, statistics do not depend on K. Two runs of one
seed and different K, which a certificate warns of, have their batches in common, and are equal where the sums are: their ledgers do not compose as those of independent
runs do.

**A process that dies** (or a machine that is gone) closes its connections: the others stop with a sentence, ``torchrun`` ends them all, and
``--resume`` goes on from rank 0's checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scatterdp.errors import UserError
from scatterdp.ranks import Alone, Ranks, TorchRanks, several
from scatterdp.training.rows import Piece, Rows

#: Parts of the data are made of whole blocks of so many rows, those that statistics are summed by.
BLOCK = 512

LIMITS = (
    "The run was computed by several processes that trust each other: its random key and exact partial sums passed between them unencrypted. "
    "Nothing is promised against someone who controls one of them or reads their network.",
)


class Processes(Ranks, Protocol):
    """A process among those of a run; all of them call its methods together, in the same order."""

    def gather(self, value: Any) -> list[Any]:
        """What each process gave, in their order, on every process."""
        ...

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes: the same bits on all of them, added in their order.

        Args:
            tensors: of the same shapes, dtype and kind of device everywhere.
        """
        ...


class OneProcess(Alone):
    """The only process: it holds all rows."""

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        pass


ONE = OneProcess()


class TorchProcesses(TorchRanks):
    """The processes of one ``torchrun``: objects and tensors on the CPU go by gloo, tensors on CUDA devices by NCCL."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._group = None
        if torch.device(device).type == "cuda":
            self._group = self._together(lambda: self._distributed.new_group(backend="nccl"))

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        self._together(lambda: self._distributed.all_gather_object(values, value))
        return values

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        part = -(-len(flat) // self.size)
        mine = flat.new_zeros(self.size * part)
        mine[: len(flat)] = flat
        # Each process adds up one part of all the others' and hands the result round: as many bytes as any all-reduce takes.
        others = torch.empty_like(mine)
        self._together(lambda: self._distributed.all_to_all_single(others, mine, group=self._group))
        total, *rest = others.view(self.size, part).unbind(0)
        for other in rest:
            total += other
        parts = list(mine.view(self.size, part).unbind(0))
        self._together(lambda: self._distributed.all_gather(parts, total.contiguous(), group=self._group))
        for tensor, value in zip(tensors, mine[: len(flat)].split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(value.view_as(tensor))


def processes_of_environment(device: torch.device | str = "cpu") -> Processes:
    """The processes that ``torchrun`` started, or :data:`ONE`.

    Args:
        device: where the tensors are that are added up.
    """
    return TorchProcesses(device) if several() else ONE


def only_process(what: str) -> Processes:
    """:data:`ONE`, for a caller who named no processes.

    Raises:
        UserError: ``torchrun`` started several. Each would do all the work, and spend the whole budget, again.
    """
    if several():
        raise UserError(
            f"{what}: torchrun started several processes, and each would fit, and spend the budget, on its own; "
            "give processes=scatterdp.training.distributed.processes_of_environment()"
        )
    return ONE


def part_of(num_rows: int, rank: int, size: int) -> tuple[int, int]:
    """The rows of process ``rank`` among ``size``: from the first to before the last, whole blocks of :data:`BLOCK` but for the data's end.

    >>> [part_of(1437, rank, 2) for rank in range(2)]
    [(0, 512), (512, 1437)]
    """
    blocks = -(-num_rows // BLOCK)
    first, stop = (min(num_rows, blocks * number // size * BLOCK) for number in (rank, rank + 1))
    return first, stop


def in_order(sums: Iterator[Tensor], processes: Processes) -> Iterable[Tensor]:
    """The blocks' sums of all processes, in the order of the rows, for :func:`scatterdp.privacy.statistics.release_channel_statistics`."""
    if processes.size == 1:
        return sums
    gathered = processes.gather([block.numpy() for block in sums])
    return (torch.from_numpy(block) for blocks in gathered for block in blocks)


def check_same(processes: Processes, value: bytes | str, remedy: str) -> None:
    """Stop all processes unless they agree.

    Args:
        value: what has to be the same; only a digest is compared.
        remedy: the sentence for the user.

    Raises:
        UserError: they do not.
    """
    digest = hashlib.sha256(value if isinstance(value, bytes) else value.encode()).digest()
    if len(set(processes.gather(digest))) > 1:
        raise UserError(remedy)


def bits_of(tensors: Iterable[Tensor]) -> bytes:
    """The numbers of tensors, to the bit."""
    return b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in tensors)


@dataclass(frozen=True)
class RowsOfProcess:
    """The rows that one process holds, asked for by the whole data set's numbers.

    Args:
        rows: row ``begin`` of the data set is their row 0.
        first, stop: this process's rows.
        begin: ``first`` when only its rows are there, 0 when all are.
    """

    rows: Rows
    first: int
    stop: int
    begin: int = 0

    def pieces(self, indices: np.ndarray, *, step: int) -> Iterator[Piece]:
        """Pieces of rows that this process holds.

        Raises:
            ValueError: a row of another process, which would be lost.
        """
        if len(indices) and not self.first <= indices.min() <= indices.max() < self.stop:
            raise ValueError(f"rows {indices.min()} to {indices.max()}: this process holds {self.first} to {self.stop}")
        return self.rows.pieces(indices - self.begin, step=step)


_BATCHES = {
    "poisson": "the whole data set's, a function of the run's key and the step; each process draws the blocks of rows in which its own lie",
    "shuffle": "the whole data set's, a function of the run's key and the step: every process permutes all rows and takes those that it holds",
}


def describe(history: Sequence[tuple[int, int]], *, sampler: str) -> dict[str, Any]:
    """What the certificate says of the processes.

    Args:
        history: ``(step, K)``: K processes from that step on.
        sampler: its kind; one that draws nothing has no batch to tell of.
    """
    return {
        "processes": [{"number": number, "from_step": step} for step, number in history],
        "rows": "each process holds a part of the rows, and each row is held by one process",
        **({"batch": _BATCHES[sampler]} if sampler in _BATCHES else {}),
        "noise": "one draw in all: every process computes the same numbers from the run's key and the sum, and adds them to the sum over all processes",
    }
