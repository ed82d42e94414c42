"""Names: where a cache and what goes with it are, and what may be in it."""

from __future__ import annotations

import glob
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from scatterdp.errors import ConfigError

if TYPE_CHECKING:
    from scatterdp.datasets.dataset import Dataset
    from scatterdp.extractors.base import Extractor

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
FILE_NAME = re.compile(r"[A-Za-z0-9._+-]+-(float32|float16)-[0-9a-f]{16}\.h5")


def combined_digest(dataset_fingerprint: str, extractor_fingerprint: str, dtype: str) -> str:
    """The 16 hexadecimal digits in a cache's file name."""
    text = json.dumps([dataset_fingerprint, extractor_fingerprint, dtype])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_path(dataset: Dataset, extractor: Extractor, *, features_dir: Path, dtype: str = "float32") -> Path:
    """Where the features of a data set belong: ``features_dir/DATASET-EXTRACTOR-DTYPE-DIGEST.h5``.

    Raises:
        ConfigError: an unknown dtype.
    """
    check_dtype(dtype)
    digest = combined_digest(dataset.fingerprint, extractor.fingerprint, dtype)
    readable = re.sub(r"[^A-Za-z0-9._+-]", "_", f"{dataset.name}-{extractor.name}")
    return Path(features_dir) / f"{readable}-{dtype}-{digest}.h5"


def check_dtype(dtype: str) -> None:
    """Raise ConfigError unless ``dtype`` is one of :data:`DTYPES`."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")


def beside(path: Path, suffix: str) -> Path:
    """``path`` with a suffix to its whole name."""
    return path.with_name(path.name + suffix)


def partial_path(path: Path) -> Path:
    """Where the rows of an unfinished cache are, for the cache's final path."""
    return beside(path, ".partial")


def journal_path(path: Path, rank: int = 0) -> Path:
    """Where the journal of the cache at ``path`` is that the process of number ``rank`` keeps."""
    return beside(path, f".progress-{rank}")


def journal_paths(path: Path) -> list[Path]:
    """All journals beside the cache at ``path``."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.progress-*"))


def companion_paths(path: Path) -> tuple[Path, ...]:
    """Every file that writing the cache at ``path`` may leave beside it, the lock file last."""
    return (
        beside(path, ".creating"),
        beside(path, ".partial"),
        *journal_paths(path),
        beside(path, ".pid"),
        beside(path, ".lock"),
    )


def remedy(path: Path) -> str:
    """What to do about a file that cannot be used, as the end of a sentence."""
    arguments = shlex.join([f"--features_dir={path.parent}", path.name])
    return f"remove it with `python -m scatterdp cache rm {arguments}` and extract again"
