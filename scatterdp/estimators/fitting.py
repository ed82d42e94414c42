"""From checked arrays to a private classifier with its certificate, and from it to predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import dp_accounting
import numpy as np
import torch
from torch import Tensor, nn

from scatterdp.errors import UserError
from scatterdp.estimators import inputs
from scatterdp.estimators.certificates import estimator_certificate
from scatterdp.estimators.images import ImageRows, channels_of, extractor_for, features_of, public_scale
from scatterdp.extractors.reference import DESCRIPTION
from scatterdp.heads import Head
from scatterdp.linear import Budget, HeadName, Matrix, Problem, fit_linear, plan_linear
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import ONE, Processes

CLASSES_FROM_LABELS = "The set of classes was read from the labels and is treated as public; where it is not, name all classes beforehand (classes=)."


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a classifier of images reads: the extractor, by its specification and its fingerprint, and their shape ``(C, H, W)``."""

    specification: str
    shape: tuple[int, int, int]
    fingerprint: str


def fit_classifier(
    X: Matrix,
    y: np.ndarray,
    *,
    classes: np.ndarray,
    classes_from_labels: bool,
    features: str | None,
    budget: Budget,
    head: HeadName,
    centre: bool | None,
    key: RandomKey,
    processes: Processes = ONE,
) -> tuple[Head, Images | None, dict[str, Any]]:
    """A private head of rows or images as they come, what it reads, and its certificate.

    Args:
        X: ``(N, D)`` finite rows, or ``(N, H, W[, 3])`` uint8 images when ``features`` is given.
        y: ``(N,)`` class numbers.
        classes: ``(C,)`` labels, for the certificate.
        classes_from_labels: they were read from private labels.
        features: an extractor's specification.
        budget, head, centre, key, processes: see :func:`scatterdp.linear.fit_linear`.
    """
    images, channels, normalizers, rows, described = None, None, [], X, None
    if features is not None:
        shape = inputs.image_shape(X)
        extractor = extractor_for(features, shape)
        images = Images(specification=features, shape=shape, fingerprint=extractor.fingerprint)
        scale, channels = public_scale(extractor), channels_of(extractor)
        normalizers = [scale]
        rows = ImageRows(X, extractor, scale)
        described = {
            "extractor": features,
            "fingerprint": extractor.fingerprint,
            "shape": list(extractor.output_shape),
            "dtype": str(rows.dtype),
            "scale": f"mean 0 and deviation 1 of each channel on {DESCRIPTION}",
        }
    fit = fit_linear(
        rows,
        y,
        num_classes=len(classes),
        budget=budget,
        key=key,
        head=head,
        centre=centre,
        channels=channels,
        processes=processes,
    )
    certificate = estimator_certificate(
        fit.ledger,
        X,
        budget=budget,
        key=key,
        sampler=fit.sampler,
        classes=[str(label) for label in classes],
        image_shape=None if images is None else images.shape,
        features=described,
        model={"name": fit.method, **fit.settings},
        not_private=["score"],
        more_limits=[CLASSES_FROM_LABELS] if classes_from_labels else [],
        processes=processes.size,
    )
    whole = Head(nn.Sequential(*normalizers, fit.head.normalizer), fit.head.classifier).eval()
    return whole, images, certificate


def planned_event(
    num_examples: int,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    features: str | None,
    budget: Budget,
    head: HeadName,
    centre: bool | None,
) -> dp_accounting.DpEvent:
    """What :func:`fit_classifier` releases for N rows ``(D,)`` or images ``(H, W[, 3])``."""
    channels, size = None, math.prod(input_shape)
    if features is not None:
        shape = (input_shape[2] if len(input_shape) == 3 else 1, *input_shape[:2])
        extractor = extractor_for(features, shape)
        channels, size = channels_of(extractor), math.prod(extractor.output_shape)
    problem = Problem(num_examples=num_examples, num_features=size, num_classes=num_classes)
    return plan_linear(problem, budget=budget, head=head, centre=centre, channels=channels).event


@torch.no_grad()
def logits(head: Head, images: Images | None, block: np.ndarray) -> Tensor:
    """``(b, C)`` float64 of a block of rows or images.

    Raises:
        UserError: this version's extractor computes other features than the one that the classifier was fitted with.
    """
    if images is None:
        values = torch.from_numpy(np.array(block, dtype=np.float32))
    else:
        extractor = extractor_for(images.specification, images.shape)
        if extractor.fingerprint != images.fingerprint:
            raise UserError(
                f"features={images.specification!r}: this version computes other features than the one that the classifier was "
                "fitted with; install the versions that its certificate names"
            )
        values = features_of(extractor, np.asarray(block))
    # In double precision, so that what a row gets does not depend on the rows beside it.
    classifier = head.classifier
    assert isinstance(classifier, nn.Linear)
    rows = head.normalizer(values).flatten(1).double()
    return rows @ classifier.weight.double().t() + classifier.bias.double()
