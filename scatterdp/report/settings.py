"""Which runs are the same but for their seed, which differ in nothing but their budget, and in what the others differ."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scatterdp.report.runs import Run

_TITLES = {
    "batch_size": "batch size",
    "lr": "learning rate",
    "max_grad_norm": "clip",
    "noise_multiplier": "σ",
    "bn_noise_multiplier": "σ of statistics",
    "input_norm": "normaliser",
    "delta": "δ",
}
_NO_SETTING = ("num_examples", "engine", "head", "name")  # of the data; speed only; told as the model
_BUDGET = ("noise_multiplier",)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that differ in their seed alone.

    Args:
        runs: at least one.
        accuracies: test accuracies in [0, 1], one a seed: a seed that was run twice counts once.
    """

    runs: list[Run]
    accuracies: list[float]

    @property
    def epsilon(self) -> float | None:
        """Theirs; None: no guarantee."""
        return self.runs[0].epsilon

    @property
    def mean(self) -> float | None:
        """Mean test accuracy in [0, 1]; None where no run has one."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def settings_of(run: Run) -> dict[str, Any]:
    """What a run was trained with, by a title: plain values."""
    record = run.plan or run.certificate.get("model", {})
    named = {key: value for key, value in record.items() if key not in _NO_SETTING}
    if named.get("input_norm") != "BN":
        named.pop("bn_noise_multiplier", None)
    if named.get("input_norm") not in ("GroupNorm", "GN"):
        named.pop("num_groups", None)
    if not named.get("precondition"):
        named.pop("precondition_power", None)
    named["feature precision"] = run.certificate["features"].get("dtype")
    named["augmented"] = run.certificate["features"].get("augmented", False)
    return {_TITLES.get(key, key.replace("_", " ")): value for key, value in named.items()}


def data_key(run: Run) -> str:
    """Equal for runs on the same data, as far as certificates tell: those of unpublished data show nothing that could be compared."""
    data = run.certificate["data"]
    return _text([data["name"], data.get("fingerprint"), data["num_train"], data.get("num_test"), run.classes])


def same_but_for_seed(runs: Sequence[Run]) -> list[Setting]:
    """Runs by setting, in the order in which settings appear."""
    found = []
    for group in _grouped(runs, _setting_key):
        by_seed: dict[int | str, Run] = {}
        for run in group:
            by_seed.setdefault(run.name if run.seed is None else run.seed, run)
        accuracies = [run.accuracy for run in by_seed.values() if run.accuracy is not None]
        found.append(Setting(runs=group, accuracies=accuracies))
    return found


def same_but_for_budget(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Settings that differ in nothing but noise, the smallest ε first and those without a guarantee last."""
    groups = _grouped(settings, lambda setting: _setting_key(setting.runs[0], budget=False))
    return [
        sorted(group, key=lambda setting: float("inf") if setting.epsilon is None else setting.epsilon)
        for group in groups
    ]


def differing(runs: Sequence[Run]) -> list[str]:
    """Titles of the settings in which runs differ, in the order in which they are told."""
    told = [settings_of(run) for run in runs]
    titles = dict.fromkeys(title for values in told for title in values)
    return [title for title in titles if len({_text(values.get(title)) for values in told}) > 1]


def names_of_series(series: Sequence[list[Setting]]) -> list[str]:
    """A name for each of several series: model, features, and as few settings as tell them apart."""
    first = [group[0].runs[0] for group in series]
    told = [settings_of(run) for run in first]
    names = [f"{run.model} on {run.features}" for run in first]
    titles = [title for title in differing(first) if title not in (_TITLES[key] for key in _BUDGET)]
    while len(set(names)) < len(names) and titles:
        longer = {
            title: [_with(name, title, values, names) for name, values in zip(names, told, strict=True)]
            for title in titles
        }
        best = max(titles, key=lambda title: len(set(longer[title])))
        names = longer[best]
        titles.remove(best)
    return names


def _with(name: str, title: str, values: dict[str, Any], names: list[str]) -> str:
    """The name with one more setting, if it is not the only one of its kind without."""
    return f"{name}, {title} {shown(values.get(title))}" if names.count(name) > 1 else name


def shown(value: Any) -> str:
    """A setting's value for people.

    >>> shown(0.1), shown(True), shown(None), shown("BN")
    ('0.1', 'yes', '–', 'BN')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting_key(run: Run, *, budget: bool = True) -> str:
    features = run.certificate["features"]
    record = run.plan or run.certificate.get("model", {})
    values = {key: value for key, value in record.items() if key != "engine" and (budget or key not in _BUDGET)}
    claim = [run.delta, run.certificate["accountant"], run.epsilon if budget else None]
    return _text(
        [data_key(run), run.model, features.get("config"), run.features, settings_of(run)["augmented"], values, claim]
    )


def _grouped(items: Sequence[Any], key: Callable[[Any], str]) -> list[list[Any]]:
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
