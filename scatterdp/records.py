"""The run folder: what a run leaves for people and programs.

| file | content |
|---|---|
| ``config.json`` | the command's config as given |
| ``metrics.jsonl`` | a row an epoch |
| ``certificate.json`` | the guarantee and its ledger |
| ``summary.json`` | the run in one object |
| ``model.safetensors``, ``model_ema.safetensors`` | last and averaged weights, normaliser included |
| ``accuracy_epsilon.png`` | test accuracy and ε against steps |
| ``test_predictions.npz`` | how often which class was taken for which on the test split; of published data, of every example |
| ``checkpoint.pt`` | while the run is unfinished; private |
"""

from __future__ import annotations

import io
import json
import math
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import filelock
import numpy as np
from safetensors.torch import save
from torch import Tensor

from scatterdp.config import RunConfig
from scatterdp.errors import ConfigError, RunLockedError, UserError
from scatterdp.writing import DISK_FULL, json_text, write_whole

_Config = TypeVar("_Config", bound=RunConfig)


class Config(Protocol):
    """A command's config."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...


def new_run_dir(name: str) -> Path:
    """Where a run goes that was told no place: ``runs/NAME-TIME``."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S-%f}"


class RunFolder:
    """One run's folder; every file but the metrics appears whole or not at all.

    Whatever writes to it raises UserError where the disk is full, or gone.

    Args:
        path: where it is.
        run_dir: what messages call it. None: ``path``.

    Attributes:
        again: how the run goes on when it could not be written; None: it begins anew.
    """

    def __init__(self, path: Path, *, run_dir: Path | None = None) -> None:
        self.path = path
        self.run_dir = run_dir or path
        self.again: str | None = None

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def has_begun(self) -> bool:
        """Whether something may have left the private data: then only a checkpoint can go on, with the very noise of before."""
        metrics = self.path / "metrics.jsonl"
        return self.checkpoint.exists() or (metrics.exists() and metrics.stat().st_size > 0)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Tell a disk that is full, or gone, as one sentence; whatever is written to the folder is written in here.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            yield
        except OSError as error:
            remedy = self.again or "give another --run_dir"
            if error.errno in DISK_FULL:
                remedy = f"make room, {'and' if self.again else 'or'} {remedy}"
            raise UserError(f"run_dir={self.run_dir}: cannot be written ({error.strerror}); {remedy}") from error

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """A new folder with its config; after an error nothing is there.

        Raises:
            UserError: something is there already, or the folder cannot be made.
        """
        run = cls(path)
        run.check_new(path)
        with _made(path), run.writing():
            path.mkdir(parents=True, exist_ok=True)
            run.write_json("config.json", config.to_json())
        return run

    @classmethod
    @contextmanager
    def whole(cls, path: Path, config: Config) -> Iterator[RunFolder]:
        """A new folder with its config that is at ``path`` when the block has ended; after an error nothing is.

        Raises:
            UserError: something is there already, or the folder cannot be written.
        """
        cls.check_new(path, resumable=False)
        run = cls(path.with_name(f".{path.name}.{os.getpid()}.unfinished"), run_dir=path)
        with _made(path), run.writing():
            try:
                run.path.mkdir(parents=True)
                run.write_json("config.json", config.to_json())
                yield run
                os.replace(run.path, path)  # onto nothing, or an empty folder
            except BaseException:
                shutil.rmtree(run.path, ignore_errors=True)
                raise
        run.path = path

    @staticmethod
    def check_new(path: Path, *, resumable: bool = True) -> None:
        """Raise ConfigError when ``path`` holds anything, or when no folder can be made there; ``resumable``: a run can go on."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            can = resumable and (path / "config.json").exists()
            instead = f", or --resume={path} to go on with it" if can else ""
            raise ConfigError(f"run_dir={path}: is there already and is left alone; give another --run_dir{instead}")
        nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise ConfigError(f"run_dir={path}: {nearest} is not a folder to write in; give another --run_dir")

    @classmethod
    def reopen(cls, path: Path, config: type[_Config]) -> tuple[RunFolder, _Config]:
        """An unfinished run and its config; one that was stopped before its first checkpoint begins anew.

        Raises:
            ConfigError: not a run folder, or a complete run.
        """
        try:
            content = (path / "config.json").read_bytes()
        except OSError as error:
            raise ConfigError(f"resume={path}: not a run folder (no config.json in it)") from error
        if (path / "summary.json").exists():
            cls(path).finish()  # a kill may have left the key behind
            raise ConfigError(f"resume={path}: this run is complete; start another with a new --run_dir")
        try:
            return cls(path), config.from_json(content.decode())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"resume={path}: its config.json is damaged ({error}); start another run with a new --run_dir"
            ) from error
        except ConfigError as error:
            raise ConfigError(
                f"resume={path}: not a config of this command ({error}); go on with the command and version that began the run"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second process.

        Raises:
            RunLockedError: another live process has it.
        """
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        with self.writing():
            try:
                lock.acquire()
            except filelock.Timeout:  # an OSError too
                raise RunLockedError(
                    f"run_dir={self.path}: another live process is running this run; wait for it"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def write(self, name: str, content: str | bytes) -> None:
        """Write ``name`` atomically."""
        with self.writing():
            write_whole(self.path / name, content)

    def write_json(self, name: str, value: Any) -> None:
        """Write ``name`` as JSON."""
        self.write(name, json_text(value))

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl`` by these rows."""
        self.write("metrics.jsonl", "".join(_line(row) for row in rows))

    def count_metrics(self) -> int:
        """How many rows ``metrics.jsonl`` has: epochs that have been shown."""
        path = self.path / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one row to ``metrics.jsonl``."""
        with self.writing(), (self.path / "metrics.jsonl").open("a") as file:
            file.write(_line(row))

    def write_model(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write ``name`` as safetensors, with ``facts`` as JSON in its metadata (one entry: several come in no fixed order)."""
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        self.write(name, save(contiguous, metadata={"facts": json.dumps(facts)}))

    def write_test_predictions(self, predicted: np.ndarray, labels: np.ndarray, *, by_example: bool) -> None:
        """Write ``test_predictions.npz``: ``confusion``, ``(K, 3)`` rows of class, predicted class and how often (at least once).

        Args:
            predicted: ``(N,)`` class numbers.
            labels: ``(N,)`` true class numbers.
            by_example: ``predicted`` too, in the order of the test split. For published data: another split's examples may be people.
        """
        pairs, counts = np.unique(np.stack([labels, predicted], axis=1), axis=0, return_counts=True)
        arrays = {"confusion": np.concatenate([pairs, counts[:, None]], axis=1).astype(np.int64)}
        if by_example:
            arrays["predicted"] = predicted.astype(np.int64)
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        self.write("test_predictions.npz", content.getvalue())

    def finish(self) -> None:
        """Remove the checkpoint, which holds the run's random key, and what a kill left of writing one."""
        for path in (self.checkpoint, self.checkpoint.with_name(self.checkpoint.name + ".tmp")):
            path.unlink(missing_ok=True)


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """After an error, take away the folders that the block made for ``path``, itself included, if nothing is in them."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]  # the innermost first
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # another run may have come to live there
                folder.rmdir()
        raise


def _line(row: dict[str, Any]) -> str:
    """A row as strict JSON: a number that is not finite (a diverged loss) becomes null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
