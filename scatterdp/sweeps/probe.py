"""How long a sweep will take, from one short run on made-up images: no private example is looked at.

The probe has the first run's network, batch and noise, on random images of the data's size. It takes a few steps on one full batch, and after each
evaluates as large a part of a test set as a real step's share of an epoch, so the time of a step times the number of steps is that of a run. Other runs are taken to need as
long for each example; the features, which are extracted once, are extrapolated from the images of the probe.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scatterdp.cache import extract_features
from scatterdp.datasets import Dataset
from scatterdp.experiment import features_of
from scatterdp.extractors import make_extractor
from scatterdp.sweeps.plans import PlannedRun
from scatterdp.training.device import resolve_device
from scatterdp.training.fit import fit
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.rows import DEFAULT_PHYSICAL_BATCH

_STEPS = 3  # the first is slower than the others
_MOST_IMAGES = 4096


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What the probe measured.

    Args:
        seconds_per_example: of a training step, for each example of its batch, evaluation included.
        seconds_per_image: of feature extraction.
    """

    seconds_per_example: float
    seconds_per_image: float

    def seconds(self, plans: Sequence[TrainingPlan], num_images: int, workers: int) -> float:
        """Of a whole sweep on so many workers, features included."""
        steps = sum(plan.steps * plan.batch_size for plan in plans)
        longest = max((plan.steps * plan.batch_size for plan in plans), default=0)
        return self.seconds_per_image * num_images + self.seconds_per_example * max(steps / workers, longest)


def probe(run: PlannedRun, dataset: Dataset) -> Pace:
    """Measure the pace of a run on made-up images.

    Args:
        run: with a plan.
        dataset: of which only the sizes and the number of classes are used.
    """
    assert run.plan is not None
    config, plan = run.config, run.plan
    count = min(plan.batch_size, _MOST_IMAGES)
    tests = max(1, round(len(dataset.x_test) / plan.steps_per_epoch * count / plan.batch_size))
    made_up = _made_up(dataset, count, tests)
    device = resolve_device(config.device)
    extractor = make_extractor(features_of(config, dataset), dataset.image_shape).to(device)
    short = dataclasses.replace(
        plan,
        num_examples=count,
        batch_size=count,
        epochs=_STEPS,
        max_steps=None,
        noise_multiplier=plan.noise_multiplier or 1.0,
        validation_noise_multiplier=None,
    )
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        with extract_features(made_up, extractor, features_dir=Path(folder), dtype=config.feature_dtype) as features:
            extraction = time.monotonic() - begin
            fit(
                features,
                short,
                extractor=extractor,
                device=device,
                physical_batch_size=config.mini_batch_size or DEFAULT_PHYSICAL_BATCH,
                augmented_images=made_up.x_train if config.augment else None,
                on_metrics=rows.append,
            )
    times = np.diff([row["seconds"] for row in rows])
    return Pace(seconds_per_example=float(times.min()) / count, seconds_per_image=extraction / (count + tests))


def _made_up(dataset: Dataset, count: int, tests: int) -> Dataset:
    rng = np.random.default_rng(0)
    shape = dataset.x_train.shape[1:]
    return Dataset(
        name="probe",
        x_train=rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        y_train=np.arange(count) % dataset.num_classes,
        x_test=rng.integers(0, 256, (tests, *shape), dtype=np.uint8),
        y_test=np.arange(tests) % dataset.num_classes,
        class_names=dataset.class_names,
    )
