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
from torch import Tensor, nn

from scatterdp.cache import Features, Split
from scatterdp.engines import ENGINES, check_by_example
from scatterdp.engines.apart import ROWS
from scatterdp.errors import UserError
from scatterdp.extractors.base import Extractor
from scatterdp.heads import Head, PatchCNN, Precondition, make_classifier
from scatterdp.heads.weights import tensors_digest
from scatterdp.privacy.commitment import commitment_key
from scatterdp.privacy.ledger import Ledger, LedgerEntry, finite_or_none
from scatterdp.privacy.randomness import RandomKey
from scatterdp.privacy.sampling import DRAWS
from scatterdp.training.checkpoint import Checkpoint
from scatterdp.training.device import processor_of
from scatterdp.training.distributed import (
    Processes,
    RowsOfProcess,
    check_same,
    only_process,
    part_of,
)
from scatterdp.training.evaluation import evaluate, predicted_classes
from scatterdp.training.loading import RowLoader
from scatterdp.training.loop import TrainingState, check_same_weights, train
from scatterdp.training.normalization import PublicStatistics, release_normalizer, restore_normalizer
from scatterdp.training.plan import UNCLIPPED, TrainingPlan
from scatterdp.training.preconditioning import folded, synthetic_precondition
from scatterdp.training.result import FitResult, certify
from scatterdp.training.rows import DEFAULT_PHYSICAL_BATCH, AugmentedRows, LabelledRows, Rows
from scatterdp.training.synthetic_start import start_from_synthetic
from scatterdp.training.synthetic_views import SyntheticFeatures
from scatterdp.training.unclipped import unclipped_sum
from scatterdp.training.validation import TrainingSubset, validation_accuracy

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
    memory_budget: int | None = None,
    validation: Features | None = None,
    synthetic: SyntheticFeatures | None = None,
    network: Network | None = None,
    rows_of: RowsOf | None = None,
    resume: Checkpoint | None = None,
    on_metrics: Callable[[dict[str, Any]], None] = lambda row: None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    processes: Processes | None = None,
) -> FitResult:
    """Train a head with differential privacy.

    Several processes (:mod:`scatterdp.training.distributed`) call this together, each with the same arguments; ``key`` and ``resume`` are
    those of rank 0, which alone calls ``on_metrics`` and ``on_checkpoint``. All get the same result.

    Args:
        features: cached features of the train and test split.
        plan: a calibrated plan for ``features.num_rows("train")`` examples.
        extractor: the one that made ``features``; it pushes synthetic images through for the bounds of ``BN``.
        key: random key; a fresh one from the operating system by default. It is bound to the run's :func:`context`, so that
            runs from one seed share no noise when they differ in anything.
        device: where rows and weights live.
        physical_batch_size: rows in work at once; no privacy meaning, it changes how sums are rounded.
        augmented_images: ``(N, H, W[, 3])`` uint8 training images to flip, crop and extract at every step, in place of
            the cached training features.
        published_data: the data set is public: the certificate may name its digest.
        train_metrics: also compute loss and accuracy on the private data; outside the guarantee.
        statistics: means and variances that the user says are public, for a plan with ``input_norm="given"``.
        assumptions: further sentences for the certificate: what the guarantee takes for granted about ``features``.
        memory_budget: most bytes that rows of both splits may take; larger ones are read from the disk for every batch, with the same
            result. None: half of what is free.
        validation: features whose training split are private examples that ``features`` lack (:mod:`scatterdp.training.validation`): the accuracy on
            them is computed once, after the last step.
        synthetic: features of synthetic images by the same extractor, for plans and heads that need them; None: computed when needed.
        network: what is trained, in place of the one that ``plan.head`` names.
        rows_of: where the rows come from, for features that are not read into memory: the plan's normaliser is then ``none``, and there is one process.
        resume: continue from here; its key replaces ``key``.
        on_metrics: called with each epoch's row.
        on_checkpoint: called with a checkpoint once the statistics are released and then every few seconds.
        processes: which train together; None: this one alone.

    Raises:
        UserError: plan, extractor or checkpoint do not belong to these features; features that are not finite; processes that were
            given different things, or that ``torchrun`` started and nobody named.
    """
    processes = processes or only_process("fit")
    here = context(
        features,
        plan,
        augmented=None if augmented_images is None else _rounding_of(extractor),
        physical_batch_size=physical_batch_size,
        device=device if processes.size == 1 else torch.device(device).type,  # each has a device of its own
        statistics=statistics,
        validation=validation,
        network=network,
    )
    if rows_of is not None and (plan.input_norm != "none" or processes.size > 1):
        raise UserError(
            f"input_norm={plan.input_norm}, {processes.size} processes: rows that are read while training are not normalised nor shared out; "
            "give none, and one process"
        )
    if not published_data and processes.rank == 0:
        commitment_key(features.path.parent)  # the certificate will need it: better said before the budget is spent
    check_same(processes, here, "the processes have different data, settings or versions; give all of them the same")
    resume = processes.share(resume)
    _check_belonging(features, plan, extractor, augmented_images, validation)
    if synthetic is None:
        synthetic = SyntheticFeatures(extractor)
    if synthetic.extractor.fingerprint != extractor.fingerprint:
        raise UserError(f"synthetic: not the features of {extractor.name} with this configuration")
    if resume is not None and resume.context != here:
        raise UserError(
            "resume: data, settings, device or versions are not those that the run began with; its noise must not be used "
            "for anything else: restore them, or start a new run"
        )
    if torch.device(device).type == "cuda":
        # So that steps that are done again after a kill are more likely the same steps.
        torch.backends.cudnn.deterministic = True
    threads = tuple(processes.gather(torch.get_num_threads()))
    processors = tuple(processes.gather(processor_of(device)))
    if resume is not None:
        resume.check_rounding(threads, processors)
    history = ((0, processes.size),) if resume is None else resume.history_with(processes.size)
    begin = time.monotonic() - (resume.seconds if resume else 0.0)
    if resume is None:
        shared: RandomKey = processes.share(key or RandomKey.from_system())
        key = shared.bound_to(here)
        normalizer, entries = _released(features, plan, synthetic, key, statistics, processes)
        ledger = Ledger(entries)
    else:
        key = resume.key
        normalizer = _restored(features, plan, resume.normalizer)
        ledger = Ledger.from_json(resume.ledger)
    classifier = _first_classifier(features, plan, key, processes, network)
    if isinstance(classifier, PatchCNN) and resume is None:
        if processes.rank == 0:
            start_from_synthetic(classifier, synthetic, normalizer)
        classifier.load_state_dict(processes.share(classifier.state_dict()))
    if network is not None:
        network.prepare(classifier)
    head = Head(normalizer, classifier).to(device).eval()
    state = TrainingState.begin(head.classifier, plan)
    if resume is not None:
        state.load_state_dict(resume.training)

    load = RowLoader(
        head.normalizer,
        device=device,
        physical_batch_size=physical_batch_size,
        budget=memory_budget,
        processes=processes,
    )

    def load_split(split: Split) -> LabelledRows:
        return load(features, split) if rows_of is None else rows_of(split, key)

    test = load_split("test")
    cached_train = load_split("train") if augmented_images is None or train_metrics else None
    rows: Rows
    if augmented_images is None:
        assert cached_train is not None
        rows = cached_train
    else:
        rows = AugmentedRows(
            images=augmented_images,
            y=torch.from_numpy(features.labels("train")).to(device),
            extractor=extractor.to(device),
            normalizer=head.normalizer,
            key=key,
            physical_batch_size=physical_batch_size,
            copies=plan.augmentation_multiplicity,
        )
    if processes.size > 1:
        first, stop = part_of(plan.num_examples, processes.rank, processes.size)
        rows = RowsOfProcess(rows, first, stop, begin=first if augmented_images is None else 0)

    def checkpoint(metrics: list[dict[str, Any]]) -> Checkpoint:
        return Checkpoint(
            key=key,
            context=here,
            normalizer=copy.deepcopy(head.normalizer.state_dict()),
            ledger=ledger.to_json(),
            training=copy.deepcopy(state.state_dict()),
            metrics=list(metrics),
            seconds=time.monotonic() - begin,
            history=history,
            released=max(len(metrics), resume.released if resume else 0),
            threads=threads,
            processors=processors,
        )

    def save(metrics: list[dict[str, Any]]) -> None:
        if on_checkpoint is not None:
            on_checkpoint(checkpoint(metrics))

    epochs = _Epochs(
        plan,
        test=test,
        train=cached_train if train_metrics else None,
        metrics=[] if resume is None else list(resume.metrics),
        begin=begin,
        on_metrics=on_metrics,
        save=save,
        processes=processes,
    )
    epochs.save()
    ledger.record(
        train(
            state,
            rows,
            plan,
            key=key,
            engine=unclipped_sum if plan.engine == UNCLIPPED else ENGINES[plan.engine],
            after_epoch=epochs.after,
            stopped=epochs.stopped(),
            processes=processes,
        )
    )
    predictions = predicted_classes(head.classifier, test, processes=processes)
    accuracy = None
    if validation is not None:
        accuracy, entries = validation_accuracy(
            head.classifier, load(validation, "train"), plan, key, processes=processes
        )
        for entry in entries:
            ledger.record(entry)
    head, average = _without_precondition(head, state.average.average, plan)
    certificate = None
    if processes.rank == 0:
        certificate = certify(
            features,
            plan,
            ledger,
            key=key,
            published_data=published_data,
            augmented=augmented_images is not None,
            not_private=_not_private(plan, train_metrics=train_metrics, validated=validation is not None),
            num_validation=None if validation is None else validation.num_rows("train"),
            assumptions=[*assumptions, *_assumed(plan, statistics)],
            history=history,
        )
    return FitResult(
        head=head,
        average=average,
        test_accuracy=epochs.metrics[-1]["test_accuracy"],
        test_accuracy_ema=epochs.metrics[-1]["test_accuracy_ema"],
        certificate=processes.share(certificate),
        metrics=epochs.metrics,
        test_predictions=predictions,
        seconds=time.monotonic() - begin,
        validation_accuracy=accuracy,
    )


class _Epochs:
    """What happens after an epoch: a row of metrics, and now and then a checkpoint.

    Args:
        plan: of the run.
        test: this process's test rows.
        train: its training rows, where metrics on private data were asked for.
        metrics: of the epochs before.
        begin: when the run began, on the monotonic clock.
        on_metrics: called with each row, by the first process.
        save: called with all rows so far, by the first process.
        processes: which train together.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        *,
        test: LabelledRows,
        train: LabelledRows | None,
        metrics: list[dict[str, Any]],
        begin: float,
        on_metrics: Callable[[dict[str, Any]], None],
        save: Callable[[list[dict[str, Any]]], None],
        processes: Processes,
    ) -> None:
        self.metrics = metrics
        self._plan, self._test, self._train, self._begin = plan, test, train, begin
        self._on_metrics, self._save, self._processes = on_metrics, save, processes
        self._total_epsilon = finite_or_none(plan.epsilon()) if processes.rank == 0 else None
        self._last_saved = -CHECKPOINT_SECONDS

    def after(self, state: TrainingState) -> bool:
        """Record an epoch; true ends the training."""
        plan, processes = self._plan, self._processes
        check_same_weights(processes, state)
        epsilon = _epsilon_so_far(plan, state.step, self._total_epsilon) if processes.rank == 0 else None
        row: dict[str, Any] = {
            "epoch": -(-state.step // plan.steps_per_epoch),
            "step": state.step,
            "epsilon": epsilon,
            "test_accuracy": evaluate(state.model, self._test, processes=processes)[0],
            "test_accuracy_ema": evaluate(state.model, self._test, state.average.average, processes=processes)[0],
            "seconds": round(time.monotonic() - self._begin, 3),
        }
        if self._train is not None:
            accuracy, loss = evaluate(state.model, self._train, processes=processes)
            row |= {"train_accuracy_not_private": accuracy, "train_loss_not_private": loss}
        row = processes.share(row)
        self.metrics.append(row)
        if processes.rank == 0:
            self._on_metrics(row)
        self.save()
        return self.stopped()

    def save(self) -> None:
        """Save a checkpoint unless the last one is fresh."""
        if self._processes.rank > 0 or time.monotonic() - self._last_saved < CHECKPOINT_SECONDS:
            return
        self._save(self.metrics)
        self._last_saved = time.monotonic()

    def stopped(self) -> bool:
        """Whether test accuracy has ended the training early."""
        return self._plan.early_stop and _has_stalled([row["test_accuracy"] for row in self.metrics])


def _released(
    features: Features,
    plan: TrainingPlan,
    synthetic: SyntheticFeatures,
    key: RandomKey,
    statistics: PublicStatistics | None,
    processes: Processes,
) -> tuple[nn.Module, list[LedgerEntry]]:
    """The normaliser with its preconditioner, and what it cost."""
    normalizer, entries = release_normalizer(
        features, plan, extractor=synthetic.extractor, key=key, statistics=statistics, processes=processes
    )
    if plan.precondition and processes.rank == 0:
        scale = synthetic_precondition(
            synthetic,
            normalizer,
            directions=plan.precondition,
            power=plan.precondition_power,
            of_channels=plan.head != "linear",
        )
        normalizer = nn.Sequential(normalizer, scale)
    # What is computed in floating point is computed once: machines may differ in the last bit.
    computed = processes.share(normalizer.state_dict())
    return normalizer if processes.rank == 0 else _restored(features, plan, computed), entries


def _first_classifier(
    features: Features, plan: TrainingPlan, key: RandomKey, processes: Processes, network: Network | None
) -> nn.Module:
    """The head's classifier with its first weights, from the key; its layers are such as the plan's engine can clip."""
    initial = int(key.words("initial weights", counter=0, count=1)[0] >> np.uint64(1))
    if network is None:
        classifier = make_classifier(plan.head, features.output_shape, len(features.class_names), seed=initial)
    else:
        classifier = network.make(initial)
    if plan.engine not in ("linear", UNCLIPPED):
        made_up = torch.randn(ROWS, int(np.prod(features.output_shape)), generator=torch.Generator().manual_seed(0))
        check_by_example(classifier, made_up)
    classifier.load_state_dict(processes.share(classifier.state_dict()))
    return classifier


def _without_precondition(head: Head, average: dict[str, Tensor], plan: TrainingPlan) -> tuple[Head, dict[str, Tensor]]:
    """A linear head and its averaged weights with the preconditioner folded into the weights; other heads as they are."""
    if not plan.precondition or not isinstance(head.classifier, nn.Linear):
        return head, average
    normalizer, precondition = head.normalizer.children()
    assert isinstance(precondition, Precondition)
    head.classifier.load_state_dict(folded(head.classifier.state_dict(), precondition))
    return Head(normalizer, head.classifier), folded(average, precondition)


def _not_private(plan: TrainingPlan, *, train_metrics: bool, validated: bool) -> list[str]:
    """Names of exact numbers about private examples that a run records."""
    names = ["train_accuracy_not_private", "train_loss_not_private"] if train_metrics else []
    if validated and plan.validation_noise_multiplier is None:
        names.append("validation_accuracy_not_private")
    return names


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
    augmented: str | None,
    physical_batch_size: int,
    device: torch.device | str,
    statistics: PublicStatistics | None = None,
    validation: Features | None = None,
    network: Network | None = None,
) -> str:
    """Everything that decides a run's numbers beside its key, but for what rounds its sums in another way (processes, threads, processors): their
    noise is bound to the sums themselves, and a checkpoint minds who goes on from it.

    Args:
        augmented: where features are computed while training, a digest of some, to the bit.
    """
    versions = {name: version(name) for name in ("scatterdp", "torch", "numpy", "scipy", "pillow")}
    data = (features.dataset_fingerprint, features.extractor_fingerprint, features.dtype, features.content_digest())
    given = () if statistics is None else (statistics.digest(),)
    given += () if network is None else (network.description,)
    # Other rows of one data set are other data: folds of one size must not share their noise.
    rows = (
        ()
        if validation is None and not isinstance(features, TrainingSubset)
        else (_rows_of(features), _rows_of(validation))
    )
    return repr((data, plan, augmented, physical_batch_size, str(device), versions, DRAWS, *given, *rows))


def _rounding_of(extractor: Extractor) -> str:
    """A digest of two made-up images' features: with a compiled kernel and without they differ in their last digits."""
    images = torch.rand(2, *extractor.input_shape, generator=torch.Generator().manual_seed(0))
    return tensors_digest({"features": extractor(images)})


def _rows_of(features: Features | None) -> tuple[str, ...]:
    """Which training rows these are."""
    if features is None:
        return ()
    return features.dataset_fingerprint, features.digest() if isinstance(features, TrainingSubset) else "all"


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
