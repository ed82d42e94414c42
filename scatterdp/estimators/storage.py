"""A fitted classifier as one safetensors file: tensors, and everything else as JSON in its metadata."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from scatterdp.errors import UserError
from scatterdp.estimators.fitting import Images
from scatterdp.heads import Head, Standardize
from scatterdp.linear import UnitSphere
from scatterdp.writing import write_whole

if TYPE_CHECKING:
    from scatterdp.estimators.classifier import DPClassifier

FORMAT = "scatterdp.DPClassifier 1"
_LEFT_OUT = ("random_state",)  # whoever knows it can take the noise away
_SCALE_MEAN = "normalizer.0.mean"


def save_classifier(classifier: DPClassifier, path: Path) -> None:
    """Write whole or not at all.

    Raises:
        UserError: the file cannot be written, or labels that JSON does not know.
    """
    content = serialized(classifier)
    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(f"path={path}: cannot be written ({error.strerror}); give another") from error


def serialized(classifier: DPClassifier) -> bytes:
    """A file's content.

    Raises:
        UserError: labels that JSON does not know.
    """
    parameters = {name: value for name, value in classifier.get_params().items() if name not in _LEFT_OUT}
    if parameters["classes"] is not None:
        parameters["classes"] = np.asarray(parameters["classes"]).tolist()
    names = getattr(classifier, "feature_names_in_", None)
    facts = {
        "format": FORMAT,
        "parameters": parameters,
        "classes": classifier.classes_.tolist(),
        "classes_dtype": classifier.classes_.dtype.str,
        "n_features_in": int(classifier.n_features_in_),
        "feature_names_in": None if names is None else names.tolist(),
        "images": None if classifier.images_ is None else dataclasses.asdict(classifier.images_),
        "certificate": classifier.privacy_certificate_,
    }
    try:
        text = json.dumps(facts, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"classifier: cannot be written as JSON ({error}); take labels that are strings or numbers"
        ) from error
    tensors = {name: value.detach().cpu().contiguous() for name, value in classifier.head_.state_dict().items()}
    return save(tensors, metadata={"facts": text})


def load_classifier(kind: type[DPClassifier], path: Path) -> Any:
    """Read what :func:`save_classifier` wrote.

    Raises:
        UserError: the file is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"path={path}: is no saved classifier ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UserError(f"path={path}: is not what DPClassifier.save writes ({FORMAT})")
    try:
        classifier = kind(**facts["parameters"])
        classifier.classes_ = np.array(facts["classes"], dtype=np.dtype(facts["classes_dtype"]))
        classifier.n_features_in_ = facts["n_features_in"]
        if facts["feature_names_in"] is not None:
            classifier.feature_names_in_ = np.array(facts["feature_names_in"], dtype=object)
        images = facts["images"]
        classifier.images_ = None if images is None else Images(**images | {"shape": tuple(images["shape"])})
        classifier.privacy_certificate_ = facts["certificate"]
        classifier._spent = list(facts["certificate"]["ledger"])  # so that a further fit warns
        classifier.head_ = _head(tensors)
        if len(tensors["classifier.weight"]) != len(classifier.classes_):
            raise ValueError(
                f"{len(tensors['classifier.weight'])} rows of weights for {len(classifier.classes_)} classes"
            )
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"path={path}: is damaged ({type(error).__name__}: {error})") from error
    return classifier


def _head(tensors: dict[str, Any]) -> Head:
    classes, size = tensors["classifier.weight"].shape
    normalizers: list[nn.Module] = []
    if _SCALE_MEAN in tensors and "normalizer.0.scale" in tensors:
        normalizers.append(Standardize(tensors[_SCALE_MEAN], tensors["normalizer.0.scale"]))
    head = Head(nn.Sequential(*normalizers, UnitSphere(size)), nn.Linear(size, classes)).eval()
    head.load_state_dict(tensors)
    return head


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}")
