"""Features that are there already: a cache that an extraction wrote, or the ``.npy`` files of the published code.

``--feature_path=P`` is, in this order:

| on the disk | what is read |
|---|---|
| ``P_train.npy``, ``P_test.npy`` | features ``(N, D)`` or ``(N, K, h, w)``; labels are those of ``--dataset``, in its order |
| beside them ``P_mean.npy``, ``P_var.npy`` | channel statistics ``(D,)`` or ``(K,)``, **claimed public** by whoever gives them |
| a file ``P`` | an HDF5 cache with its labels |
| ``….h5`` in P's folder, of the extractor that P is named like | the same; ``transfer/features/cifar100_resnext`` finds what ``transfer.extract_cifar100`` wrote |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from scatterdp.cache import FeatureCache, Features, Split
from scatterdp.datasets import Dataset
from scatterdp.errors import CacheError, ConfigError, UserError
from scatterdp.extractors import EXTRACTORS, make_extractor
from scatterdp.extractors.base import Extractor, fingerprint
from scatterdp.training.normalization import PublicStatistics
from transfer.preprocessing import Preprocessing
from transfer.sources import make_backbone

_STATISTICS = ("mean", "var")


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """Where features came from, as far as files say it."""

    files: str


class StoredExtractor:
    """Stands for an extractor whose features are there and that is not needed again; it cannot be called.

    Args:
        features: what it made.
    """

    def __init__(self, features: Features) -> None:
        self.name = features.extractor_name
        self.config = FilesConfig(files=features.path.name)
        self.input_shape, self.output_shape = features.image_shape, features.output_shape
        self.fingerprint = features.extractor_fingerprint

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Nothing can be computed.

        Raises:
            UserError: always.
        """
        raise UserError(f"extractor {self.name}: its features are stored, it cannot compute others")

    def to(self, device: torch.device | str) -> Self:
        """There is nothing to move."""
        return self


class NpyFeatures:
    """Old-style feature files with a data set's labels; the part of a :class:`~scatterdp.cache.FeatureCache` that training reads.

    Args:
        prefix: of the files' names.
        dataset: whose images the rows are, in its order.

    Raises:
        UserError: a file is missing, no array of numbers, or of other sizes than the data set or the other file.
    """

    dtype = "float32"

    def __init__(self, prefix: Path, dataset: Dataset) -> None:
        self.path = _file(prefix, "train")
        self.dataset = dataset
        self._arrays = {"train": _array(_file(prefix, "train")), "test": _array(_file(prefix, "test"))}
        for split, array in self._arrays.items():
            path, labels = _file(prefix, split), dataset.split(split)[1]
            if array.ndim not in (2, 4) or array.dtype.kind != "f":
                raise UserError(
                    f"{path}: {array.dtype} of shape {array.shape}, expected floating point (N, D) or (N, K, h, w)"
                )
            if len(array) != len(labels):
                raise UserError(
                    f"{path}: {len(array)} rows, but {dataset.name} has {len(labels)} {split} labels; give the --dataset whose "
                    "images these are"
                )
        shapes = {split: array.shape[1:] for split, array in self._arrays.items()}
        if shapes["train"] != shapes["test"]:
            raise UserError(
                f"{_file(prefix, 'test')}: rows of shape {shapes['test']}, the training file's are {shapes['train']}"
            )
        channels, height, width = (*shapes["train"], 1, 1)[:3]
        self.output_shape = (channels, height, width)
        self.dataset_name = dataset.name
        self.class_names, self.image_shape = dataset.class_names, dataset.image_shape
        self.extractor_name = prefix.name
        self.extractor_config: dict[str, Any] = {"files": prefix.name}
        # Published with the certificate, so no digest of the features: the data set's fingerprint below covers those.
        self.extractor_fingerprint = fingerprint(
            "NpyFeatures", FilesConfig(files=prefix.name), self.image_shape, preprocessing={}, versions={}
        )

    @property
    def dataset_fingerprint(self) -> str:
        """Of labels and features together."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self.dataset.fingerprint.encode())
        for split in ("train", "test"):
            for _, block in self.iter_rows(split, 4096):
                digest.update(block.tobytes())
        return digest.hexdigest()

    def content_digest(self) -> str:
        """The data set's fingerprint, which is of these features."""
        return self.dataset_fingerprint

    def num_rows(self, split: Split) -> int:
        """N of a split."""
        return len(self._arrays[split])

    def labels(self, split: Split) -> np.ndarray:
        """``(N,)`` int64."""
        return self.dataset.split(split)[1]

    def iter_rows(
        self, split: Split, rows_per_block: int, *, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """First row and ``(b, K, h, w)`` float32 features of each block, from row ``first`` to before ``stop`` (None: all)."""
        array = self._arrays[split][:stop]
        for start in range(first, len(array), rows_per_block):
            block = np.array(array[start : start + rows_per_block], np.float32)  # a copy: the file is not to be changed
            yield start, block.reshape(len(block), *self.output_shape)

    def row_reader(self, split: Split) -> _NpyReader:
        """Reads rows ``(b, K, h, w)`` float32 by number."""
        return _NpyReader(self._arrays[split], self.output_shape)


@dataclass(frozen=True, eq=False)
class _NpyReader:
    """Rows of a mapped array."""

    array: np.ndarray
    shape: tuple[int, int, int]

    def expect(self, rows: np.ndarray) -> None:
        """A mapped file is fetched when it is read."""

    def read(self, rows: np.ndarray) -> np.ndarray:
        """``(len(rows), K, h, w)`` float32."""
        return np.asarray(self.array[rows], np.float32).reshape(len(rows), *self.shape)


def is_npy(prefix: Path) -> bool:
    """Whether a feature path means old-style files."""
    return any(_file(prefix, split).exists() for split in ("train", "test"))


def find_cache(path: Path) -> Path:
    """The cache that a feature path means.

    Raises:
        CacheError: there is none, or more than one.
    """
    if path.is_file():
        return path
    found = sorted(path.parent.glob(f"*-{path.name}-float*.h5"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise CacheError(f"feature_path={path}: may be any of {names}; give one of these files")
    if not found:
        raise CacheError(
            f"feature_path={path}: neither {path.name}_train.npy and {path.name}_test.npy nor a feature cache is there; "
            "python -m transfer.extract writes one"
        )
    return found[0]


def has_statistics(prefix: Path) -> bool:
    """Whether statistics lie beside old-style features."""
    return all(_file(prefix, name).exists() for name in _STATISTICS)


def public_statistics(prefix: Path) -> PublicStatistics:
    """The statistics that lie beside old-style features.

    Raises:
        UserError: one or both are missing: the message says what can be done; or they are no numbers.
    """
    missing = [_file(prefix, name).name for name in _STATISTICS if not _file(prefix, name).exists()]
    if missing:
        raise UserError(
            f"feature_path={prefix}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; give public statistics there, "
            "or release them with DP (--input_norm=BN --bn_noise_multiplier=8 --feature_clip_norm=C), or normalise each example by itself "
            "at no cost (--input_norm=GroupNorm), or not at all (--input_norm=none)"
        )
    mean, variance = (torch.from_numpy(np.array(_array(_file(prefix, name)), np.float64)) for name in _STATISTICS)
    return PublicStatistics(mean=mean, variance=variance, source=f"{prefix.name}_mean.npy and {prefix.name}_var.npy")


def rebuilt_extractor(features: FeatureCache, *, backbone: str | None = None, weights: Path | None = None) -> Extractor:
    """The extractor that made a cache, to push synthetic images through.

    Args:
        features: the cache.
        backbone: what it was made with, where the file's own word is not enough: code is run only if it is named here.
        weights: the checkpoint, if it lies elsewhere now.

    Raises:
        UserError: it cannot be made again, or is another one; says what else bounds the statistics.
    """
    config, name = features.extractor_config, features.extractor_name
    otherwise = "or bound the statistics by --feature_clip_norm=C, or take --input_norm=GroupNorm"
    if "weights_sha256" in config:
        source = backbone or config["backbone"]
        if backbone is None and source.startswith("module:"):
            raise ConfigError(
                f"feature_path={features.path}: its features come from code of somebody's ({source}), which is not run because a file names "
                f"it: give --backbone={source} to run it, {otherwise}"
            )
        try:
            shown = config["preprocessing"]
            preprocessing = Preprocessing(**{**shown, "mean": tuple(shown["mean"]), "std": tuple(shown["std"])})
            extractor: Extractor = make_backbone(
                source, str(weights or config["weights"]), features.image_shape, preprocessing=preprocessing
            )
        except UserError as error:
            raise UserError(f"{error}; {otherwise}") from error
    elif name in EXTRACTORS:
        extractor = make_extractor(name, features.image_shape, **config)
    else:
        raise ConfigError(
            f"feature_path={features.path}: extractor {name} cannot be made again from the file; {otherwise[3:]}"
        )
    if extractor.fingerprint != features.extractor_fingerprint:
        made_by = json.dumps({key: value for key, value in config.items() if key in ("backbone", "weights", "library")})
        raise UserError(
            f"feature_path={features.path}: was made by another extractor than this one ({made_by}); give its --weights and library, {otherwise}"
        )
    return extractor


def _file(prefix: Path, part: str) -> Path:
    return prefix.with_name(f"{prefix.name}_{part}.npy")


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; features come as _train.npy and _test.npy") from None
    except (OSError, ValueError, EOFError, TypeError) as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise UserError(f"{path}: holds pickled objects, which are not read: store an array of numbers") from error
        raise UserError(f"{path}: not a readable .npy file ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: not a .npy file; store one array with numpy.save")
    return array
