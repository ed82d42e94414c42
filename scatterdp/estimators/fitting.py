"""From checked arrays to a private classifier with its certificate, and from it to predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scatterdp.errors import UserError
from scatterdp.estimators import inputs
from scatterdp.estimators.images import ImageRows, channels_of, extractor_for, features_of, public_scale
from scatterdp.extractors.reference import DESCRIPTION
from scatterdp.heads import Head
from scatterdp.linear import Budget, HeadName, Matrix, fit_linear
from scatterdp.privacy.certificate import make_certificate
from scatterdp.privacy.randomness import RandomKey


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
) -> tuple[Head, Images | None, dict[str, Any]]:
    """A private head of rows or images as they come, what it reads, and its certificate.

    Args:
        X: ``(N, D)`` finite rows, or ``(N, H, W[, 3])`` uint8 images when ``features`` is given.
        y: ``(N,)`` class numbers.
        classes: ``(C,)`` labels, for the certificate.
        classes_from_labels: they were read from private labels.
        features: an extractor's specification.
        budget, head, centre, key: see :func:`scatterdp.linear.fit_linear`.
    """
    images, channels, normalizers = None, None, []
    described: dict[str, Any] = {"extractor": "given", "shape": [int(n) for n in X.shape[1:]], "dtype": str(X.dtype)}
    data: dict[str, Any] = {"name": "the arrays given to fit", "num_train": len(y)}
    rows = X
    if features is not None:
        shape = inputs.image_shape(X)
        extractor = extractor_for(features, shape)
        images = Images(specification=features, shape=shape, fingerprint=extractor.fingerprint)
        scale, channels = public_scale(extractor), channels_of(extractor)
        normalizers = [scale]
        rows = ImageRows(X, extractor, scale)
        data["image_shape"] = list(shape)
        described = {
            "extractor": features,
            "fingerprint": extractor.fingerprint,
            "shape": list(extractor.output_shape),
            "dtype": str(rows.dtype),
            "scale": f"mean 0 and deviation 1 of each channel on {DESCRIPTION}",
        }
    data["classes"] = [str(label) for label in classes]
    fit = fit_linear(
        rows, y, num_classes=len(classes), budget=budget, key=key, head=head, centre=centre, channels=channels
    )
    certificate = make_certificate(
        fit.ledger,
        delta=budget.delta,
        accountant=budget.accountant,
        adjacency=fit.sampler["adjacency"],
        sampler=fit.sampler,
        key=key,
        data=data,
        features=described,
        not_private=["score"],
    )
    whole = Head(nn.Sequential(*normalizers, fit.head.normalizer), fit.head.classifier).eval()
    return whole, images, certificate


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
    return head(values).double()
