"""``sweep.json``: where a sweep is, for people, reports and the sweep itself when it goes on.

Written atomically after every change, so a reader sees one state or the next. It is private: it holds the number of runs, which must stay secret in a random
search, and accuracies that no guarantee covers.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from scatterdp.errors import ConfigError
from scatterdp.writing import json_text, write_whole

NAME = "sweep.json"
SCHEMA = 1

State = Literal["waiting", "running", "done", "failed"]


@dataclass(kw_only=True)
class RunEntry:
    """One run.

    Args:
        name: of its folder.
        changes: in what its config differs from the others', the seed included.
        state: waiting, running, done or failed. A sweep that was killed leaves runs ``running``; it takes them up again.
        error: why it failed.
        run_dir: its run folder, relative to the sweep's.
        arch, target_epsilon, max_grad_norm, lr, epochs: as planned; ``target_epsilon`` None where a noise multiplier is given, all but ``arch`` None where no plan
            could be made.
        noise_multiplier: σ as planned.
        seconds: of features and training.
        test_accuracy: of the last weights, in [0, 1].
        validation_accuracy: on held-out private examples: with noise, or exact (``SweepRecord.validation_is_private``).
        training_accuracy: on the private training data: exact, outside the guarantee; with ``train_metrics`` only.
        epsilon: what the run spent, from its certificate; None while unfinished or without a guarantee.
        looked: whether it may have released anything of the private data.
    """

    name: str
    changes: dict[str, Any]
    run_dir: str
    state: State = "waiting"
    error: str | None = None
    arch: str = ""
    target_epsilon: float | None = None
    max_grad_norm: float | None = None
    lr: float | None = None
    epochs: int | None = None
    noise_multiplier: float | None = None
    seconds: float | None = None
    test_accuracy: float | None = None
    validation_accuracy: float | None = None
    training_accuracy: float | None = None
    epsilon: float | None = None
    looked: bool = False

    @property
    def combination(self) -> dict[str, Any]:
        """The changes without the seed: what runs with several seeds share."""
        return {name: value for name, value in self.changes.items() if name != "seed"}


@dataclass(kw_only=True)
class SweepRecord:
    """A sweep.

    Args:
        name: of the outline.
        command: ``"baselines"`` or ``"cnns"``.
        delta: δ of the runs.
        score: what the best is chosen by.
        validation_is_private: the accuracy on held-out private examples was released with noise, inside the budget; None when nothing is held out.
        random_mean: the mean of the random number of runs; None for a grid.
        num_runs: how many there are.
        finished: every run is done or has failed.
        runs: in the order of the outline.
        selection: what all runs cost and what choosing costs (:mod:`scatterdp.sweeps.selection`).
    """

    name: str
    command: str
    delta: float
    score: str
    validation_is_private: bool | None = None
    random_mean: float | None = None
    num_runs: int = 0
    finished: bool = False
    runs: list[RunEntry] = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the record in a sweep's folder.

        Raises:
            ConfigError: there is none, or it is damaged or of another version.
        """
        try:
            values = json.loads((folder / NAME).read_bytes())
        except OSError as error:
            raise ConfigError(
                f"sweep={folder}: not a sweep's folder ({NAME} in it: {error.strerror}); give one that `python -m scatterdp sweep` has made"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"sweep={folder}: its {NAME} is damaged ({error}); bring it back from a copy, or sweep into another --out"
            ) from error
        try:
            if values.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            runs = [RunEntry(**entry) for entry in values.pop("runs")]
            if any(entry.state not in get_args(State) for entry in runs):
                raise ValueError("an unknown state")
            return cls(runs=runs, **values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"sweep={folder}: its {NAME} is of another version ({error})") from error

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        write_whole(folder / NAME, json_text({"schema": SCHEMA, **dataclasses.asdict(self)}))

    def count(self, state: State) -> int:
        """How many runs are in a state."""
        return sum(entry.state == state for entry in self.runs)

    def scores(self, entry: RunEntry) -> float | None:
        """A run's score, if it has one."""
        return entry.validation_accuracy if self.score == "validation_accuracy" else entry.test_accuracy
