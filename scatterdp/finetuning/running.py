"""From a config to a run folder: images, network and plan here; training and record where every command has them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from scatterdp.config import DEFAULT_TARGET_EPSILON
from scatterdp.datasets.streamed import StreamedDataset, open_streamed
from scatterdp.errors import ConfigError
from scatterdp.experiment import announce_budget, make_log_folder, opened, say, train_and_record, warn_of_delta
from scatterdp.extractors.pixels import Pixels, PixelsConfig
from scatterdp.finetuning.config import DEFAULT_CLIP_NORM, FinetuneConfig
from scatterdp.finetuning.network import make_network
from scatterdp.records import RunFolder
from scatterdp.training.device import resolve_device
from scatterdp.training.plan import UNCLIPPED, TrainingPlan
from scatterdp.training.streamed_images import ImageFeatures, ImageRows
from scatterdp.writing import make_folder

EVAL_BATCH = 250


def run(config: FinetuneConfig) -> RunFolder:
    """Run one configuration, or continue the run that it names; prints progress and result.

    Returns:
        The finished run's folder.

    Raises:
        UserError: see the message.
    """
    folder, config = opened(config)
    assert config.dataset is not None
    device = resolve_device(config.device)
    dataset = _evaluated_in_part(open_streamed(config.dataset, image_size=config.image_size), config.max_eval_batches)
    shape = (3, config.image_size, config.image_size)
    plan = make_plan(config, len(dataset.train))
    network, assumptions = make_network(config, shape, len(dataset.class_names))
    make_log_folder(config.logdir)
    made = network.make(0)
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    say(
        f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images ({dataset.kind}) of 3×{shape[1]}×{shape[2]}, "
        f"{len(dataset.class_names)} classes; {config.model}: {trained} of {sum(p.numel() for p in made.parameters())} weights are trained"
    )
    _announce(config, plan)
    held = [images.hold() for images in (dataset.train, dataset.test)]
    if not all(held):
        say("images: decoded at every step, too many to keep in memory")
    extractor = Pixels(PixelsConfig(), shape).to(device)
    make_folder(config.features_dir, argument="features_dir")
    features = ImageFeatures(dataset, extractor, config.features_dir)

    def rows_of(split, key) -> ImageRows:
        return ImageRows(
            features.images(split),
            torch.from_numpy(features.labels(split)).to(device),
            extractor,
            config.train_device_batch_size if split == "train" else EVAL_BATCH,
            key if config.augment and split == "train" else None,
        )

    return train_and_record(
        config,
        features,
        plan,
        folder=folder,
        extractor=extractor,
        device=device,
        assumptions=assumptions,
        network=network,
        rows_of=rows_of,
    )


def make_plan(config: FinetuneConfig, num_examples: int) -> TrainingPlan:
    """The plan of a run on N images, its noise multiplier known.

    Raises:
        ConfigError: flags that do not fit N or each other.
        BudgetError: no noise meets the target.
    """
    batch = config.batch_size
    if batch > num_examples:
        raise ConfigError(
            f"train_device_batch_size={config.train_device_batch_size} times grad_acc_steps={config.grad_acc_steps} is {batch}, expected at most "
            f"{num_examples}, the number of training images"
        )
    steps_per_epoch = num_examples // batch
    warmup = round(config.lr_warmup_epochs * steps_per_epoch)
    if warmup >= steps_per_epoch * config.num_train_epochs:
        raise ConfigError(
            f"lr_warmup_epochs={config.lr_warmup_epochs:g}: expected less than num_train_epochs={config.num_train_epochs}; give --lr_warmup_epochs=0 for none"
        )
    plan = TrainingPlan(
        num_examples=num_examples,
        batch_size=batch,
        epochs=config.num_train_epochs,
        lr=config.base_learning_rate * batch / 256,
        optimizer=config.optim,
        nesterov=config.optim == "SGD",
        max_grad_norm=config.dp_clip_norm or DEFAULT_CLIP_NORM,
        noise_multiplier=config.sigma,
        sampling="shuffle" if config.disable_dp else "poisson",
        input_norm="none",
        delta=config.delta,
        accountant=config.accountant,
        head=config.model,
        engine=UNCLIPPED if config.disable_dp else "mixed_ghost",
        schedule="cosine" if config.lr_schedule == "cos" else "constant",
        warmup_steps=warmup,
        weight_decay=config.weight_decay,
    )
    if plan.noise_multiplier is None:
        plan = plan.calibrated(target_epsilon=config.target_epsilon or DEFAULT_TARGET_EPSILON)
    return plan


def _evaluated_in_part(dataset: StreamedDataset, batches: int | None) -> StreamedDataset:
    """With fewer test images; files are sorted by class, so the first ones would be of one class."""
    if batches is None or batches * EVAL_BATCH >= len(dataset.test):
        return dataset
    chosen = np.random.default_rng(0).permutation(len(dataset.test))[: batches * EVAL_BATCH]
    return dataclasses.replace(dataset, test=dataset.test.subset(np.sort(chosen)))


def _announce(config: FinetuneConfig, plan: TrainingPlan) -> None:
    common = f"plan: {plan.steps} steps of {plan.batch_size} images, in pieces of {config.train_device_batch_size}, lr {plan.lr:g}"
    if config.disable_dp:
        say(f"{common}; disable_dp: NOT PRIVATE")
        return
    warn_of_delta(plan)
    if config.dp_sigma is not None:
        how = f"dp_sigma {config.dp_sigma:g} × √{config.grad_acc_steps}"
    else:
        how = "given" if config.noise_multiplier is not None else "solved"
    say(
        f"{common}; sample rate {plan.selection().sample_rate:.4g}, noise multiplier {plan.sigma:g} ({how}{'' if plan.sigma else ', NOT PRIVATE'}), clip norm {plan.max_grad_norm:g}"
    )
    announce_budget(plan)
