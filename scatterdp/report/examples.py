"""What a run makes of single examples: its confusion matrix, public test images that it takes for another class, and what the features see.

Images are shown of published data sets alone. Someone's own test split may be of private people, whom no ε protects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from scatterdp.datasets import DATASET_NAMES, Dataset, load_dataset
from scatterdp.errors import UserError
from scatterdp.report.drawing import ACCENT, INK, PAPER, WIDTH, Drawing, file_name, style
from scatterdp.report.runs import Run

MOST_CLASSES = 30  # of which a matrix can be read
_NUMBERED = 12  # classes whose cells hold numbers
_IMAGES = 12
_COLUMNS = 4
_LETTERS = 12  # of a class' name on an axis


def confusion_matrix(run: Run) -> np.ndarray | None:
    """``(C, C)`` counts, true classes down, predicted ones across; None: not recorded."""
    if run.confusion is None:
        return None
    matrix = np.zeros((len(run.classes), len(run.classes)), np.int64)
    matrix[run.confusion[:, 0], run.confusion[:, 1]] = run.confusion[:, 2]
    return matrix


@dataclass(frozen=True, kw_only=True)
class Confused:
    """A class that is taken for another."""

    true: str
    predicted: str
    count: int


def most_confused(run: Run, most: int = 5) -> list[Confused]:
    """Which classes are most often taken for which, the most frequent first."""
    if run.confusion is None:
        return []
    wrong = run.confusion[run.confusion[:, 0] != run.confusion[:, 1]]
    rows = wrong[np.argsort(-wrong[:, 2], kind="stable")][:most]
    return [Confused(true=run.classes[t], predicted=run.classes[p], count=int(count)) for t, p, count in rows]


def plot_confusion(run: Run) -> Drawing | None:
    """The matrix in shares of each true class; None where it is not recorded, or has too many classes to be read."""
    matrix = confusion_matrix(run)
    if matrix is None or len(matrix) > MOST_CLASSES:
        return None
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    names = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in run.classes]
    with style():
        figure = Figure(figsize=(WIDTH, WIDTH * 0.9), layout="constrained")
        axes = figure.subplots()
        for (row, column), share in np.ndenumerate(shares):
            cell = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ACCENT, alpha=float(share) ** 0.7, linewidth=0)
            axes.add_patch(cell)
            if len(matrix) <= _NUMBERED and matrix[row, column]:
                colour = PAPER if share > 0.45 else INK
                axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xlim(-0.5, len(matrix) - 0.5)
        axes.set_ylim(len(matrix) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        is_long = max(map(len, names)) > 3
        axes.set_xticks(
            range(len(names)), names, rotation=45 if is_long else 0, ha="right" if is_long else "center", fontsize=8
        )
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    pairs = "; ".join(f"{c.count} of {c.true} taken for {c.predicted}" for c in most_confused(run))
    right = 100 * np.trace(matrix) / max(1, matrix.sum())
    return Drawing(
        name=file_name(run.dataset, "confusion"),
        figure=figure,
        title="Confusion matrix",
        alt=f"Confusion matrix of {run.name} on {matrix.sum()} test examples of {run.dataset}: {right:.1f} % on the diagonal. "
        f"Most frequent mistakes: {pairs or 'none'}.",
        caption=f"Run {run.name}, last weights, in numbers of test examples. The stronger a cell, the larger its share of the true class.",
    )


@dataclass
class PublicImages:
    """Published data sets, read from disk once and only if they are there.

    Args:
        data_dir: where they are looked for.
    """

    data_dir: Path | None
    _known: dict[str, Dataset | str] = field(default_factory=dict)

    def of(self, run: Run) -> Dataset | str:
        """The run's data set, or why there are no images of it to show, as a sentence."""
        if not run.is_published or run.dataset not in DATASET_NAMES:
            return "No test images are shown: these are someone's own data, and their test split may be of private people, whom no ε protects."
        if run.dataset not in self._known:
            self._known[run.dataset] = self._load(run.dataset)
        found = self._known[run.dataset]
        if isinstance(found, Dataset) and found.fingerprint != run.certificate["data"]["fingerprint"]:
            return f"No test images are shown: the run was on other data than {run.dataset} as it is here."
        return found

    def _load(self, name: str) -> Dataset | str:
        try:
            return load_dataset(name, data_dir=self.data_dir, local_only=True)
        except UserError:
            where = "" if self.data_dir is None else f" {self.data_dir}"
            return f"No test images are shown: {name} is not in the data folder{where}. Name another with --data_dir."


def plot_misclassified(run: Run, dataset: Dataset) -> Drawing | None:
    """The first public test images that the run takes for another class; None where it recorded no predictions or made no mistake."""
    if run.predicted is None or len(run.predicted) != len(dataset.y_test):
        return None
    wrong = np.flatnonzero(run.predicted != dataset.y_test)[:_IMAGES]
    if len(wrong) == 0:
        return None
    names = dataset.class_names
    told = [f"{names[dataset.y_test[i]]} as {names[run.predicted[i]]}" for i in wrong]
    rows = -(-len(wrong) // _COLUMNS)
    with style():
        figure = Figure(figsize=(WIDTH, 1.45 * rows), layout="constrained")
        for axes in figure.subplots(rows, _COLUMNS, squeeze=False).flat:
            axes.axis("off")
        for axes, index in zip(figure.axes, wrong, strict=False):
            axes.imshow(
                dataset.x_test[index], cmap="gray" if dataset.x_test.ndim == 3 else None, interpolation="nearest"
            )
            axes.set_title(
                f"{names[dataset.y_test[index]]}\nas {names[run.predicted[index]]}", fontsize=8, linespacing=1.15
            )
    return Drawing(
        name=file_name(run.dataset, "misclassified"),
        figure=figure,
        title="Test images taken for another class",
        alt=f"{len(wrong)} test images of {run.dataset} that {run.name} takes for another class: {', '.join(told)}.",
        caption=f"Run {run.name}. The first {len(wrong)} mistakes in the order of the public test set, not chosen otherwise.",
    )


def plot_example(run: Run, dataset: Dataset) -> Drawing | None:
    """The wavelets of the run's ScatterNet and what the first public test image becomes; None where no ScatterNet is in its features."""
    config = _scatternet(str(run.certificate["features"]["extractor"]), run.certificate["features"].get("config"))
    if config is None:
        return None
    from scatterdp.extractors.scatternet import ScatterNet, ScatterNetConfig
    from scatterdp.report.scattering import draw_scattering

    try:
        extractor = ScatterNet(ScatterNetConfig(**config), dataset.image_shape)
    except (TypeError, UserError):  # of another version
        return None
    with style():
        figure = draw_scattering(extractor, dataset.x_test[0])
    name = dataset.class_names[dataset.y_test[0]]
    return Drawing(
        name=file_name(run.dataset, "scattering"),
        figure=figure,
        title="Filters, and one image's scattering coefficients",
        alt=f"Top: {config['J']} rows of {config['L']} Morlet wavelets in as many orientations. Below: the first test image of {run.dataset}, "
        f"a {name}, smoothed, and the magnitude of its response to each wavelet; last, mean second-order coefficients by pairs of orientations.",
        caption=f"Features are fixed: no wavelet was learned from the data. First test image of {run.dataset} ({name}).",
    )


def _scatternet(name: str, config: Any) -> dict[str, Any] | None:
    """The settings of the ScatterNet in an extractor's."""
    if not isinstance(config, dict):
        return None
    if name == "scatternet":
        return config
    if "extractor" in config:
        return _scatternet(str(config["extractor"]), config.get("config"))
    parts = config.get("parts")
    inner = [_scatternet(str(part), value) for part, value in parts.items()] if isinstance(parts, dict) else []
    return next((found for found in inner if found is not None), None)
