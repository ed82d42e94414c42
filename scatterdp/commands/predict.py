"""``python -m scatterdp predict``: classes and probabilities by a classifier that ``fit`` has made.

    python -m scatterdp predict --model=runs/my-20260101-120000-000000 --input=new.npy --out=classes.csv
    python -m scatterdp predict --model=runs/pets --input=FOLDER --out=classes.csv --all_probabilities

A line a row of the input: its number, counted from 0, or the file's name for a folder of images; the class; its probability.
Predicting costs no privacy budget of the training data; what is written is about the input.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from scatterdp.errors import ConfigError, UserError
from scatterdp.estimators import DPClassifier
from scatterdp.exits import INTERRUPTED_WITH_NOTHING
from scatterdp.tables import FeatureTable, read_table, row_blocks


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Write the classes of new features or images, as a private classifier sees them, to a .csv."""

    model: Path
    """A run folder of fit, or its model.safetensors."""
    input: str
    """Features or a folder of images, of the kind that the model was fitted on; see fit --features. Images may lie in FOLDER itself."""
    out: Path
    """The .csv file to write; must not exist yet."""
    all_probabilities: bool = False
    """Also a column for each class."""
    label_column: str | None = None
    """A column of a .csv that is no feature, such as its labels."""


def predict(config: PredictConfig) -> None:
    """Run the command; prints where the file is.

    Raises:
        UserError: see the message; then nothing was written.
    """
    if os.path.lexists(config.out):
        raise ConfigError(f"out={config.out}: is there already, give another name or remove it")
    if not config.out.absolute().parent.is_dir():
        raise ConfigError(f"out={config.out}: {config.out.parent} is no folder; make it, or give another")
    classifier = load_model(config.model)
    if config.label_column is not None and not config.input.lower().endswith(".csv"):
        raise ConfigError(f"label_column={config.label_column}: only a .csv has columns with names; leave it out")
    table = read_table(
        config.input,
        config.label_column,
        argument="input",
        labels_argument="label_column",
        like=row_shape(classifier),
    )
    unfinished = config.out.with_name(f".{config.out.name}.{os.getpid()}.unfinished")
    try:
        write_predictions(classifier, table, unfinished, all_probabilities=config.all_probabilities)
        os.replace(unfinished, config.out)
    except OSError as error:
        raise ConfigError(f"out={config.out}: cannot be written ({error.strerror}); give another") from error
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"{len(table)} predictions: {config.out}")


def load_model(path: Path) -> DPClassifier:
    """The classifier of a run folder or of a ``model.safetensors``.

    Raises:
        ConfigError: there is none, or it is of something else.
    """
    remedy = "give the run folder of a finished `python -m scatterdp fit`"
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        what = "has no model.safetensors" if path.is_dir() else "there is no such file or folder"
        raise ConfigError(f"model={path}: {what}; {remedy}")
    try:
        return DPClassifier.load(file)
    except UserError as error:
        raise ConfigError(f"model={path}: {str(error).removeprefix(f'path={file}: ')}; {remedy}") from error


def row_shape(classifier: DPClassifier) -> tuple[int, ...]:
    """The shape of one row that the classifier takes: ``(D,)``, ``(H, W)`` or ``(H, W, 3)``."""
    if classifier.images_ is None:
        return (classifier.n_features_in_,)
    channels, height, width = classifier.images_.shape
    return (height, width) if channels == 1 else (height, width, channels)


def write_predictions(
    classifier: DPClassifier, table: FeatureTable, path: Path, *, all_probabilities: bool = False
) -> None:
    """Write a line a row, read and predicted in blocks."""
    classes = [str(name) for name in classifier.classes_]
    header = ["row" if table.row_names is None else "file", "class", "probability"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, *(f"probability of {name}" for name in classes if all_probabilities)])
        for start, block in row_blocks(table.x):
            for number, probabilities in enumerate(np.asarray(classifier.predict_proba(block)), start):
                best = int(np.argmax(probabilities))
                line: list[Any] = [number if table.row_names is None else table.row_names[number], classes[best]]
                written = probabilities if all_probabilities else ()
                writer.writerow([*line, *(f"{value:.6g}" for value in (probabilities[best], *written))])


def run(argv: list[str]) -> int:
    """Run ``predict`` with its arguments.

    Raises:
        UserError: see the message.
    """
    config = tyro.cli(PredictConfig, prog="scatterdp predict", args=argv, use_underscores=True, description=__doc__)
    try:
        predict(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(INTERRUPTED_WITH_NOTHING) from None
    return 0
