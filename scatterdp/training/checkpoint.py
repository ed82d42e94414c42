"""Checkpoints: all that a killed run needs to go on as if nothing had happened.

The file holds the run's random key: whoever reads it can recompute every noise draw. It is written with mode 0600 and
removed when the run is complete. It is replaced atomically, so a kill leaves the last complete one.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scatterdp.errors import UserError
from scatterdp.privacy.randomness import RandomKey

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    Args:
        key: the run's random key.
        dataset_fingerprint: of the data that the run reads.
        normalizer: the normaliser's state dict (released statistics are released once, not again on resume).
        ledger: entries so far, as JSON values.
        training: :meth:`scatterdp.training.loop.TrainingState.state_dict`.
        metrics: the metrics rows so far.
        seconds: of training so far.
    """

    key: RandomKey
    dataset_fingerprint: str
    normalizer: dict[str, Any]
    ledger: list[dict[str, Any]]
    training: dict[str, Any]
    metrics: list[dict[str, Any]]
    seconds: float

    def save(self, path: Path) -> None:
        """Write atomically, readable by the owner only."""
        values = {**vars(self), "key": {"secret": self.key.secret.hex(), "seed": self.key.seed}, "schema": SCHEMA}
        temporary = path.with_name(path.name + ".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint; tensors and plain values only are unpickled.

        Raises:
            UserError: no such file, damaged, or of another version.
        """
        try:
            values = torch.load(path, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            raise UserError(
                f"resume={path.parent}: has no {path.name}; the run is complete or never began, start one with a new --run_dir"
            ) from None
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise UserError(f"{path}: damaged checkpoint ({error}); start the run anew in another --run_dir") from error
        if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
            raise UserError(f"{path}: not a checkpoint of this version; start the run anew in another --run_dir")
        secret = values.pop("key")
        return cls(key=RandomKey(bytes.fromhex(secret["secret"]), secret["seed"]), **values)
