"""What a fit leaves, private or not, and the certificate that goes with it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from scatterdp.cache import Features
from scatterdp.heads import Head
from scatterdp.privacy.certificate import make_certificate
from scatterdp.privacy.commitment import commitment, commitment_key
from scatterdp.privacy.ledger import Ledger
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.distributed import LIMITS, describe
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.validation import HELD_OUT_RULE, LIMITS_OF_HOLDING_OUT


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A trained head with its proof.

    Args:
        head: the classifier, ``(B, K, h, w)`` features → logits.
        average: the averaged weights of ``head.classifier``, by name.
        test_accuracy: of the last weights, in [0, 1].
        test_accuracy_ema: of the averaged weights, in [0, 1].
        certificate: JSON values, see :mod:`scatterdp.privacy.certificate`.
        metrics: one row an epoch.
        test_predictions: ``(N_test,)`` class numbers of the test rows by the last weights, as exact as ``test_accuracy``.
        seconds: of statistics, loading, training and evaluation.
        validation_accuracy: on examples kept out of training, if there were any: with noise when the plan has some (it may then fall outside
            [0, 1]), else exact and outside the guarantee.
    """

    head: Head
    average: dict[str, Tensor] = field(repr=False)
    test_accuracy: float
    test_accuracy_ema: float
    certificate: dict[str, Any] = field(repr=False)
    metrics: list[dict[str, Any]] = field(repr=False)
    test_predictions: np.ndarray = field(repr=False)
    seconds: float
    validation_accuracy: float | None = None


def certify(
    features: Features,
    plan: TrainingPlan,
    ledger: Ledger,
    *,
    key: RandomKey,
    published_data: bool,
    augmented: bool,
    not_private: list[str],
    sampler: dict[str, Any] | None = None,
    assumptions: Sequence[str] = (),
    history: Sequence[tuple[int, int]] = ((0, 1),),
    num_validation: int | None = None,
) -> dict[str, Any]:
    """The certificate of a run on cached features.

    Args:
        published_data: the data set is public, so its fingerprint may be named; otherwise a commitment is.
        sampler: in words, when it is not the plan's.
        num_validation: how many private examples were kept out of training, if any were.
        assumptions: see :func:`scatterdp.privacy.certificate.make_certificate`.
        history: ``(step, K)``: K processes computed from that step on.
    """
    data: dict[str, Any] = {
        "name": features.dataset_name,
        "num_train": features.num_rows("train"),
        "num_test": features.num_rows("test"),
        "image_shape": list(features.image_shape),
        "classes": list(features.class_names),
    }
    if num_validation is not None:
        data |= {"num_validation": num_validation, "validation_rule": HELD_OUT_RULE}
    if published_data:
        data["fingerprint"] = features.dataset_fingerprint
    else:
        nonce = secrets.token_hex(16)
        data["commitment"] = commitment(features.dataset_fingerprint, commitment_key(features.path.parent), nonce)
        data["commitment_nonce"] = nonce
        data["commitment_is"] = (
            "HMAC-SHA-256 of nonce, space and the data set's fingerprint under commitment.key of the features folder"
        )
    shared = any(number > 1 for _, number in history)
    sampler = sampler or plan.selection().describe()
    return make_certificate(
        ledger,
        delta=plan.delta,
        accountant=plan.accountant,
        adjacency=plan.selection().adjacency,
        sampler=sampler,
        key=key,
        data=data,
        features={
            "extractor": features.extractor_name,
            "config": features.extractor_config,
            "fingerprint": features.extractor_fingerprint,
            "shape": list(features.output_shape),
            "dtype": features.dtype,
            "augmented": augmented,
            **_from_synthetic_images(plan),
        },
        not_private=[
            "test_accuracy",
            "test_accuracy_ema",
            "test_predictions",
            "seconds",
            "peak_memory_bytes",
            *not_private,
        ],
        assumptions=assumptions,
        computation=describe(history, sampler=sampler["kind"]) if shared else None,
        more_limits=[*(LIMITS if shared else ()), *(() if num_validation is None else LIMITS_OF_HOLDING_OUT)],
    )


def _from_synthetic_images(plan: TrainingPlan) -> dict[str, str]:
    """What of a run came from synthetic images beside the extractor."""
    parts = []
    if plan.precondition:
        parts.append(f"the preconditioner ({plan.precondition} directions, power {plan.precondition_power:g})")
    if plan.head == "patch_cnn":
        parts.append("the network's first weights and the parts of it that are not trained")
    if not parts:
        return {}
    what = " and ".join(parts)
    return {
        "from_synthetic_images": f"{what}: from features of synthetic images and views of them, which come from fixed seeds and no data set, "
        "after the run's normaliser"
    }
