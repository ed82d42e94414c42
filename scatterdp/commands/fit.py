"""``python -m scatterdp fit``: a private classifier of your own features or images, with its certificate.

    python -m scatterdp fit --features=my.npy --labels=labels.npy --target_epsilon=2
    python -m scatterdp fit --features=my.csv --labels=species --test_features=test.csv --test_labels=species
    python -m scatterdp fit --features=FOLDER                      # images: FOLDER/<class>/*.png, or train/ and test/ of these
    torchrun --nproc_per_node=4 -m scatterdp fit --features=my.h5 --labels=my.h5:y     # several processes, each a part of the rows

The number of examples, the shape of one and the set of classes are public; nothing else of the training data is printed or
written but what the certificate covers. ``python -m scatterdp predict`` uses the classifier.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scatterdp.config import DEFAULT_TARGET_EPSILON
from scatterdp.errors import ConfigError
from scatterdp.estimators import DPClassifier
from scatterdp.estimators.storage import serialized
from scatterdp.exits import INTERRUPTED_WITH_NOTHING, parsed
from scatterdp.linear import HeadName
from scatterdp.privacy.accounting import delta_warning
from scatterdp.privacy.certificate import rounded_up, with_publication
from scatterdp.records import RunFolder, new_run_dir, peak_memory_bytes
from scatterdp.tables import FeatureTable, Tables, read_tables, row_blocks
from scatterdp.training.distributed import processes_of_environment

DEFAULT_EXTRACTOR = "scatternet"
_MOST_CLASSES = 20  # that are printed


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fit a differentially private classifier on your own features, or on a folder of images."""

    features: str
    """FILE.npy, FILE.npz[:KEY], FILE.h5[:KEY], FILE.csv: (N, D) numbers; a feature cache; or a folder of images, FOLDER/<class>/*.png|jpg
    or train/<class>/… and test/<class>/…. Private."""
    labels: str | None = None
    """FILE.npy, FILE.npz[:KEY], FILE.h5[:KEY], FILE.csv or FILE.txt (one a line), FILE.csv:COLUMN, or a column of the features' .csv. Whole
    numbers or text. None for caches and folders, which bring theirs."""
    test_features: str | None = None
    """Like features, for a test accuracy. Not protected. Caches and folders with test/ bring theirs."""
    test_labels: str | None = None
    """Like labels."""
    target_epsilon: float = DEFAULT_TARGET_EPSILON
    """ε of everything that is released of the training data."""
    target_delta: float = 1e-5
    """δ; below 1/N, or the guarantee allows publishing an example outright."""
    accountant: Literal["pld", "rdp", "rdp_classic"] = "pld"
    """Which upper bound on ε counts."""
    head: HeadName = "auto"
    """How the classifier is found; see scatterdp.linear. auto: chosen by the public numbers alone (examples, features, classes, budget)."""
    extractor: str | None = None
    """For a folder of images: their fixed features, as in "scatternet(mirror=True)+patches". None: scatternet."""
    seed: int | None = None
    """Makes the run reproducible and the noise predictable to whoever knows it. None: 256 bits from the system."""
    run_dir: Path | None = None
    """Where the run's record goes; must not exist yet. None: runs/<name>-<time>."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.target_epsilon) and self.target_epsilon > 0):
            raise ConfigError(f"target_epsilon={self.target_epsilon}: expected a finite number > 0")
        if not 0 < self.target_delta < 1:
            raise ConfigError(f"target_delta={self.target_delta}: expected a number between 0 and 1")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed={self.seed}: expected a whole number ≥ 0")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        return values | {"run_dir": None if self.run_dir is None else str(self.run_dir)}


def fit(config: FitConfig) -> Path:
    """Run the command; prints what is public, the test accuracy and where the run folder is.

    Returns:
        The run folder.

    Raises:
        UserError: see the message; then nothing was written.
    """
    processes = processes_of_environment()
    if config.run_dir is not None and processes.rank == 0:
        RunFolder.check_new(config.run_dir, resumable=False)
    tables = read_tables(config.features, config.labels, config.test_features, config.test_labels)
    train = tables.train
    if config.extractor is not None and not train.is_images:
        raise ConfigError(
            f"extractor={config.extractor}: is for images, {config.features} holds features already; leave it out"
        )
    if processes.rank == 0:
        _announce(config, tables)
    classifier = DPClassifier(
        epsilon=config.target_epsilon,
        delta=config.target_delta,
        features=(config.extractor or DEFAULT_EXTRACTOR) if train.is_images else None,
        head=config.head,
        accountant=config.accountant,
        random_state=config.seed,
    )
    begin = time.monotonic()
    classifier.fit_together(train.x, train.labels, processes)
    seconds = time.monotonic() - begin
    path = processes.share(config.run_dir or new_run_dir(train.name))
    if processes.rank == 0:
        _record(config, path, classifier, tables, seconds)
    processes.wait()  # for the record
    return path


def _record(config: FitConfig, path: Path, classifier: DPClassifier, tables: Tables, seconds: float) -> None:
    train = tables.train
    accuracy = None if tables.test is None else accuracy_on(classifier, tables.test)
    exact = (
        ["seconds_fit", "peak_memory_bytes"]
        if accuracy is None
        else ["test_accuracy", "seconds_fit", "peak_memory_bytes"]
    )
    certificate = with_publication(classifier.privacy_certificate_, data_name=train.name, not_private=exact)
    classifier.privacy_certificate_ = certificate  # the model's file holds it too
    with RunFolder.whole(path, config) as folder:
        folder.write("model.safetensors", serialized(classifier))
        folder.write_json("certificate.json", certificate)
        folder.write_json(
            "summary.json",
            {
                "test_accuracy": accuracy,
                "num_test": None if tables.test is None else len(tables.test),
                "private": certificate["private"],
                "not_private": certificate["not_private"],
                "epsilon": certificate["epsilon"],
                "delta": certificate["delta"],
                "accountant": certificate["accountant"],
                "epsilon_by_accountant": certificate["epsilon_by_accountant"],
                "seconds_fit": round(seconds, 3),
                "peak_memory_bytes": peak_memory_bytes(),
            },
        )
    if accuracy is not None:
        print(f"test accuracy {accuracy:.4f}")
    print(
        f"ε = {rounded_up(certificate['epsilon'])} at δ = {certificate['delta']:g} by {certificate['accountant']}, "
        f"after {seconds:.1f} s"
    )
    print(f"run folder: {path}")


def accuracy_on(classifier: DPClassifier, test: FeatureTable) -> float:
    """The part of the test rows, in [0, 1], whose class is predicted; read in blocks."""
    assert test.labels is not None
    right = 0
    for start, block in row_blocks(test.x):
        right += int(np.count_nonzero(classifier.predict(block) == test.labels[start : start + len(block)]))
    return right / len(test)


def _announce(config: FitConfig, tables: Tables) -> None:
    train, test = tables.train, tables.test
    what = (
        "images of " + "×".join(map(str, train.x.shape[1:]))
        if train.is_images
        else f"rows of {train.x.shape[1]} features"
    )
    classes = [str(name) for name in np.unique(np.asarray(train.labels))]
    listed = ", ".join(classes[:_MOST_CLASSES]) + (", …" if len(classes) > _MOST_CLASSES else "")
    tested = f"; {len(test)} to test" if test is not None else "; no test"
    print(f"{train.name}: {len(train)} {what}{tested}; {len(classes)} classes: {listed}", flush=True)
    if warning := delta_warning(config.target_delta, len(train)):
        print(f"warning: {warning}; give a smaller --target_delta", file=sys.stderr)


def run(argv: list[str]) -> int:
    """Run ``fit`` with its arguments.

    Raises:
        UserError: see the message.
    """
    config = parsed(FitConfig, prog="scatterdp fit", args=argv, description=__doc__)
    try:
        fit(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(INTERRUPTED_WITH_NOTHING) from None
    return 0
