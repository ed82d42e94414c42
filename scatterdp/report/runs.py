"""Run folders as they are found on disk: read, checked, and named where nothing can be read.

A file that a run left may be damaged, unfinished or somebody's own. Whatever cannot be used is told with its reason; nothing of it stops
the others.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scatterdp.datasets.store import NPZ_ERRORS
from scatterdp.errors import UserError
from scatterdp.privacy.checking import Checked, check_certificate
from scatterdp.report.guarantee import Section, guarantee_sections

_DEPTH = 3  # folders between a given one and its runs
_READ = (
    "schema", "statement", "private", "epsilon", "delta", "accountant", "epsilon_by_accountant", "adjacency", "ledger", "sampler",
)  # fmt: skip
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Args:
        name: unique among the runs that were read together.
        path: the run folder.
        config: the command's config.
        certificate: checked for its form; whether it agrees with its ledger is in ``checked``.
        checked: what was found when ε was computed again.
        guarantee: the certificate in words.
        summary: accuracies in [0, 1], seconds.
        metrics: a row an epoch; may be empty.
        confusion: ``(K, 3)`` rows of class, predicted class and how often; None: not recorded.
        predicted: ``(N_test,)`` class numbers; None: not recorded, or not for everyone.
    """

    name: str
    path: Path
    config: dict[str, Any] = field(repr=False)
    certificate: dict[str, Any] = field(repr=False)
    checked: Checked = field(repr=False)
    guarantee: list[Section] = field(repr=False)
    summary: dict[str, Any] = field(repr=False)
    metrics: list[dict[str, Any]] = field(repr=False)
    confusion: np.ndarray | None = field(repr=False)
    predicted: np.ndarray | None = field(repr=False)

    @property
    def dataset(self) -> str:
        return self.certificate["data"]["name"]

    @property
    def is_published(self) -> bool:
        """Whether the data are a published set: only then does a certificate name their fingerprint."""
        return "fingerprint" in self.certificate["data"]

    @property
    def classes(self) -> list[str]:
        """Names of the classes; empty where the certificate lists none."""
        return [str(name) for name in self.certificate["data"].get("classes", [])]

    @property
    def epsilon(self) -> float | None:
        """ε, computed again from the ledger by the certificate's accountant; None: no guarantee."""
        return self.checked.epsilons[self.certificate["accountant"]]

    @property
    def delta(self) -> float:
        return self.certificate["delta"]

    @property
    def accuracy(self) -> float | None:
        """On the test split, in [0, 1]."""
        return _number(self.summary.get("test_accuracy"))

    @property
    def averaged_accuracy(self) -> float | None:
        """Of the averaged weights, in [0, 1]."""
        return _number(self.summary.get("test_accuracy_ema"))

    @property
    def validation_accuracy(self) -> float | None:
        """On a part of the training data that was set aside, in [0, 1], with noise that the ledger counts; None: none was set aside."""
        return _number(self.summary.get("validation_accuracy"))

    @property
    def seconds(self) -> float | None:
        """Of training."""
        return _number(self.summary.get("seconds_train", self.summary.get("seconds_fit")))

    @property
    def seed(self) -> int | None:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def plan(self) -> dict[str, Any]:
        """The settings with which the run trained, those of the recipe included; empty where a method chose its own."""
        plan = self.summary.get("plan")
        return plan if isinstance(plan, dict) else {}

    @property
    def model(self) -> str:
        """What was trained, in a word or two."""
        if self.config.get("optim") == "LR":
            return "logistic regression"
        method = self.certificate.get("model", {}).get("name")
        return str(self.plan.get("head") or method or "classifier").replace("_", " ")

    @property
    def features(self) -> str:
        """The features, in a word or two: ``views(scatternet + patches)``."""
        features = self.certificate["features"]
        return _features_in_words(str(features["extractor"]), features.get("config"))


@dataclass(frozen=True, kw_only=True)
class WithoutResult:
    """A run folder that gives no row, and why.

    Args:
        name: as for :class:`Run`.
        reason: a sentence, its first letter small and without a full stop.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep's folder says beside its runs.

    Args:
        name: of its folder.
        selection: what choosing one of its runs costs, as recorded; empty where nothing was.
    """

    name: str
    selection: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Found:
    """What was found in the given folders."""

    runs: list[Run]
    without_result: list[WithoutResult]
    sweeps: list[Sweep]


def find_runs(paths: Sequence[Path]) -> Found:
    """Read run folders, and all run folders in folders.

    Args:
        paths: run folders, sweeps' folders, or folders that contain such.

    Raises:
        UserError: a path that does not exist, or none of them gives a run's result.
    """
    found = Found([], [], [])
    seen: set[Path] = set()
    taken: set[str] = set()
    for path in paths:
        if not path.exists():
            raise UserError(f"runs={path}: no such folder; give run folders, or folders that contain them")
        known = len(seen)
        for folder in _run_folders(path):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            name = unique(_name(folder, path), taken)
            try:
                found.runs.append(read_run(folder, name))
            except UserError as error:
                found.without_result.append(WithoutResult(name=name, reason=str(error)))
        if len(seen) == known:  # of many by a shell's pattern, one may be a log file
            found.without_result.append(WithoutResult(name=str(path), reason="no run folder is there"))
        for sweep in (path, *_visible(path)):
            _read_sweep(sweep, found, seen, taken)
    if not found.runs:
        given = ", ".join(map(str, paths))
        why = "; ".join(f"{run.name}: {run.reason}" for run in found.without_result[:3])
        told = f"no finished run there ({why})" if why else "no run folder there"
        raise UserError(f"runs={given}: {told}; give folders that `python -m scatterdp.baselines` and others have left")
    return found


def read_run(path: Path, name: str) -> Run:
    """Read one finished run.

    Raises:
        UserError: it is unfinished or damaged; the message is the reason alone.
    """
    if not (path / "summary.json").exists():
        unfinished = "it is not finished: wait, or if it was stopped start its sweep again, or python -m … --resume of this run alone"
        raise UserError(
            unfinished if (path / "checkpoint.pt").exists() else "it is not finished: it has no summary.json"
        )
    config, summary, certificate = (_object(path / f"{part}.json") for part in ("config", "summary", "certificate"))
    try:
        num_classes = len(certificate["data"].get("classes", []))
        confusion, predicted = _predictions(path / "test_predictions.npz", num_classes)
        checked = _checked(json.dumps({key: certificate[key] for key in _READ} | {"data": _public_counts(certificate)}))
        run = Run(
            name=name,
            path=path,
            config=config,
            certificate=certificate,
            checked=checked,
            guarantee=guarantee_sections(certificate, checked),
            summary=summary,
            metrics=_rows(path / "metrics.jsonl"),
            confusion=confusion,
            predicted=predicted,
        )
        if not isinstance(run.dataset, str) or not run.features:
            raise ValueError("its data set has no name")
    except UserError as error:
        raise UserError(f"its {error}") from error
    except _DAMAGED as error:
        raise UserError(f"its certificate.json is damaged ({type(error).__name__}: {error})") from error
    return run


@functools.cache
def _checked(certificate: str) -> Checked:
    """Seeds of one setting share a ledger: accounted once."""
    return check_certificate(json.loads(certificate))


def _public_counts(certificate: dict[str, Any]) -> dict[str, Any]:
    return {"num_train": certificate["data"]["num_train"]}


def _run_folders(path: Path, depth: int = _DEPTH) -> Iterator[Path]:
    if (path / "config.json").exists():
        yield path
    elif depth:
        for folder in _visible(path):
            yield from _run_folders(folder, depth - 1)


def _visible(path: Path) -> list[Path]:
    """Folders in a folder, in order; runs that are being written begin with a dot."""
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _name(folder: Path, given: Path) -> str:
    """Short: below a given folder the path from there, less a sweep's ``runs/``."""
    parts = folder.relative_to(given).parts
    return "/".join(part for part in parts if part != "runs") or folder.resolve().name or str(folder)


def unique(name: str, taken: set[str]) -> str:
    """The name, numbered if it is taken; it is taken from then on."""
    number, found = 2, name
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    taken.add(found)
    return found


def _read_sweep(path: Path, found: Found, seen: set[Path], taken: set[str]) -> None:
    """Add what a sweep's own file says: which of its runs failed, and what selection costs."""
    try:
        record = json.loads((path / "sweep.json").read_bytes())
    except OSError:
        return
    except ValueError:
        record = None
    if not isinstance(record, dict):
        reason = "its sweep.json is damaged: what all runs and the choice among them cost is not known"
        found.without_result.append(WithoutResult(name=f"sweep {path.resolve().name}", reason=reason))
        return
    selection = record.get("selection")
    found.sweeps.append(Sweep(name=path.resolve().name, selection=selection if isinstance(selection, dict) else {}))
    runs = record.get("runs")
    entries = runs.values() if isinstance(runs, dict) else runs if isinstance(runs, list) else []
    for entry in entries:
        if not isinstance(entry, dict) or not entry.get("error"):
            continue
        told = entry.get("run_dir")
        folder = path / told if isinstance(told, str) else path / "runs" / str(entry.get("name", ""))
        name = str(entry.get("name", "a run without a name"))
        if folder.resolve() in seen:  # said above that it is not finished; why is said here
            found.without_result[:] = [one for one in found.without_result if one.name not in (name, folder.name)]
            if any(run.path.resolve() == folder.resolve() for run in found.runs):
                continue
        else:
            name = unique(name, taken)
        found.without_result.append(WithoutResult(name=name, reason=f"it failed: {entry['error']}"))


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"its {path.name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"its {path.name} is damaged ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"its {path.name} is damaged (expected an object)")
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` that can be read."""
    rows = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _predictions(path: Path, num_classes: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """``confusion`` and ``predicted`` of ``test_predictions.npz``, each None where it is not there or fits no class."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            confusion, predicted = (stored[name] if name in stored else None for name in ("confusion", "predicted"))  # noqa: SIM401
    except NPZ_ERRORS:
        return None, None
    if confusion is not None and not (
        confusion.ndim == 2
        and confusion.shape[1] == 3
        and _are_counts(confusion[:, 2], None)
        and _are_counts(confusion[:, :2], num_classes)
    ):
        confusion = None
    if predicted is not None and not (predicted.ndim == 1 and _are_counts(predicted, num_classes)):
        predicted = None
    return confusion, predicted


def _are_counts(values: np.ndarray, below: int | None) -> bool:
    """Whether these are whole numbers from 0, at least one, all below a limit."""
    whole = values.dtype.kind == "i" and values.size > 0
    return bool(whole and values.min() >= 0 and (below is None or values.max() < below))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _features_in_words(name: str, config: Any) -> str:
    """
    >>> _features_in_words("concat", {"parts": {"patches": {}, "scatternet": {"J": 2}}})
    'patches + scatternet'
    """
    config = config if isinstance(config, dict) else {}
    parts = config.get("parts")
    if name == "concat" and isinstance(parts, dict):
        return " + ".join(_features_in_words(str(part), inner) for part, inner in parts.items())
    if "extractor" in config:
        return f"{name}({_features_in_words(str(config['extractor']), config.get('config'))})"
    return name
