"""Checkpoints: all that a killed run needs to go on as if nothing had happened.

The file holds the run's random key: whoever reads it can recompute every noise draw. It is written with mode 0600 and
removed when the run is complete. It is replaced atomically, so a kill leaves the last complete one. Its first 32 bytes are the
SHA-256 of the rest.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scatterdp.errors import UserError
from scatterdp.privacy.randomness import RandomKey
from scatterdp.writing import whole_file

SCHEMA = 8  # raised, too, with every change of how features, statistics or sums are rounded: steps are done again after a kill
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    Args:
        key: the run's random key.
        context: everything that decides the run's numbers (:func:`scatterdp.training.fit.context`); a run goes on only in
            its own.
        normalizer: the normaliser's state dict (released statistics are released once, not again on resume).
        ledger: entries so far, as JSON values.
        training: :meth:`scatterdp.training.loop.TrainingState.state_dict`.
        metrics: the metrics rows so far.
        seconds: of training so far.
        history: ``(step, K)``: K processes computed from that step on.
        released: epochs whose metrics have left the run. More than there are rows in ``metrics``: steps beyond this checkpoint have been
            released, and only the very same computation may do them again.
        threads: of torch, in each process: they too decide in which order numbers are added.
        processors: what each process computes on (:func:`scatterdp.training.device.processor_of`): so do they.
    """

    key: RandomKey
    context: str
    normalizer: dict[str, Any]
    ledger: list[dict[str, Any]]
    training: dict[str, Any]
    metrics: list[dict[str, Any]]
    seconds: float
    history: tuple[tuple[int, int], ...]
    released: int
    threads: tuple[int, ...]
    processors: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write atomically, readable by the owner only."""
        values = {**vars(self), "key": {"secret": self.key.secret.hex(), "origin": self.key.origin}, "schema": SCHEMA}
        content = io.BytesIO()
        torch.save(values, content)
        with whole_file(path, private=True) as file:
            file.write(hashlib.sha256(content.getbuffer()).digest())
            file.write(content.getbuffer())

    def history_with(self, processes: int) -> tuple[tuple[int, int], ...]:
        """:attr:`history` when so many processes go on from here.

        Raises:
            UserError: another number than before would release steps a second time, with noise that the ledger does not know of.
        """
        before = self.history[-1][1]
        if before == processes:
            return self.history
        if self.released > len(self.metrics):
            raise UserError(
                f"resume: a run of {before} processes has shown epoch {self.released} and its last checkpoint is of epoch "
                f"{len(self.metrics)}; {processes} processes would do what is between them a second time with other noise, "
                f"go on with {before}"
            )
        return (*self.history, (self.training["step"], processes))

    def check_rounding(self, threads: tuple[int, ...], processors: tuple[str, ...]) -> None:
        """Let the same number of processes go on from here with so many threads each, on such processors.

        Raises:
            UserError: others than before would round in another way, and so release steps a second time, with noise that the ledger does not know of.
        """
        if len(threads) != len(self.threads) or self.released <= len(self.metrics):
            return
        for what, before, now in (
            ("OMP_NUM_THREADS=", self.threads, threads),
            ("processor ", self.processors, processors),
        ):
            if now != before:
                raise UserError(
                    f"resume: a run with {what}{_told(before)} has shown epoch {self.released} and its last checkpoint is of epoch "
                    f"{len(self.metrics)}; with {_told(now)} what is between them would be rounded in another way and done a second time with "
                    f"other noise, go on with {what}{_told(before)}"
                )

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint; tensors and plain values only are unpickled.

        Raises:
            UserError: no such file, damaged, or of another version.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"resume={path.parent}: has no {path.name}; start the run anew in another --run_dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); start the run anew in another --run_dir"
            ) from error
        digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise UserError(f"{path}: damaged checkpoint; start the run anew in another --run_dir")
        try:
            values = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
            if values.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            secret = values.pop("key")
            return cls(key=RandomKey(bytes.fromhex(secret["secret"]), secret["origin"]), **values)
        except (
            RuntimeError,
            EOFError,
            pickle.UnpicklingError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            raise UserError(
                f"{path}: not a checkpoint of this version; start the run anew in another --run_dir"
            ) from error


def _told(values: tuple[int, ...] | tuple[str, ...]) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))
