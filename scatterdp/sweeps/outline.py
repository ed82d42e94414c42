"""Outlines: which runs a sweep has.

>>> outline = parse_outline('''
... command = "baselines"
... [config]
... dataset = "digits"
... [grid]
... lr = [2, 4]
... [zip]
... batch_size = [256, 512]
... epochs = [10, 20]
... ''', name="example")
>>> [tuple(changes.values()) for changes in outline.combinations()]
[(2, 256, 10), (2, 512, 20), (4, 256, 10), (4, 512, 20)]

``""`` in a list leaves the flag out: a normaliser's setting beside another normaliser.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import math
import re
import tomllib
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scatterdp.config import BaselinesConfig, CnnsConfig
from scatterdp.errors import ConfigError

COMMANDS: dict[str, type[BaselinesConfig]] = {"baselines": BaselinesConfig, "cnns": CnnsConfig}

Score = Literal["test_accuracy", "validation_accuracy"]

_KEYS = ("command", "config", "grid", "zip", "seeds", "validation", "validation_noise_multiplier", "score")
_ELSEWHERE = {
    "seed": "write seeds = […] at the top of the outline",
    "validation": "write it at the top of the outline",
    "validation_noise_multiplier": "write it at the top of the outline",
    "run_dir": "every run has its place in the sweep's folder; leave it out",
    "resume": "a sweep resumes its runs by itself; leave it out",
}
_LEFT_OUT = ""
_MOST_RUNS = 10_000
_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A parsed outline; :func:`read_outline` has checked it.

    Args:
        name: of the file, without ``.toml``.
        command: a key of :data:`COMMANDS`.
        config: what all runs share.
        grid: lists of which every combination is taken.
        zip: tables of lists of one length that go together; each table is crossed with the others and the grid.
        seeds: one run of each combination with each; none: noise from the system.
        validation, validation_noise_multiplier: see :class:`scatterdp.config.BaselinesConfig`.
        score: what the best run is chosen by.
    """

    name: str
    command: str
    config: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    zip: tuple[dict[str, list[Any]], ...] = ()
    seeds: tuple[int, ...] = ()
    validation: float = 0.0
    validation_noise_multiplier: float | None = None
    score: Score = "test_accuracy"

    @property
    def config_class(self) -> type[BaselinesConfig]:
        return COMMANDS[self.command]

    @property
    def score_is_exact_on_private_data(self) -> bool:
        """Whether the best is chosen by something that no guarantee covers."""
        return self.score == "validation_accuracy" and self.validation_noise_multiplier is None

    def combinations(self) -> list[dict[str, Any]]:
        """What differs from run to run, without seeds: the last key of the grid changes fastest, pairs faster still."""
        crossed = [[{name: value} for value in values] for name, values in self.grid.items()]
        paired = [
            [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
            for table in self.zip
        ]
        together = [
            {name: value for part in parts for name, value in part.items()}
            for parts in itertools.product(*crossed, *paired)
        ]
        return [{name: value for name, value in changes.items() if value != _LEFT_OUT} for changes in together]

    def runs(self) -> list[dict[str, Any]]:
        """The changes of each run, the seed included where there are seeds."""
        if not self.seeds:
            return self.combinations()
        return [changes | {"seed": seed} for changes in self.combinations() for seed in self.seeds]

    def config_of(self, changes: dict[str, Any], **places: Any) -> BaselinesConfig:
        """The config of the run with these changes.

        Args:
            changes: one of :meth:`runs`.
            places: ``run_dir`` and where things are, which are no part of the outline.

        Raises:
            ConfigError: what the command itself refuses; the message names the run.
        """
        values = self.config | changes | places
        if self.validation:
            values |= {
                "validation": self.validation,
                "validation_noise_multiplier": self.validation_noise_multiplier,
            }
        try:
            return self.config_class(**_as_fields(self.config_class, values))
        except ConfigError as error:
            which = told(changes) or "the only run"
            raise ConfigError(f"outline {self.name}, {which}: {error}") from error


def read_outline(path: Path) -> Outline:
    """An outline file, checked to the last value.

    Raises:
        ConfigError: no such file, no TOML, or see :func:`parse_outline`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"outline={path}: cannot be read ({error.strerror}); give a .toml file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"outline={path}: is no text ({error.reason}); give a .toml file") from error
    return parse_outline(text, name=path.stem)


def parse_outline(text: str, *, name: str) -> Outline:
    """An outline from its text.

    Raises:
        ConfigError: no TOML, unknown keys (with the nearest right one), empty lists, values of the wrong kind or that the command refuses.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"outline {name}: is no TOML ({error})") from error
    _check_keys(name, values, _KEYS, "")
    command = values.get("command")
    if not isinstance(command, str) or command not in COMMANDS:
        raise ConfigError(f"outline {name}: command={command!r}: expected one of {', '.join(COMMANDS)}")
    zipped = values.get("zip", [])
    zipped = zipped if isinstance(zipped, list) else [zipped]
    tables = [("config", values.get("config", {})), ("grid", values.get("grid", {})), *(("zip", one) for one in zipped)]
    for part, content in tables:
        if not isinstance(content, dict):
            raise ConfigError(f"outline {name}: {part}={content!r}: expected a table, [{part}]")
        _check_fields(name, part, content, COMMANDS[command])
    _check_lists(name, tables)
    outline = Outline(
        name=name,
        command=command,
        config=tables[0][1],
        grid=tables[1][1],
        zip=tuple(table for table in zipped if table),
        **_top(name, values),
    )
    runs = math.prod(map(len, outline.grid.values())) * math.prod(len(next(iter(one.values()))) for one in outline.zip)
    if runs * max(1, len(outline.seeds)) > _MOST_RUNS:
        raise ConfigError(f"outline {name}: has {runs} combinations; expected at most {_MOST_RUNS} runs")
    seen: set[tuple[tuple[str, Any], ...]] = set()
    for changes in outline.runs():
        outline.config_of(changes)
        values_of_run = tuple(sorted(changes.items()))
        if values_of_run in seen:
            raise ConfigError(f"outline {name}: {told(changes) or 'nothing'}: comes twice")
        seen.add(values_of_run)
    return outline


def told(changes: dict[str, Any]) -> str:
    """Changes as a person reads them: ``lr=0.1, epochs=25``."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def run_name(number: int, changes: dict[str, Any]) -> str:
    """The name of a run, good for a folder: its number and its values, but for the seed: names are shown where seeds must not be.

    >>> run_name(7, {"arch": "resnet20", "lr": 0.1, "extractor": "views(patches)"})
    '007-resnet20-0.1-views_patches_'
    """
    values = (str(value) for name, value in changes.items() if name != "seed")
    words = [f"{number:03}", *(re.sub(r"[^A-Za-z0-9._=+]+", "_", value) for value in values)]
    return "-".join(words)[:_LONGEST_NAME].rstrip("-.")


def _top(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The seeds, the validation split and the score."""
    seeds = values.get("seeds", [])
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ConfigError(f"outline {name}: seeds={seeds!r}: expected a list of whole numbers ≥ 0")
    if "seeds" in values and not seeds:
        raise ConfigError(f"outline {name}: seeds=[]: is empty; leave it out for noise from the system")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"outline {name}: seeds={seeds}: names a seed twice")
    found: dict[str, Any] = {"seeds": tuple(seeds)}
    for key in ("validation", "validation_noise_multiplier"):
        if key in values:
            _check_kind(f"outline {name}: {key}", values[key], float)
            found[key] = float(values[key])
    held_out = found.get("validation", 0.0) > 0
    if "validation_noise_multiplier" in found and not held_out:
        raise ConfigError(
            f"outline {name}: validation_noise_multiplier={values['validation_noise_multiplier']}: has no effect without "
            "validation; give a share, as in validation = 0.1"
        )
    score = values.get("score", "validation_accuracy" if held_out else "test_accuracy")
    _check_kind(f"outline {name}: score", score, Score)
    if score == "validation_accuracy" and not held_out:
        raise ConfigError(f"outline {name}: score={score!r}: nothing is held out; give validation = 0.1 or so")
    return found | {"score": score}


def _check_keys(name: str, values: Iterable[str], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            meant = _meant(key, known) or f": expected one of {', '.join(known)}"
            raise ConfigError(f"outline {name}: {where}{key}: unknown{meant}")


def _meant(word: str, known: list[str]) -> str:
    """A question after the nearest of the known words; empty where none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]}?" if near else ""


def _check_fields(name: str, part: str, content: dict[str, Any], config_class: type[BaselinesConfig]) -> None:
    """Every key a flag of the command that may stand here, every value of its kind."""
    hints = _hints(config_class)
    for key, value in content.items():
        if key in _ELSEWHERE:
            raise ConfigError(f"outline {name}: [{part}] {key}: {_ELSEWHERE[key]}")
        _check_keys(name, [key], (field.name for field in dataclasses.fields(config_class)), f"[{part}] ")
        if part != "config" and key == "dataset":
            raise ConfigError(
                f"outline {name}: [{part}] dataset: a sweep adds up what runs cost the people in one data set; write an outline for each"
            )
        if part == "config":
            _check_kind(f"outline {name}: [{part}] {key}", value, hints[key])
            continue
        if not isinstance(value, list):
            raise ConfigError(f"outline {name}: [{part}] {key}={value!r}: expected a list, [{value!r}]")
        if not value:
            raise ConfigError(f"outline {name}: [{part}] {key}=[]: is empty, so there would be no runs; name a value")
        for one in value:
            if one != _LEFT_OUT:
                _check_kind(f"outline {name}: [{part}] {key}", one, hints[key])


def _check_lists(name: str, tables: list[tuple[str, dict[str, Any]]]) -> None:
    """No key in two places, and pairs of one length."""
    for (first, one), (second, other) in itertools.combinations(tables, 2):
        for key in one.keys() & other.keys():
            raise ConfigError(f"outline {name}: {key}: stands in [{first}] and in [{second}]; leave one out")
    for part, table in tables:
        lengths = {key: len(value) for key, value in table.items()} if part == "zip" else {}
        if len(set(lengths.values())) > 1:
            told_lengths = ", ".join(f"{key} has {length}" for key, length in lengths.items())
            raise ConfigError(f"outline {name}: [zip]: {told_lengths} values; pairs need as many of each")


@functools.cache
def _hints(config_class: type[BaselinesConfig]) -> dict[str, Any]:
    return get_type_hints(config_class)


def _check_kind(what: str, value: Any, hint: Any) -> None:
    """Raise ConfigError when a TOML value is not of a field's kind."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words: list[str] = []
    for option in options:
        if get_origin(option) is Literal:
            words += [str(word) for word in get_args(option)]
            if value in get_args(option):
                return
        elif option is not type(None) and _is_of(value, option):
            return
    if words:
        raise ConfigError(f"{what}={value!r}: expected one of {', '.join(words)}{_meant(str(value), words)}")
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "text, a path"}
    expected = [kinds[option] for option in options if option is not type(None)]
    raise ConfigError(f"{what}={value!r}: expected {' or '.join(expected)}")


def _is_of(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str) if kind is Path else type(value) is kind


def _as_fields(config_class: type[BaselinesConfig], values: dict[str, Any]) -> dict[str, Any]:
    """TOML's values as the config has them: paths, and numbers with a point where a field has one."""
    found = {}
    for name, hint in _hints(config_class).items():
        if name not in values:
            continue
        value, kinds = values[name], (hint, *get_args(hint))
        if isinstance(value, str) and Path in kinds:
            value = Path(value)
        elif type(value) is int and float in kinds:
            value = float(value)
        found[name] = value
    return found
