r"""A private linear classifier on features of a pre-trained network.

    python -m transfer.transfer_cifar --feature_path=transfer/features/cifar100_resnext --batch_size=2048 --lr=8 --noise_multiplier=3.32
    python -m transfer.transfer_cifar --feature_path=transfer/features/simclr_r50_2x_sk1 --batch_size=1024 --lr=4 --noise_multiplier=2.40

Published at ε = 2: 79.6 % and 92.4 % on CIFAR-10 (Tramèr & Boneh 2021, section 5.2). How features are normalised:

| features | ``--input_norm`` left out | BN |
|---|---|---|
| a cache of a backbone | ``BN`` | bounds from synthetic images, pushed through the same network |
| ``.npy`` files with ``_mean`` and ``_var`` | those, as **public** statistics: the certificate says on whose word | needs ``--feature_clip_norm`` |
| ``.npy`` files alone | refused: nothing stands in for statistics in silence | needs ``--feature_clip_norm`` |

A release of statistics clips every row to a bound, which must not come from the private rows. For a cache, the network is built again and says what
synthetic images give. For bare files there is no network; a bound C on a row's length is then asked for, not made up: clipping only moves
rows longer than C, so any C is valid, a good one comes from public images through the same network. ``--input_norm=GroupNorm`` needs no
bound and costs nothing: every row is brought to mean 0 and variance 1 by itself.
"""

from __future__ import annotations

import contextlib
import sys

from scatterdp.cache import FeatureCache, Features, ranks_of_environment
from scatterdp.datasets.together import load_together
from scatterdp.errors import ConfigError
from scatterdp.exits import exit_code, parsed
from scatterdp.experiment import announce, make_log_folder, opened, say, train_and_record
from scatterdp.extractors.base import Extractor
from scatterdp.records import RunFolder
from scatterdp.training.device import resolve_device
from scatterdp.training.normalization import check_normalizer
from scatterdp.training.plan import plan_from_recipe
from transfer.config import RECIPE, TransferConfig
from transfer.stored import (
    NpyFeatures,
    StoredExtractor,
    find_cache,
    has_statistics,
    is_npy,
    public_statistics,
    rebuilt_extractor,
)


def run(config: TransferConfig) -> RunFolder:
    """Run one configuration, or continue the run that it names; prints progress and result.

    Returns:
        The finished run's folder.

    Raises:
        UserError: see the message.
    """
    folder, config = opened(config)
    assert config.feature_path is not None
    device, ranks = resolve_device(config.device), ranks_of_environment()
    statistics = None
    with contextlib.ExitStack() as stack:
        if is_npy(config.feature_path):
            _check_files(config)
            dataset = load_together(config.dataset, config.data_dir, ranks, on_event=say)
            features: Features = NpyFeatures(config.feature_path, dataset)
            published = dataset.public
            if config.input_norm is None:
                statistics = public_statistics(config.feature_path)
                statistics.normalizer(features.output_shape[0])  # says so before anything is written
            elif has_statistics(config.feature_path):
                say(
                    f"the statistics beside {config.feature_path} are not used: input_norm={config.input_norm} was given"
                )
        else:
            if config.dataset != "cifar10":
                raise ConfigError(f"dataset={config.dataset}: a feature cache has its own labels, leave it out")
            features, published = stack.enter_context(FeatureCache(find_cache(config.feature_path))), False
        plan = plan_from_recipe(
            config,
            RECIPE,
            num_examples=features.num_rows("train"),
            public_statistics=statistics is not None,
            feature_clip_norm=config.feature_clip_norm,
        )
        extractor: Extractor = StoredExtractor(features)
        check_normalizer(plan, extractor)
        if plan.input_norm == "BN" and config.feature_clip_norm is None and isinstance(features, FeatureCache):
            extractor = rebuilt_extractor(features, backbone=config.backbone, weights=config.weights).to(device)
        make_log_folder(config.logdir)
        say(
            f"{features.dataset_name}: {features.num_rows('train')} training and {features.num_rows('test')} test rows of "
            f"{'×'.join(map(str, features.output_shape))} features by {features.extractor_name}, {len(features.class_names)} classes"
        )
        announce(config, plan)
        if statistics is not None:
            say(f"statistics: {statistics.source}, taken as public on your word")
        return train_and_record(
            config,
            features,
            plan,
            folder=folder,
            extractor=extractor,
            device=device,
            published_data=published,
            statistics=statistics,
            assumptions=[_assumed(features)],
        )


def _check_files(config: TransferConfig) -> None:
    """What only a cache can serve."""
    for name in ("backbone", "weights"):
        if getattr(config, name) is not None:
            raise ConfigError(f"{name}={getattr(config, name)}: .npy files say nothing of a network, leave it out")
    if config.input_norm == "BN" and config.feature_clip_norm is None:
        raise ConfigError(
            "input_norm=BN: the statistics of .npy files need a public bound of a row's L2 norm, for no synthetic image can be pushed through "
            "files; give --feature_clip_norm=C (chosen without looking at these features), or --input_norm=GroupNorm, which needs none"
        )
    if config.input_norm is None and config.feature_clip_norm is not None:
        raise ConfigError(
            f"feature_clip_norm={config.feature_clip_norm}: bounds a release of statistics; give --input_norm=BN too"
        )


def _assumed(features: Features) -> str:
    """What the guarantee takes for granted about the features."""
    config = features.extractor_config
    if "weights_sha256" in config:
        return (
            f"The network behind the features ({config['backbone']}, weights of SHA-256 {config['weights_sha256'][:16]}…) and the data it was "
            "trained on are taken as public: who is in those is not protected by this run."
        )
    if isinstance(features, FeatureCache):
        return "The extractor of the features is a fixed function of one image, according to their file."
    return (
        "The features were given as files. That a row is a function of its image and of public numbers alone is taken on the word of whoever "
        "made them, and so is that the data behind those numbers are public."
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, return the exit code."""

    def command() -> None:
        program = f"python -m {TransferConfig.module_name()}"
        run(parsed(TransferConfig, prog=program, args=arguments, description=__doc__))

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
