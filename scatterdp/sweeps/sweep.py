"""A sweep: its outline, its data set, what each of its runs would do and what they cost together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scatterdp.config import BaselinesConfig
from scatterdp.datasets import Dataset, load_dataset
from scatterdp.datasets.fetch import default_data_dir
from scatterdp.errors import ConfigError
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.tuning import NumberOfTrials
from scatterdp.sweeps.outline import Outline, parse_outline, run_name
from scatterdp.sweeps.plans import PlannedRun, plan_runs
from scatterdp.sweeps.record import RunEntry, SweepRecord
from scatterdp.sweeps.selection import SHAPE, selection_cost


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things are that an outline does not say; None leaves the outline's.

    Args:
        data_dir, features_dir, device: see :class:`scatterdp.config.BaselinesConfig`.
    """

    data_dir: Path | None = None
    features_dir: Path | None = None
    device: str | None = None


class Sweep:
    """An outline, its data set and what each of its runs would do.

    Args:
        text: the outline's.
        name: of the outline.
        places: see :class:`Places`.
        random_mean: the mean of a random number of runs; None for the whole grid.

    Raises:
        UserError: see the message.
    """

    def __init__(self, text: str, *, name: str, places: Places, random_mean: float | None = None) -> None:
        self.text, self.places, self.random_mean = text, places, random_mean
        self.outline: Outline = parse_outline(text, name=name)
        self.trials = None if random_mean is None else self._trials(random_mean)
        first = self._config(self.outline.runs()[0], None)
        self.dataset: Dataset = load_dataset(first.dataset, data_dir=first.data_dir, on_event=print)

    def _trials(self, mean: float) -> NumberOfTrials:
        if self.outline.seeds:
            raise ConfigError(
                f"random={mean:g}: trials need fresh noise, and the outline names seeds={list(self.outline.seeds)}; leave seeds out of it"
            )
        if self.outline.score_is_exact_on_private_data:
            raise ConfigError(
                f"random={mean:g}: the score must be private or of public data; give the outline a validation_noise_multiplier, or "
                'score = "test_accuracy"'
            )
        if any(self.outline.config_of(changes).optim == "LR" for changes in self.outline.runs()):
            raise ConfigError(
                f"random={mean:g}: optim=LR is not private, so no bound applies; leave it out of the outline"
            )
        try:
            return NumberOfTrials(mean=mean, shape=SHAPE)
        except ConfigError as error:
            raise ConfigError(f"random={mean:g}: {str(error).partition(': ')[2]}") from error

    def new_changes(self) -> list[dict[str, Any]]:
        """What each run changes: all combinations, or a random number of them drawn with replacement, by a fresh key."""
        runs = self.outline.runs()
        if self.trials is None:
            return runs
        key = RandomKey.from_system()
        generator = key.generator("candidates")
        return [runs[int(generator.integers(len(runs)))] for _ in range(self.trials.draw(key))]

    def planned(self, changes: Sequence[dict[str, Any]], run_dirs: Sequence[Path | None]) -> list[PlannedRun]:
        """The plan of each run."""
        configs = [self._config(one, run_dir) for one, run_dir in zip(changes, run_dirs, strict=True)]
        return plan_runs(configs, self.dataset)

    def new_record(self) -> SweepRecord:
        """The record of a sweep that has not begun."""
        changes, outline = self.new_changes(), self.outline
        names = [run_name(number, one) for number, one in enumerate(changes, 1)]
        return SweepRecord(
            name=outline.name,
            command=outline.command,
            delta=outline.config.get("target_delta", outline.config_class().target_delta),
            score=outline.score,
            validation_is_private=outline.validation_noise_multiplier is not None if outline.validation else None,
            random_mean=self.random_mean,
            num_runs=len(changes),
            runs=[
                RunEntry(name=name, changes=one, run_dir=f"runs/{name}")
                for name, one in zip(names, changes, strict=True)
            ],
        )

    def cost(self, looked: Sequence[PlannedRun], candidates: Sequence[PlannedRun]) -> dict[str, Any]:
        """:func:`scatterdp.sweeps.selection.selection_cost` of these runs."""
        return selection_cost(
            [run.cost for run in looked if run.cost is not None],
            [run.cost for run in candidates if run.cost is not None],
            random_mean=self.random_mean,
            score=self.outline.score,
            exact_on_private_data=self.outline.score_is_exact_on_private_data,
            seeded=bool(self.outline.seeds),
        )

    def candidates(self) -> list[PlannedRun]:
        """The plan of every combination of the outline."""
        changes = self.outline.runs()
        return self.planned(changes, [None] * len(changes))

    def _config(self, changes: dict[str, Any], run_dir: Path | None) -> BaselinesConfig:
        given = {
            field.name: value
            for field in dataclasses.fields(self.places)
            if (value := getattr(self.places, field.name)) is not None
        }
        config = self.outline.config_of(changes, **given)
        logdir = None if config.logdir is None or run_dir is None else (config.logdir / run_dir.name).absolute()
        # Workers may live elsewhere.
        return dataclasses.replace(
            config,
            run_dir=run_dir,
            logdir=logdir,
            data_dir=(config.data_dir or default_data_dir()).absolute(),
            features_dir=config.features_dir.absolute(),
        )


def distinct_budgets(planned: Sequence[PlannedRun]) -> int:
    """How many different budgets were solved for."""
    return len({run.plan.cost_only for run in planned if run.plan is not None})
