"""A report: one HTML file that needs nothing else, with each figure as PNG and SVG beside it.

Everything that people have named (data sets, classes, folders, errors) is escaped by the template; the page's security policy lets it load nothing and
run no script but its own.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from scatterdp.datasets import Dataset
from scatterdp.errors import ConfigError
from scatterdp.privacy.certificate import rounded_up
from scatterdp.report.command_lines import command_line
from scatterdp.report.curves import plot_accuracy, plot_spending, plot_training
from scatterdp.report.drawing import DARK, LIGHT, Drawing
from scatterdp.report.examples import (
    MOST_CLASSES,
    PublicImages,
    most_confused,
    plot_confusion,
    plot_example,
    plot_misclassified,
)
from scatterdp.report.published import SOURCES, PublishedResult, published_on
from scatterdp.report.runs import Found, Run, Sweep, unique
from scatterdp.report.settings import data_key, differing, same_but_for_seed, settings_of, shown
from scatterdp.report.spending import TOGETHER, spending

GENERATOR = "scatterdp report"
_TEMPLATE = Path(__file__).parent / "template"
_MOST_COLUMNS = 8  # of settings, beside the fixed ones
_MOST_EPOCHS = 12  # rows of a run's training table
_WIDE = 7.0  # inches from which a figure takes the page's width


@dataclass(frozen=True)
class Cell:
    """A table's cell; ``value`` is what a column of numbers is sorted by, None when it is not known."""

    text: str
    value: float | None = None
    warning: str = ""


@dataclass(frozen=True)
class Column:
    """A table's column."""

    title: str
    is_number: bool = True


@dataclass(frozen=True)
class Row:
    """A table's row; ``link`` is the element that its first cell leads to."""

    group: str
    cells: list[Cell]
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: list[Column]
    rows: list[Row]


@dataclass(frozen=True)
class _Group:
    """The runs on one data set."""

    id: str
    name: str
    runs: list[Run]
    drawings: list[Drawing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_report(
    found: Found, out: Path, *, data_dir: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Path:
    """Write the page to ``out`` and its figures into ``<out without .html>_files``.

    Args:
        found: at least one run.
        out: the HTML file; one that is a report already is replaced, as are figures of the same names.
        data_dir: where public test images are looked for.
        say: told what is going on.

    Returns:
        The folder of the figures.

    Raises:
        ConfigError: ``out`` is another file, or cannot be written.
    """
    check_out(out)
    folder = out.with_name(f"{out.stem}_files")
    groups = _groups(found.runs)
    images = PublicImages(data_dir)
    taken: set[str] = set()
    for group in groups:
        say(f"{group.name}: {len(group.runs)} run{_s(group.runs)}")
        _draw(group, images, taken)
    page = _render(found, groups, folder.name)
    try:
        folder.mkdir(exist_ok=True)
        for group in groups:
            for drawing in group.drawings:
                drawing.save(folder)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, out)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); give another --out") from error
    return folder


def check_out(out: Path) -> None:
    """Raise ConfigError unless ``out`` is a place for a report: a new .html file, or a report to replace."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"out={out}: expected a file name that ends in .html")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"out={out}: {out.absolute().parent} is no folder; make it, or give another --out")
    if out.exists() and not (out.is_file() and f'content="{GENERATOR}"'.encode() in out.read_bytes()[:2000]):
        raise ConfigError(f"out={out}: is there already and is no report; give another --out")


def _groups(runs: Sequence[Run]) -> list[_Group]:
    """Runs by data set; several of one name are numbered."""
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        by_data.setdefault(data_key(run), []).append(run)
    names = [members[0].dataset for members in by_data.values()]
    groups = []
    for number, members in enumerate(by_data.values()):
        earlier = names[:number].count(names[number])
        name = f"{names[number]} ({earlier + 1})" if earlier else names[number]
        groups.append(_Group(id=f"data-{number}", name=name, runs=members))
    return groups


def _draw(group: _Group, images: PublicImages, taken: set[str]) -> None:
    """Draw a group's figures, each under a name of its own."""
    runs, name = group.runs, group.name
    drawings = [
        plot_accuracy(runs, _published(group), dataset=name),
        plot_training(runs, dataset=name),
        plot_spending(runs, dataset=name),
    ]
    with_predictions = [run for run in runs if run.confusion is not None and run.accuracy is not None]
    example = max(with_predictions or runs, key=lambda run: (run.epsilon is not None, run.accuracy or 0.0))
    if with_predictions:
        drawings.append(plot_confusion(example))
        if len(example.classes) > MOST_CLASSES:
            group.notes.append(
                f"No confusion matrix is drawn of {len(example.classes)} classes; each run's most frequent mistakes stand with its certificate."
            )
        if len(with_predictions) > 1:
            group.notes.append(
                f"Mistakes are shown of {example.name}: of {len(with_predictions)} runs that recorded their predictions the private one with the "
                "highest test accuracy."
            )
    else:
        group.notes.append(
            "No confusion matrix and no mistakes are shown: these runs recorded no test predictions (no test_predictions.npz in their folders)."
        )
    dataset = images.of(example)
    if isinstance(dataset, Dataset):
        drawings += [plot_misclassified(example, dataset), plot_example(example, dataset)]
    else:
        group.notes.append(dataset)
    for drawing in drawings:
        if drawing is not None:
            group.drawings.append(dataclasses.replace(drawing, name=unique(drawing.name, taken)))


def _published(group: _Group) -> list[PublishedResult]:
    run = group.runs[0]
    return published_on(run.dataset) if run.is_published else []


def _render(found: Found, groups: list[_Group], folder: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["zip"] = zip
    script = (_TEMPLATE / "script.js").read_text(encoding="utf-8")
    group_of = {run.name: group for group in groups for run in group.runs}
    identifiers = {run.name: f"run-{number}" for number, run in enumerate(found.runs)}
    return environment.get_template("page.html").render(
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        generator=GENERATOR,
        script=Markup(script),
        style=Markup((_TEMPLATE / "style.css").read_text(encoding="utf-8")),
        colours=Markup(_colours()),
        title="Differentially private runs" if len(found.runs) > 1 else "A differentially private run",
        subtitle=f"{len(found.runs)} run{_s(found.runs)} on {len(groups)} data set{_s(groups)}"
        + (f", {len(found.without_result)} without a result" if found.without_result else ""),
        highlights=[line for group in groups for line in [_highlight(group)] if line],
        cautions=_cautions(found, groups),
        sweeps=[_selection(sweep) for sweep in found.sweeps],
        shared=_shared(found.runs),
        results=_results(found.runs, group_of, identifiers),
        settings_table=_settings_table(groups),
        groups=[_group_for_page(group) for group in groups],
        runs=[_run_for_page(run, identifiers[run.name]) for run in found.runs],
        without_result=found.without_result,
        footer=f"Written {datetime.now():%Y-%m-%d %H:%M} by python -m scatterdp report. Figures as PNG and SVG: {folder}/. "
        "This page loads nothing and sends nothing.",
    )


def _colours() -> str:
    """The figures' colours as the page's style variables, for light and dark."""
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in theme.items()) for theme in (LIGHT, DARK))
    return (
        f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}color-scheme:dark}}\n:root[data-theme=light]{{color-scheme:light}}\n"
    )


def _highlight(group: _Group) -> str:
    """The setting with the highest mean accuracy at each ε, the smallest ε first."""
    best: dict[str, Any] = {}
    for setting in same_but_for_seed(group.runs):
        if setting.mean is None or setting.epsilon is None:
            continue
        at = _up(setting.epsilon, 2)
        if at not in best or setting.mean > best[at].mean:
            best[at] = setting
    told = [
        f"{_percent(setting.mean, setting.deviation)} at ε\xa0=\xa0{at}"
        for at, setting in sorted(best.items(), key=lambda item: float(item[0]))
    ]
    if not told:
        return ""
    return f"{group.name}: {', '.join(told[:6])}{', …' if len(told) > 6 else ''}"


def _cautions(found: Found, groups: Sequence[_Group]) -> list[str]:
    runs, told = found.runs, []
    if any(sweep.selection.get("scheme") == "random" for sweep in found.sweeps):
        told.append(
            "A private page: it shows the runs of a random search, whose number is a secret. Against whoever reads it only the composition of all runs "
            "counts; publish what is in its folder best, and nothing else of the search."
        )
    if several := [group for group in groups if len(group.runs) > 1]:
        counted = ", ".join(f"{len(group.runs)} of {group.name}" for group in several)
        told.append(
            f"Several runs used the same training data ({counted}). Each ε is of one run alone: to publish several costs their composition, and to "
            "pick the best by its accuracy is not free either."
        )
    told.append("Test accuracy and mistakes are exact: no noise protects the test examples.")
    if any(not run.is_published for run in runs):
        told.append(
            "Some runs are on unpublished data. Their seeds are left out of this page, for whoever knows a seed can subtract the noise; so are test "
            "images and what was measured on training data."
        )
    if any(run.epsilon is None for run in runs):
        told.append("Runs marked “not private” guarantee nothing. Do not give their models away.")
    if any(run.checked.disagreements for run in runs):
        told.append("A certificate that does not follow from its own ledger is marked. Do not rely on it.")
    return told


def _selection(sweep: Sweep) -> dict[str, Any]:
    """What a sweep recorded of the cost of choosing: its sentences, and its other values by name."""
    statements = ("statement", "statements", "sentences")
    sentences: list[str] = []
    for key in statements:
        value = sweep.selection.get(key)
        sentences += [str(part) for part in value] if isinstance(value, list) else [str(value)] if value else []
    pairs = [
        (key.replace("_", " "), rounded_up(value) if "epsilon" in key and _is_number(value) else shown(value))
        for key, value in sweep.selection.items()
        if key not in statements
    ]
    if not sweep.selection:
        sentences = ["The sweep recorded no statement about it. It is not free: every run looked at the same data."]
    return {"name": sweep.name, "sentences": sentences, "pairs": pairs}


def _shared(runs: Sequence[Run]) -> str:
    """The settings in which several runs agree, in words."""
    if len(runs) < 2:
        return ""
    apart = set(differing(runs))
    values = settings_of(runs[0])
    told = [
        f"{title} {shown(value)}"
        for title, value in values.items()
        if title not in apart and value not in (None, False)
    ]
    return ", ".join(told)


def _results(runs: Sequence[Run], group_of: dict[str, _Group], identifiers: dict[str, str]) -> Table:
    titles = _columns_of_settings(runs)
    validated = any(run.validation_accuracy is not None for run in runs)
    several = len({group.id for group in group_of.values()}) > 1
    told = [settings_of(run) for run in runs]
    numeric = {
        title: all(_is_number(values.get(title)) or values.get(title) is None for values in told) for title in titles
    }
    columns = [
        Column("Run", is_number=False),
        Column("ε"),
        Column("Test accuracy (%)"),
        Column("Averaged weights (%)"),
        *([Column("Validation (%)")] if validated else []),
        *([Column("Data set", is_number=False)] if several else []),
        Column("Model", is_number=False),
        Column("Features", is_number=False),
        *(Column(_heading(title), is_number=numeric[title]) for title in titles),
        Column("Seed"),
        Column("Training (s)"),
    ]
    rows = []
    for run, values in zip(runs, told, strict=True):
        group = group_of[run.name]
        cells = [
            Cell(run.name, warning="certificate disagrees" if run.checked.disagreements else ""),
            _epsilon_cell(run),
            _accuracy_cell(run.accuracy),
            _accuracy_cell(run.averaged_accuracy),
            *([_accuracy_cell(run.validation_accuracy)] if validated else []),
            *([Cell(group.name)] if several else []),
            Cell(run.model),
            Cell(run.features),
            *(Cell(shown(values.get(title)), values.get(title) if numeric[title] else None) for title in titles),
            _seed_cell(run),
            Cell(
                "–" if run.seconds is None else f"{run.seconds:.0f}" if run.seconds >= 10 else f"{run.seconds:.1f}",
                run.seconds,
            ),
        ]
        rows.append(Row(group.id, cells, identifiers[run.name]))
    return Table(columns, rows)


def _columns_of_settings(runs: Sequence[Run]) -> list[str]:
    """Settings in which runs differ, the noise first; as many as a table takes."""
    titles = differing(runs)
    first = [title for title in ("σ", "epochs", "learning rate", "clip", "batch size") if title in titles]
    return [*first, *(title for title in titles if title not in first)][:_MOST_COLUMNS]


def _seed_cell(run: Run) -> Cell:
    if run.seed is None:
        return Cell("–", None)
    return Cell(str(run.seed), run.seed) if run.is_published else Cell("kept back", None)


def _settings_table(groups: Sequence[_Group]) -> Table | None:
    """A row a setting; None when no setting has a second seed."""
    settings = [(group, setting) for group in groups for setting in same_but_for_seed(group.runs)]
    if not any(len(setting.accuracies) > 1 for _, setting in settings):
        return None
    firsts = [setting.runs[0] for _, setting in settings]
    titles = [title for title in _columns_of_settings(firsts) if title != "σ"]
    told = [settings_of(run) for run in firsts]
    numeric = {
        title: all(_is_number(values.get(title)) or values.get(title) is None for values in told) for title in titles
    }
    several = len(groups) > 1
    columns = [
        Column("Setting", is_number=False),
        Column("ε"),
        Column("Mean ± std (%)"),
        Column("Seeds"),
        Column("Lowest (%)"),
        Column("Highest (%)"),
        *([Column("Data set", is_number=False)] if several else []),
        *(Column(_heading(title), is_number=numeric[title]) for title in titles),
    ]
    rows = []
    for (group, setting), values in zip(settings, told, strict=True):
        run = setting.runs[0]
        cells = [
            Cell(f"{run.model} on {run.features}"),
            _epsilon_cell(run),
            Cell(_percent(setting.mean, setting.deviation, unit=""), setting.mean),
            Cell(str(len(setting.accuracies)), len(setting.accuracies)),
            _accuracy_cell(min(setting.accuracies, default=None)),
            _accuracy_cell(max(setting.accuracies, default=None)),
            *([Cell(group.name)] if several else []),
            *(Cell(shown(values.get(title)), values.get(title) if numeric[title] else None) for title in titles),
        ]
        rows.append(Row(group.id, cells))
    return Table(columns, rows)


def _heading(title: str) -> str:
    """Of a column: σ and δ stay as they are.

    >>> _heading("batch size"), _heading("σ of statistics")
    ('Batch size', 'σ of statistics')
    """
    return title[0].upper() + title[1:] if title[0].isascii() else title


def _epsilon_cell(run: Run) -> Cell:
    """ε to three decimals, never below what was computed."""
    if run.epsilon is None:
        return Cell("∞", 1e308, "not private")
    return Cell(_up(run.epsilon, 3), run.epsilon)


def _up(epsilon: float, decimals: int) -> str:
    """ε to so many decimals, never below what was computed.

    >>> _up(3.0001, 2), _up(2.9996, 3), _up(3.0, 2)
    ('3.01', '3.000', '3.00')
    """
    return f"{math.ceil(epsilon * 10**decimals - 1e-9) / 10**decimals:.{decimals}f}"


def _accuracy_cell(accuracy: float | None) -> Cell:
    return Cell("–" if accuracy is None else f"{100 * accuracy:.2f}", accuracy)


def _percent(mean: float | None, deviation: float | None, unit: str = "\xa0%") -> str:
    """
    >>> _percent(0.9234, 0.0012), _percent(0.9234, None), _percent(None, None)
    ('92.34\xa0±\xa00.12\xa0%', '92.34\xa0%', '–')
    """
    if mean is None:
        return "–"
    spread = "" if deviation is None else f"\xa0±\xa0{100 * deviation:.2f}"
    return f"{100 * mean:.2f}{spread}{unit}"


def _group_for_page(group: _Group) -> dict[str, Any]:
    published = _published(group)
    return {
        "id": group.id,
        "name": group.name,
        "notes": group.notes,
        "drawings": [
            {
                "name": drawing.name,
                "title": drawing.title,
                "alt": drawing.alt,
                "caption": drawing.caption,
                "svg": Markup(drawing.inline()),
                "is_wide": drawing.figure.get_figwidth() > _WIDE,
            }
            for drawing in group.drawings
        ],
        "published": [(name, SOURCES[name]) for name in dict.fromkeys(result.source for result in published)],
    }


def _run_for_page(run: Run, identifier: str) -> dict[str, Any]:
    epsilon = "not private" if run.epsilon is None else f"ε = {rounded_up(run.epsilon)}, δ = {run.delta:g}"
    accuracy = "" if run.accuracy is None else f", {_percent(run.accuracy, None)} on the test split"
    confused = most_confused(run)
    return {
        "id": identifier,
        "name": run.name,
        "brief": f"{run.dataset}, {run.model} on {run.features}, {epsilon}{accuracy}",
        "warning": "certificate disagrees" if run.checked.disagreements else "",
        "command": command_line(run.config, show_seed=run.is_published),
        "reproduction": _reproduction(run),
        "spending": [
            (
                "all together" if part.mechanism == TOGETHER else f"{part.mechanism} alone",
                "∞" if part.epsilon is None else rounded_up(part.epsilon),
            )
            for part in spending(run.certificate)
        ],
        "guarantee": run.guarantee,
        "certificate": json.dumps(run.certificate, indent=1, ensure_ascii=False),
        "settings": [(title, shown(value)) for title, value in settings_of(run).items() if value is not None],
        "epochs": _epochs(run),
        "mistakes": [f"{one.count} of {one.true} taken for {one.predicted}" for one in confused],
        "no_mistakes": "None on the test split."
        if run.confusion is not None
        else "Not recorded: there is no test_predictions.npz in the run folder.",
        "path": str(run.path),
    }


def _reproduction(run: Run) -> list[str]:
    told = ["It makes a new run folder."]
    if run.seed is None:
        told.append("The run had no seed: another run's noise, and so its accuracy, differs.")
    elif not run.is_published:
        told.append(
            "The run had a seed. It is left out here and stands in config.json: whoever knows it can subtract the noise from the model."
        )
    else:
        told.append("With this seed, and the same versions and device, it gives the same numbers again.")
    versions = run.certificate.get("versions")
    if isinstance(versions, dict):
        told.append(f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}.")
    return told


def _epochs(run: Run) -> dict[str, Any] | None:
    """Some rows of the metrics, the last among them; without what was measured on someone's own training data."""
    rows = run.metrics
    if not rows:
        return None
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if run.is_published or not name.endswith("_not_private")
    ]
    step = max(1, -(-len(rows) // _MOST_EPOCHS))
    kept = rows[::-1][::step][::-1]
    return {
        "columns": [_metric_title(name) for name in names],
        "rows": [[_metric(name, row.get(name)) for name in names] for row in kept],
    }


def _metric_title(name: str) -> str:
    titles = {
        "test_accuracy": "test accuracy (%)",
        "test_accuracy_ema": "averaged weights (%)",
        "epsilon": "ε",
        "train_accuracy_not_private": "training accuracy (%), not private",
        "train_loss_not_private": "training loss, not private",
    }
    return titles.get(name, name.replace("_", " "))


def _metric(name: str, value: Any) -> str:
    if not _is_number(value):
        return shown(value)
    if "accuracy" in name:
        return f"{100 * value:.2f}"
    if name == "epsilon":
        return _up(value, 3)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _s(items: Sequence[Any]) -> str:
    """Of a plural."""
    return "" if len(items) == 1 else "s"
