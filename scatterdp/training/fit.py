"""From cached features to a private classifier with its ledger: statistics, training, certificate."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from scatterdp.cache import Features, Split
from scatterdp.engines import ENGINES, check_by_example
from scatterdp.errors import UserError
from scatterdp.extractors.base import Extractor
from scatterdp.heads import Head, Precondition, make_classifier
from scatterdp.privacy.ledger import Ledger, finite_or_none
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.checkpoint import Checkpoint
from scatterdp.training.evaluation import evaluate, predicted_classes
from scatterdp.training.loop import TrainingState, train
from scatterdp.training.normalization import PublicStatistics, release_normalizer, restore_normalizer
from scatterdp.training.plan import UNCLIPPED, TrainingPlan
from scatterdp.training.preconditioning import folded, synthetic_precondition
from scatterdp.training.result import FitResult, certify
from scatterdp.training.rows import DEFAULT_PHYSICAL_BATCH, AugmentedRows, LabelledRows, load_rows
from scatterdp.training.unclipped import unclipped_sum
from scatterdp.training.validation import validation_accuracy

CHECKPOINT_SECONDS = 5.0
_PATIENCE = 5  # epochs without a better test accuracy


@dataclass(frozen=True)
class Network:
    """A network that is not made by name alone, such as one that starts from public weights.

    Args:
        description: everything that decides it beside the seed, digests of weights included.
        make: the network of flat rows ``(b, K·h·w)`` for a seed; parameters that ask for no gradient stay as they are.
        prepare: called with it once it is known to keep examples apart. That check needs double precision, so lower precision is set here.
    """

    description: str
    make: Callable[[int], nn.Module]
    prepare: Callable[[Any], None] = lambda network: None


#: The rows of a split; the key is for what they draw at random.
RowsOf = Callable[[Split, RandomKey], LabelledRows]


def fit(
    features: Features,
    plan: TrainingPlan,
    *,
    extractor: Extractor,
    key: RandomKey | None = None,
    device: torch.device | str = "cpu",
    physical_batch_size: int = DEFAULT_PHYSICAL_BATCH,
    augmented_images: np.ndarray | None = None,
    published_data: bool = False,
    train_metrics: bool = False,
    statistics: PublicStatistics | None = None,
    assumptions: Sequence[str] = (),
    validation: Features | None = None,
    network: Network | None = None,
    rows_of: RowsOf | None = None,
    resume: Checkpoint | None = None,
    on_metrics: Callable[[dict[str, Any]], None] = lambda row: None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> FitResult:
    """Train a head with differential privacy.

    Args:
        features: cached features of the train and test split.
        plan: a calibrated plan for ``features.num_rows("train")`` examples.
        extractor: the one that made ``features``; it pushes synthetic images through for the bounds of ``BN``.
        key: random key; a fresh one from the operating system by default. It is bound to the run's :func:`context`, so that
            runs from one seed share no noise when they differ in anything.
        device: where rows and weights live.
        physical_batch_size: rows in work at once; no privacy meaning.
        augmented_images: ``(N, H, W[, 3])`` uint8 training images to flip, crop and extract at every step, in place of
            the cached training features.
        published_data: the data set is public: the certificate may name its digest.
        train_metrics: also compute loss and accuracy on the private data; outside the guarantee.
        statistics: means and variances that the user says are public, for a plan with ``input_norm="given"``.
        assumptions: further sentences for the certificate: what the guarantee takes for granted about ``features``.
        validation: features whose training split are private examples that ``features`` lack (:mod:`scatterdp.training.validation`): the accuracy on
            them is computed once, after the last step.
        network: what is trained, in place of the one that ``plan.head`` names.
        rows_of: where the rows come from, for features that are not read into memory; the plan's normaliser is then ``none``.
        resume: continue from here; its key replaces ``key``.
        on_metrics: called with each epoch's row.
        on_checkpoint: called with a checkpoint once the statistics are released and then every few seconds.

    Raises:
        UserError: plan, extractor or checkpoint do not belong to these features; features that are not finite.
    """
    here = context(
        features,
        plan,
        augmented=augmented_images is not None,
        physical_batch_size=physical_batch_size,
        device=device,
        statistics=statistics,
        network=network,
    )
    if rows_of is not None and plan.input_norm != "none":
        raise UserError(
            f"input_norm={plan.input_norm}: rows that are read while training are not normalised; give none"
        )
    _check_belonging(features, plan, extractor, augmented_images, validation)
    if resume is not None and resume.context != here:
        raise UserError(
            "resume: data, settings, device or versions are not those that the run began with; its noise must not be used "
            "for anything else: restore them, or start a new run"
        )
    begin = time.monotonic() - (resume.seconds if resume else 0.0)
    if resume is None:
        key = (key or RandomKey.from_system()).bound_to(here)
        normalizer, entries = release_normalizer(features, plan, extractor=extractor, key=key, statistics=statistics)
        if plan.precondition:
            scale = synthetic_precondition(
                extractor,
                normalizer,
                directions=plan.precondition,
                power=plan.precondition_power,
                keep_length=plan.head != "linear",
            )
            normalizer = nn.Sequential(normalizer, scale)
        ledger = Ledger(entries)
        metrics: list[dict[str, Any]] = []
    else:
        key = resume.key
        normalizer = _restored(features, plan, resume.normalizer)
        ledger = Ledger.from_json(resume.ledger)
        metrics = list(resume.metrics)
    initial = int(key.words("initial weights", counter=0, count=1)[0] >> np.uint64(1))
    if network is None:
        classifier = make_classifier(plan.head, features.output_shape, len(features.class_names), seed=initial)
    else:
        classifier = network.make(initial)
    if plan.engine not in ("linear", UNCLIPPED):
        made_up = torch.randn(2, int(np.prod(features.output_shape)), generator=torch.Generator().manual_seed(0))
        if network is None:
            check_by_example(classifier, made_up)
        else:  # deep networks of ReLU jump where single precision rounds to the other side of 0
            check_by_example(copy.deepcopy(classifier).double(), made_up.double())
    if network is not None:
        network.prepare(classifier)
    head = Head(normalizer, classifier).to(device).eval()
    state = TrainingState.begin(head.classifier, plan)
    if resume is not None:
        state.load_state_dict(resume.training)

    def load(split: Split) -> LabelledRows:
        if rows_of is not None:
            return rows_of(split, key)
        return load_rows(features, split, head.normalizer, device=device, physical_batch_size=physical_batch_size)

    test = load("test")
    cached_train = load("train") if augmented_images is None or train_metrics else None
    if augmented_images is None:
        assert cached_train is not None
        rows = cached_train
    else:
        labels = torch.from_numpy(features.labels("train")).to(device)
        rows = AugmentedRows(
            images=augmented_images,
            y=labels,
            extractor=extractor.to(device),
            normalizer=head.normalizer,
            key=key,
            physical_batch_size=physical_batch_size,
            copies=plan.augmentation_multiplicity,
        )

    last_saved = -CHECKPOINT_SECONDS

    def save(state: TrainingState) -> None:
        nonlocal last_saved
        if on_checkpoint is None or time.monotonic() - last_saved < CHECKPOINT_SECONDS:
            return
        on_checkpoint(
            Checkpoint(
                key=key,
                context=here,
                normalizer=copy.deepcopy(head.normalizer.state_dict()),
                ledger=ledger.to_json(),
                training=copy.deepcopy(state.state_dict()),
                metrics=list(metrics),
                seconds=time.monotonic() - begin,
            )
        )
        last_saved = time.monotonic()

    total_epsilon = finite_or_none(plan.epsilon())

    def after_epoch(state: TrainingState) -> bool:
        row: dict[str, Any] = {
            "epoch": -(-state.step // plan.steps_per_epoch),
            "step": state.step,
            "epsilon": _epsilon_so_far(plan, state.step, total_epsilon),
            "test_accuracy": evaluate(head.classifier, test)[0],
            "test_accuracy_ema": evaluate(head.classifier, test, state.average.average)[0],
            "seconds": round(time.monotonic() - begin, 3),
        }
        if train_metrics:
            assert cached_train is not None
            accuracy, loss = evaluate(head.classifier, cached_train)
            row |= {"train_accuracy_not_private": accuracy, "train_loss_not_private": loss}
        metrics.append(row)
        on_metrics(row)
        save(state)
        return plan.early_stop and _has_stalled([row["test_accuracy"] for row in metrics])

    save(state)
    stopped = plan.early_stop and _has_stalled([row["test_accuracy"] for row in metrics])
    engine = unclipped_sum if plan.engine == UNCLIPPED else ENGINES[plan.engine]
    ledger.record(train(state, rows, plan, key=key, engine=engine, after_epoch=after_epoch, stopped=stopped))
    predictions = predicted_classes(head.classifier, test)
    measured = None if validation is None else load_rows(validation, "train", head.normalizer, device=device)
    accuracy = None
    if measured is not None:
        accuracy, entries = validation_accuracy(head.classifier, measured, plan, key)
        for entry in entries:
            ledger.record(entry)
    average = state.average.average
    if plan.precondition and isinstance(head.classifier, nn.Linear):
        normalizer, precondition = head.normalizer.children()
        assert isinstance(precondition, Precondition)
        average = folded(average, precondition)
        head.classifier.load_state_dict(folded(head.classifier.state_dict(), precondition))
        head = Head(normalizer, head.classifier)
    return FitResult(
        head=head,
        average=average,
        test_accuracy=metrics[-1]["test_accuracy"],
        test_accuracy_ema=metrics[-1]["test_accuracy_ema"],
        certificate=certify(
            features,
            plan,
            ledger,
            key=key,
            published_data=published_data,
            augmented=augmented_images is not None,
            not_private=[
                *(["train_accuracy_not_private", "train_loss_not_private"] if train_metrics else []),
                *(
                    ["validation_accuracy_not_private"]
                    if validation is not None and plan.validation_noise_multiplier is None
                    else []
                ),
            ],
            num_validation=None if measured is None else len(measured.y),
            assumptions=[*assumptions, *_assumed(plan, statistics)],
        ),
        metrics=metrics,
        test_predictions=predictions,
        seconds=time.monotonic() - begin,
        validation_accuracy=accuracy,
    )


def _restored(features: Features, plan: TrainingPlan, state: dict[str, Any]) -> nn.Module:
    """The normaliser whose state dict was saved, with its preconditioner."""
    if not plan.precondition:
        return restore_normalizer(features, plan, state)
    first, second = ({name[2:]: value for name, value in state.items() if name[0] == part} for part in "01")
    return nn.Sequential(restore_normalizer(features, plan, first), Precondition(**second))


def _check_belonging(
    features: Features,
    plan: TrainingPlan,
    extractor: Extractor,
    augmented_images: np.ndarray | None,
    validation: Features | None,
) -> None:
    if plan.num_examples != features.num_rows("train"):
        raise UserError(
            f"num_examples={plan.num_examples}: the features have {features.num_rows('train')} training rows, "
            "make the plan for those"
        )
    if plan.validation_noise_multiplier is not None and validation is None:
        raise UserError(
            f"validation_noise_multiplier={plan.validation_noise_multiplier}: there are no examples to validate on; give validation"
        )
    if extractor.fingerprint != features.extractor_fingerprint:
        raise UserError(f"extractor: {extractor.name} with this configuration did not make {features.path}")
    if plan.augmentation_multiplicity > 1 and augmented_images is None:
        raise UserError(
            f"augmentation_multiplicity={plan.augmentation_multiplicity}: copies would all be the same; give augmented_images"
        )
    if augmented_images is not None and len(augmented_images) != plan.num_examples:
        raise UserError(f"augmented_images: {len(augmented_images)} images for {plan.num_examples} training rows")


def context(
    features: Features,
    plan: TrainingPlan,
    *,
    augmented: bool,
    physical_batch_size: int,
    device: torch.device | str,
    statistics: PublicStatistics | None = None,
    network: Network | None = None,
) -> str:
    """Everything that decides a run's numbers beside its key, rounding included."""
    versions = {name: version(name) for name in ("scatterdp", "torch", "numpy", "scipy")}
    data = (features.dataset_fingerprint, features.extractor_fingerprint, features.dtype)
    given = () if statistics is None else (statistics.digest(),)
    given += () if network is None else (network.description,)
    return repr((data, plan, augmented, physical_batch_size, str(device), versions, *given))


def _assumed(plan: TrainingPlan, statistics: PublicStatistics | None) -> list[str]:
    """What a plan takes on somebody's word."""
    if plan.input_norm == "given" and statistics is not None:
        return [
            f"The normalisation statistics ({statistics.source}) were given and are claimed to be public. If they were computed from "
            "private data, what that cost is not covered."
        ]
    if plan.input_norm == "BN" and plan.feature_clip_norm is not None:
        return [
            f"feature_clip_norm={plan.feature_clip_norm:g} was given as a public number. If it was chosen by looking at private features, "
            "that is not covered."
        ]
    return []


def _has_stalled(accuracies: list[float]) -> bool:
    """Whether the best of these is more than five epochs old."""
    return bool(accuracies) and len(accuracies) - 1 - int(np.argmax(accuracies)) >= _PATIENCE


def _epsilon_so_far(plan: TrainingPlan, step: int, total: float | None) -> float | None:
    """ε of the first ``step`` steps by coarse buckets: an upper bound, and never above the run's total."""
    if total is None or step == plan.steps:
        return total
    return min(plan.epsilon(step, discretization=1e-3), total)
