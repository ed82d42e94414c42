"""The published experiments: data → features → statistics → private training → record. One way for every head.

The commands :mod:`scatterdp.baselines` and :mod:`scatterdp.cnns` say what; this does it. A command that brings features of its own starts at
:func:`train_and_record`.
"""

from __future__ import annotations

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch

from scatterdp.cache import SPLITS, Features, extract_features
from scatterdp.config import BaselinesConfig, RunConfig, TinyImagesConfig, TrainingConfig
from scatterdp.datasets import Dataset
from scatterdp.datasets.joined import with_more_images
from scatterdp.datasets.together import load_together
from scatterdp.errors import ConfigError, ProcessLostError
from scatterdp.exits import check_one_process, exit_code, launcher, parsed
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Extractor
from scatterdp.heads import make_classifier
from scatterdp.privacy.accounting import ACCOUNTANTS, delta_warning, epsilon_of
from scatterdp.privacy.certificate import rounded_up
from scatterdp.privacy.randomness import RandomKey
from scatterdp.ranks import is_first, ranks_of_environment
from scatterdp.recipes import RECIPES, extractor_of
from scatterdp.records import RunFolder, new_run_dir, peak_memory_bytes
from scatterdp.report.plots import plot_accuracy_and_epsilon
from scatterdp.sizes import bytes_of, in_words
from scatterdp.tables.labelled_images import open_labelled_images
from scatterdp.training.checkpoint import Checkpoint
from scatterdp.training.device import resolve_device
from scatterdp.training.distributed import Processes, processes_of_environment
from scatterdp.training.fit import fit
from scatterdp.training.logistic_regression import fit_logistic_regression
from scatterdp.training.normalization import check_normalizer, with_fitting_groups
from scatterdp.training.plan import TrainingPlan, plan_from_config
from scatterdp.training.preconditioning import check_directions
from scatterdp.training.result import FitResult
from scatterdp.training.rows import DEFAULT_PHYSICAL_BATCH
from scatterdp.training.streaming import default_budget, matrix_bytes
from scatterdp.training.synthetic_views import SyntheticFeatures
from scatterdp.training.validation import TrainingSubset, held_out_rows
from scatterdp.writing import make_folder, write_whole


class RunSettings(Protocol):
    """What training and its record need to know of a command's config."""

    @property
    def optim(self) -> str: ...

    @property
    def mini_batch_size(self) -> int | None: ...

    @property
    def memory_budget(self) -> str | None: ...

    @property
    def seed(self) -> int | None: ...

    @property
    def run_dir(self) -> Path | None: ...

    @property
    def logdir(self) -> Path | None: ...

    @property
    def train_metrics(self) -> bool: ...

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def module_name(cls) -> str: ...


_Config = TypeVar("_Config", bound=RunConfig)


def run(config: BaselinesConfig, *, wait_for_features: float = 0.0) -> RunFolder:
    """Run one configuration, or continue the run that it names; prints progress and result.

    Args:
        config: of the command.
        wait_for_features: seconds to wait for another process that is extracting the same features.

    Returns:
        The finished run's folder.

    Raises:
        UserError: see the message.
    """
    folder, config = opened(config)
    device, ranks = resolve_device(config.device), ranks_of_environment()
    if isinstance(config, TinyImagesConfig):
        _check_file(config)
    dataset = load_together(config.dataset, config.data_dir, ranks, on_event=say)
    own = dataset
    if isinstance(config, TinyImagesConfig):
        dataset = _with_tiny_images(own, config)
    held_out = held_out_rows(dataset, config.validation) if config.validation else None
    plan = plan_on(config, dataset, held_out, own=own)
    trained = np.arange(len(dataset.x_train)) if held_out is None else np.flatnonzero(~held_out)
    extractor = make_extractor(features_of(config, own), dataset.image_shape).to(device)
    make_classifier(plan.head, extractor.output_shape, dataset.num_classes)  # says so before minutes of extraction
    if config.num_groups is None:
        plan = with_fitting_groups(plan, extractor)
    check_normalizer(plan, extractor)
    check_directions(plan.precondition, extractor, of_channels=plan.head != "linear")
    make_log_folder(config.logdir)
    shape = "×".join(map(str, dataset.image_shape))
    say(
        f"{dataset.name}: {len(dataset.x_train)} training and {len(dataset.x_test)} test images of {shape}, "
        f"{dataset.num_classes} classes; features {'×'.join(map(str, extractor.output_shape))}"
    )
    if held_out is not None:
        say(
            f"validation: {len(held_out) - len(trained)} of the training images are held out, {len(trained)} are trained on"
        )
    announce(config, plan)

    begin = time.monotonic()
    how = {
        "features_dir": config.features_dir,
        "dtype": config.feature_dtype,
        "progress": ranks.rank == 0,
        "lock_timeout": wait_for_features,
    }
    with (
        extract_features(dataset, extractor, ranks=ranks, **how) as features,
        SyntheticFeatures(extractor).cached(**how)
        if ranks.rank == 0 and _starts_from_synthetic(config, plan, folder)
        else nullcontext() as synthetic,
    ):
        seconds_extract = time.monotonic() - begin
        say(f"features: cached in {config.features_dir}")
        return train_and_record(
            config,
            features if held_out is None else TrainingSubset(features, trained),
            plan,
            folder=folder,
            extractor=extractor,
            device=device,
            seconds_extract=seconds_extract,
            published_data=dataset.public,
            augmented_images=(dataset.x_train if held_out is None else dataset.x_train[trained])
            if config.augment
            else None,
            synthetic=synthetic,
            assumptions=_assumed(config, own),
            **({} if held_out is None else {"validation": TrainingSubset(features, np.flatnonzero(held_out))}),
        )


def _starts_from_synthetic(config: BaselinesConfig, plan: TrainingPlan, folder: RunFolder | None) -> bool:
    """Whether a run needs features of synthetic images: not where its checkpoint has what came of them."""
    begun = folder is not None and folder.has_begun
    return config.optim != "LR" and not begun and (plan.precondition > 0 or plan.head == "patch_cnn")


def _assumed(config: BaselinesConfig, dataset: Dataset) -> list[str]:
    """What a run on a data set, with or without further images, takes for granted."""
    of_images = [_OF_TINY_IMAGES] if isinstance(config, TinyImagesConfig) else []
    return of_images + ([_OF_RECIPE] if _recipe_name(dataset) in RECIPES else [])


_OF_RECIPE = (
    "Features, their defaults and the recipe's settings were chosen by the test accuracy of models that were trained on this very data set; that "
    "choice is not covered."
)
_OF_TINY_IMAGES = (
    "All training images are private alike, the data set's own and those added to it. Which images were added, and their labels, are taken as "
    "given, each a fact about its own image: labels or a choice made by a model that was trained on other images of the training set (the "
    "published pseudo-labels: on CIFAR-10) tell about those, and that is not covered."
)


def _check_file(config: TinyImagesConfig) -> None:
    """Raise ConfigError where the file of further images is not named or not there, before any work."""
    if config.tiny_images is None:
        raise ConfigError("tiny_images: not given; name the file with the further images, --tiny_images=FILE")
    if not config.tiny_images.is_file():
        what = "is a folder" if config.tiny_images.is_dir() else "no such file"
        raise ConfigError(
            f"tiny_images={config.tiny_images}: {what}; give the published pickle, or an .npz or .h5 with data and "
            "extrapolated_targets"
        )


def _with_tiny_images(dataset: Dataset, config: TinyImagesConfig) -> Dataset:
    """The data set with as many further images as the config says.

    Raises:
        ConfigError: a data_size that cannot be had.
        DatasetError: a file that does not fit.
    """
    x, y = open_labelled_images(
        "tiny_images", str(config.tiny_images), image_shape=dataset.image_shape, num_classes=dataset.num_classes
    )
    own = len(dataset.x_train)
    wanted = own + len(x) if config.data_size is None else config.data_size
    if not own < wanted <= own + len(x):
        raise ConfigError(
            f"data_size={wanted}: expected {own + 1} to {own + len(x)}; {dataset.name} has {own} training images and "
            f"{config.tiny_images} {len(x)}"
        )
    return with_more_images(dataset, x, y, count=wanted - own)


def plan_on(
    config: BaselinesConfig, dataset: Dataset, held_out: np.ndarray | None, *, own: Dataset | None = None
) -> TrainingPlan:
    """What a config comes to on a data set, its noise multiplier known; of the data only public numbers count.

    Args:
        config: of the command.
        dataset: its data set.
        held_out: ``(N,)`` bool, the training examples that are not trained on; None: all are.
        own: the data set without images that were added to it: its name finds the recipe, its size is an epoch. None: none were.

    Raises:
        UserError: the config does not fit the data set, or the budget cannot be met.
    """
    num_examples = len(dataset.x_train) if held_out is None else int((~held_out).sum())
    own = own or dataset
    epoch_examples = None if own is dataset else min(len(own.x_train), num_examples)
    return plan_from_config(
        config, dataset_name=_recipe_name(own), num_examples=num_examples, epoch_examples=epoch_examples
    )


def features_of(config: BaselinesConfig, dataset: Dataset) -> str:
    """The specification of the features that a config trains on."""
    return extractor_of(config, _recipe_name(dataset), len(dataset.x_train))


def _recipe_name(dataset: Dataset) -> str:
    return dataset.name if dataset.public else ""  # a folder may be called cifar10 too


def opened(config: _Config) -> tuple[RunFolder | None, _Config]:
    """What a config says of its run folder, checked before any work: the folder to go on with and the config in it, or neither.

    Raises:
        UserError: the folder cannot be resumed, a new one cannot be made there, or several processes were started for what one does.
    """
    ranks = ranks_of_environment()
    folder, config = ranks.share(_opened(config) if ranks.rank == 0 else None)
    if getattr(config, "optim", None) == "LR":
        check_one_process("optim=LR")
    return folder, config


def _opened(config: _Config) -> tuple[RunFolder | None, _Config]:
    if config.resume is None:
        if config.run_dir is not None:
            RunFolder.check_new(config.run_dir)
        return None, config
    folder, stored = _reopen(config, config.resume)
    if _needs_checkpoint(cast(RunSettings, stored), folder):
        Checkpoint.load(folder.checkpoint)  # says at once when it is damaged
    return folder, stored


def make_log_folder(logdir: Path | None) -> None:
    """Make the folder for TensorBoard events, if one is wanted.

    Raises:
        ConfigError: it cannot be written.
    """
    if logdir is not None and is_first():
        make_folder(logdir, argument="logdir")


def train_and_record(
    config: RunSettings,
    features: Features,
    plan: TrainingPlan,
    *,
    folder: RunFolder | None,
    extractor: Extractor,
    device: torch.device,
    seconds_extract: float = 0.0,
    published_data: bool = False,
    **further: Any,
) -> RunFolder:
    """Train on features that are there, and leave the record; prints progress and result.

    Args:
        config: of the command.
        features: of the train and test split.
        plan: calibrated.
        folder: the run to go on with, or None: a new one, where the config says.
        extractor: the one that made the features.
        device: where to train.
        seconds_extract: that the features took, for the record.
        published_data: see :func:`scatterdp.training.fit.fit`, as for
        further: ``augmented_images``, ``statistics``, ``synthetic``, ``assumptions``, ``validation``.

    Returns:
        The finished run's folder.

    Raises:
        UserError: see the message.
    """
    processes = processes_of_environment(device)
    plan = processes.share(plan)
    resumed = folder is not None
    if folder is None:
        made = processes.rank == 0
        folder = processes.share(
            RunFolder.create(config.run_dir or new_run_dir(features.dataset_name), config) if made else None
        )
    assert folder is not None
    folder.again = again = f"go on with {launcher()} {config.module_name()} --resume={folder.path}"
    with folder.locked() if processes.rank == 0 else nullcontext():
        checkpoint = None
        if processes.rank == 0:
            checkpoint = _taken_up(folder, processes) if resumed and _needs_checkpoint(config, folder) else None
            folder.write_metrics(checkpoint.metrics if checkpoint else [])
        try:
            result = _fit(
                config, features, plan, extractor, published_data, folder, checkpoint, device, processes, further
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {again}") from None
        except ProcessLostError as error:
            raise ProcessLostError(f"{error}: {again}") from error
        if processes.rank == 0:
            folder.write_test_predictions(result.test_predictions, features.labels("test"), by_example=published_data)
            _record(folder, plan, result, seconds_extract)
    processes.wait()  # for the record
    _report(plan, result)
    say(f"run folder: {folder.path}")
    return folder


def _needs_checkpoint(config: RunSettings, folder: RunFolder) -> bool:
    """Whether a run can go on from its checkpoint only; logistic regression has none, and no noise to draw again: it begins anew."""
    return config.optim != "LR" and folder.has_begun


def _taken_up(folder: RunFolder, processes: Processes) -> Checkpoint:
    """The checkpoint to go on from. What has been shown beyond it is noted in it, before the metrics forget it.

    Raises:
        UserError: it is damaged, or other processes cannot go on with it.
    """
    checkpoint = Checkpoint.load(folder.checkpoint)
    if (shown := folder.count_metrics()) > checkpoint.released:
        checkpoint = dataclasses.replace(checkpoint, released=shown)
        _save(checkpoint, folder)
    checkpoint.history_with(processes.size)
    return checkpoint


def _save(checkpoint: Checkpoint, folder: RunFolder) -> None:
    with folder.writing():
        checkpoint.save(folder.checkpoint)


def _fit(
    config: RunSettings,
    features: Features,
    plan: TrainingPlan,
    extractor: Extractor,
    published_data: bool,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    device: torch.device,
    processes: Processes,
    further: dict[str, Any],
) -> FitResult:
    with _tensorboard(config.logdir if processes.rank == 0 else None) as log:

        def on_metrics(row: dict[str, Any]) -> None:
            folder.append_metrics(row)
            log(row)
            say(_metrics_line(row))

        key = RandomKey.make(config.seed)
        if config.optim == "LR":
            return fit_logistic_regression(
                features, plan, extractor=extractor, key=key, published_data=published_data, on_metrics=on_metrics
            )
        return fit(
            features,
            plan,
            extractor=extractor,
            key=key,
            device=device,
            memory_budget=None if "rows_of" in further else _memory_budget(config, features, device, processes.size),
            physical_batch_size=config.mini_batch_size or DEFAULT_PHYSICAL_BATCH,
            published_data=published_data,
            train_metrics=config.train_metrics,
            resume=checkpoint,
            on_metrics=on_metrics,
            on_checkpoint=lambda checkpoint: _save(checkpoint, folder),
            processes=processes,
            **further,
        )


def _memory_budget(config: RunSettings, features: Features, device: torch.device, processes: int) -> int | None:
    """Bytes that rows may take; says so where they are more."""
    if config.memory_budget is not None:
        budget = bytes_of(config.memory_budget, argument="memory_budget")
    else:
        budget = default_budget(device, processes)
    rows = sum(matrix_bytes(features, split) for split in SPLITS) // processes
    if budget is not None and rows > budget:
        say(f"memory: {in_words(rows)} of features, a budget of {in_words(budget)}: batches are read from the disk")
    return budget


def _record(folder: RunFolder, plan: TrainingPlan, result: FitResult, seconds_extract: float) -> None:
    certificate = result.certificate
    facts = {"plan": dataclasses.asdict(plan), "classes": certificate["data"]["classes"], **certificate["features"]}
    weights = result.head.state_dict()
    average = weights | {f"classifier.{name}": value for name, value in result.average.items()}
    folder.write_model("model.safetensors", weights, facts)
    folder.write_model("model_ema.safetensors", average, facts)
    folder.write_json("certificate.json", certificate)
    _draw(folder, plan, result)
    folder.write_json(
        "summary.json",
        {
            "test_accuracy": result.test_accuracy,
            "test_accuracy_ema": result.test_accuracy_ema,
            **_validated(plan, result),
            "plan": dataclasses.asdict(plan),
            "private": certificate["private"],
            "not_private": certificate["not_private"],
            "epsilon": certificate["epsilon"],
            "delta": plan.delta,
            "accountant": plan.accountant,
            "epsilon_by_accountant": certificate["epsilon_by_accountant"],
            "noise_multiplier": plan.noise_multiplier,
            "steps": plan.steps,
            "sample_rate": certificate["sampler"].get("sample_rate"),
            "seconds_extract": round(seconds_extract, 3),
            "seconds_train": round(result.seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
        },
    )
    folder.finish()


def _draw(folder: RunFolder, plan: TrainingPlan, result: FitResult) -> None:
    """Draw the run's picture; where it cannot be, say so: the run is none the less for it."""
    data, features = result.certificate["data"], result.certificate["features"]
    title = f"{data['name']}: {plan.head.replace('_', ' ')} head on {features['extractor']} features"
    picture = io.BytesIO()
    plot_accuracy_and_epsilon(result.metrics, picture, title=title, delta=plan.delta)
    try:
        write_whole(folder.path / "accuracy_epsilon.png", picture.getvalue())
    except OSError as error:
        print(
            f"warning: accuracy_epsilon.png cannot be written ({error.strerror}); the run goes without its picture",
            file=sys.stderr,
        )


def _validated(plan: TrainingPlan, result: FitResult) -> dict[str, float]:
    """The accuracy on held-out private examples, under a name that says whether the guarantee covers it."""
    if result.validation_accuracy is None:
        return {}
    exact = plan.validation_noise_multiplier is None
    return {"validation_accuracy_not_private" if exact else "validation_accuracy": result.validation_accuracy}


def _report(plan: TrainingPlan, result: FitResult) -> None:
    certificate = result.certificate
    if not certificate["private"]:
        what = "statistics without noise, bn_noise_multiplier=0" if plan.noise_multiplier else "no noise"
        say(f"NOT PRIVATE ({what}): test accuracy {result.test_accuracy:.4f}")
        return
    say(f"test accuracy {result.test_accuracy:.4f} (averaged weights {result.test_accuracy_ema:.4f})")
    for name, accuracy in _validated(plan, result).items():
        say(f"{name.replace('_', ' ').replace('not private', '(NOT PRIVATE)')} {accuracy:.4f}")
    by_accountant = ", ".join(
        f"{name} {rounded_up(value)}" for name, value in certificate["epsilon_by_accountant"].items()
    )
    say(f"ε = {rounded_up(certificate['epsilon'])} at δ = {plan.delta:g} by {plan.accountant} ({by_accountant})")


def _reopen(config: _Config, path: Path) -> tuple[RunFolder, _Config]:
    for field in dataclasses.fields(cast(Any, config)):
        value = getattr(config, field.name)
        if field.name != "resume" and value != field.default:
            raise ConfigError(
                f"{field.name}={value} beside resume={path}: a run goes on with its own config, leave {field.name} out"
            )
    folder, stored = RunFolder.reopen(path, type(config))
    say(f"resuming {folder.path}")
    return folder, stored


def announce(config: TrainingConfig, plan: TrainingPlan) -> None:
    """Print the plan and what it costs; a warning where δ is too large."""
    if not is_first():
        return
    if config.optim == "LR":
        say("optim=LR: logistic regression, NOT PRIVATE")
        return
    warn_of_delta(plan)
    how = "given" if config.noise_multiplier is not None else "solved"
    groups = f" of {plan.num_groups} groups" if plan.input_norm == "GroupNorm" else ""
    say(
        f"plan: {plan.steps} steps, sample rate {plan.selection().sample_rate:.4g}, noise multiplier {plan.sigma:g} ({how}), "
        f"max_grad_norm {plan.max_grad_norm:g}, lr {plan.lr:g}, input_norm {plan.input_norm}{groups}"
    )
    announce_budget(plan)


def warn_of_delta(plan: TrainingPlan) -> None:
    """Say on standard error that δ is too large, where it is."""
    if is_first() and (warning := delta_warning(plan.delta, plan.num_examples)):
        print(f"warning: {warning}; give a smaller --target_delta", file=sys.stderr)


def announce_budget(plan: TrainingPlan) -> None:
    """Print what a plan costs, by every accountant."""
    epsilons = {name: epsilon_of(plan.event(), delta=plan.delta, accountant=name) for name in ACCOUNTANTS}
    say(
        f"budget: at δ = {plan.delta:g}, ε = "
        + ", ".join(f"{rounded_up(value)} ({name})" for name, value in epsilons.items())
    )


def _metrics_line(row: dict[str, Any]) -> str:
    if "C" in row:
        return (
            f"NOT PRIVATE: C = {row['C']:g}, test accuracy {row['test_accuracy']:.4f}, "
            f"train accuracy {row['train_accuracy_not_private']:.4f}"
        )
    epsilon = "∞" if row["epsilon"] is None else rounded_up(row["epsilon"])
    line = (
        f"epoch {row['epoch']}: test accuracy {row['test_accuracy']:.4f}, "
        f"averaged weights {row['test_accuracy_ema']:.4f}, ε {epsilon}, {row['seconds']:.0f} s"
    )
    if "train_loss_not_private" in row:
        line += (
            f"; NOT PRIVATE: train accuracy {row['train_accuracy_not_private']:.4f}, "
            f"loss {row['train_loss_not_private']:.4f}"
        )
    return line


@contextmanager
def _tensorboard(logdir: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a metrics row as TensorBoard scalars; does nothing without a folder."""
    if logdir is None:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter  # seconds to import

    with SummaryWriter(str(logdir)) as writer:

        def log(row: dict[str, Any]) -> None:
            for name in row.keys() - {"step", "epoch", "C"}:
                if row[name] is not None:
                    writer.add_scalar(name, row[name], row.get("step", 0))

        yield log


def say(line: str) -> None:
    """Print a line at once; of several processes the first does."""
    if is_first():
        print(line, flush=True)


def command_line(config_class: type[BaselinesConfig], description: str, arguments: list[str] | None) -> int:
    """Parse a command line into a config, run it, return the exit code."""

    def command() -> None:
        program = f"python -m {config_class.module_name()}"
        run(parsed(config_class, prog=program, args=arguments, description=description))

    return exit_code(command)
