"""Processes that work together: who they are, and how the first tells the others.

When they extract one cache they write into one file, each its own rows at their fixed places, so the file is the one that a single
process would have written. That needs a file system that all of them see alike: one machine's, or a coherent shared one (Lustre, GPFS;
over NFS two machines' writes to one page may be lost).
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, TypeVar

from scatterdp.errors import ProcessLostError

_T = TypeVar("_T")


class Ranks(Protocol):
    """A process among ``size`` ones, of number ``rank``."""

    rank: int
    size: int

    def share(self, value: Any) -> Any:
        """What rank 0 gave, on every rank; all ranks call it."""
        ...

    def wait(self) -> None:
        """Return when all ranks have called it."""
        ...


class Alone:
    """The only process."""

    rank, size = 0, 1

    def share(self, value: Any) -> Any:
        return value

    def wait(self) -> None:
        pass


class TorchRanks:
    """The processes of one ``torchrun``.

    Every method raises ProcessLostError when one of the others has ended before its time.
    """

    def __init__(self) -> None:
        import torch.distributed as distributed

        self._distributed = distributed
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
            atexit.register(_disconnect)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def share(self, value: Any) -> Any:
        values = [value]
        self._together(lambda: self._distributed.broadcast_object_list(values))
        return values[0]

    def wait(self) -> None:
        self._together(self._distributed.barrier)

    def _together(self, call: Callable[[], _T]) -> _T:
        """What ``call`` gives, in which all ranks take part."""
        try:
            return call()
        except RuntimeError as error:  # what torch makes of a closed connection and of a timeout
            raise ProcessLostError(
                f"one of the {self.size} processes has ended before its time, so this one ends too"
            ) from error


def several() -> bool:
    """Whether ``torchrun`` started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def connected() -> bool:
    """Whether this process has connections to others."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and several() and distributed.is_initialized()


def _disconnect() -> None:
    """Close the connections while the interpreter is whole, also at the end of a script that has no :func:`end`."""
    import torch.distributed as distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def end(code: int) -> NoReturn:
    """End this process at once.

    An interpreter that takes itself down beside the threads of its connections is now and then aborted by them, and torchrun then takes finished work for failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this is the process that speaks and writes for all: the only one, or rank 0."""
    return not several() or os.environ.get("RANK", "0") == "0"


def ranks_of_environment() -> Ranks:
    """:class:`TorchRanks` where ``torchrun`` started more than one process, else :class:`Alone`."""
    return TorchRanks() if several() else Alone()
