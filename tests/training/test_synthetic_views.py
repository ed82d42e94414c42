"""Pairs of views of synthetic images, and their features."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scatterdp import baselines
from scatterdp.cache import FeatureCache, extract_features, extraction, writer_lock
from scatterdp.errors import UserError
from scatterdp.extractors import make_extractor
from scatterdp.extractors.base import Extractor
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training import synthetic_views as module
from scatterdp.training.fit import fit
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.synthetic_views import PAIRS, SyntheticFeatures, images_for, synthetic_views

FLAGS = ["--dataset=digits", "--extractor=patches(patches=32, size=3)", "--input_norm=BN", "--bn_noise_multiplier=20", "--precondition=20",
         "--noise_multiplier=3", "--epochs=2"]  # fmt: skip


class Nudged:
    """An extractor whose features are a little larger than it says."""

    def __init__(self, extractor: Extractor, by: float) -> None:
        self._extractor, self._by = extractor, by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self._extractor(images) * self._by


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_IMAGES", 40)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 10)])
def test_the_two_halves_are_views_of_the_same_images(shape):
    views = synthetic_views(shape)
    assert views.image_shape == shape
    assert len(views.x_train) == 2 * PAIRS * 40
    one, other = (half.astype(float) for half in np.split(views.x_train, 2))
    images = np.tile(views.x_test, (PAIRS, 1, 1) + (1,) * (shape[0] == 3)).astype(float)
    assert np.abs(views.x_test.mean() / 255 - images_for(shape, 40).mean().item()) < 0.01

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.square(a - b).mean())

    assert 0 < distance(one, other) < 0.8 * distance(one, np.roll(other, 7, axis=0))  # the control: strangers
    assert distance(one, images) < 0.8 * distance(one, np.roll(images, 7, axis=0))
    assert distance(one[:40], one[40:]) > 0  # the second pair is another one
    halves = np.split(views.y_train, 2)
    assert np.array_equal(halves[0], halves[1])


def test_they_depend_on_nothing_else():
    first = synthetic_views((3, 8, 8))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert synthetic_views((3, 8, 8)).fingerprint == first.fingerprint
    assert torch.equal(torch.get_rng_state(), state)


def test_cached_features_are_those_that_are_computed(small_extractor: Extractor, tmp_path: Path):
    computed = SyntheticFeatures(small_extractor)
    with SyntheticFeatures(small_extractor).cached(features_dir=tmp_path, dtype="float32") as stored:
        for a, b in ((computed.pairs(), stored.pairs()), (zip(computed.sample()), zip(stored.sample()))):
            a, b = ([torch.cat(part) for part in zip(*batches, strict=True)] for batches in (a, b))
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                assert y.dtype == torch.float32
                assert y.shape[1:] == small_extractor.output_shape
                torch.testing.assert_close(x, y)


def test_features_of_another_extractor_are_refused(small_features: FeatureCache, small_extractor: Extractor):
    other = SyntheticFeatures(make_extractor("pixels", small_extractor.input_shape))
    plan = TrainingPlan(num_examples=60, batch_size=20, epochs=1, lr=1.0, noise_multiplier=0.5, precondition=2)
    with pytest.raises(UserError, match="synthetic: not the features of"):
        fit(small_features, plan, extractor=small_extractor, synthetic=other)


def test_noise_is_not_that_of_a_run_with_another_preconditioner(small_features, small_extractor, monkeypatch):
    """Two runs from one seed whose preconditioners differ in their last digits differ by more than these digits: they have other batches and noise."""
    plan = TrainingPlan(
        num_examples=60, batch_size=20, epochs=1, lr=1.0, noise_multiplier=5.0, num_groups=2, precondition=2
    )
    weights = []
    for nudge in (0.0, 0.0, 1e-6):
        features = SyntheticFeatures(small_extractor)
        pairs = features.pairs
        monkeypatch.setattr(features, "pairs", lambda pairs=pairs, by=1 + nudge: ((x * by, y) for x, y in pairs()))
        result = fit(small_features, plan, extractor=small_extractor, key=RandomKey.from_seed(0), synthetic=features)
        weights.append(result.head.classifier.get_parameter("weight"))
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], rtol=0.1)


def test_a_second_run_finds_them(tmp_path, monkeypatch, accounting_once, capsys):
    monkeypatch.chdir(tmp_path)
    assert baselines.main([*FLAGS, "--seed=1", "--run_dir=first"]) == 0
    (file,) = Path("features").glob("synthetic-views-patches-float32-*.h5")
    monkeypatch.setattr("scatterdp.cache.extraction._Writer.run", lambda *_: pytest.fail("extracted again"))
    assert baselines.main([*FLAGS, "--seed=1", "--run_dir=second"]) == 0
    assert Path("first/model.safetensors").read_bytes() == Path("second/model.safetensors").read_bytes()

    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    capsys.readouterr()
    assert baselines.main([*FLAGS, "--run_dir=third"]) == 2
    assert "do not match their digest; remove it with `python -m scatterdp cache rm" in capsys.readouterr().err
    assert json.loads(Path("second/certificate.json").read_text())["features"]["extractor"] == "patches"


def test_a_run_goes_on_without_their_cache(tmp_path, monkeypatch, accounting_once, caplog):
    """While another one writes it, as when seeds are started at once, or where the folder cannot be written any more."""
    monkeypatch.chdir(tmp_path)
    flags = [*FLAGS, "--seed=1", "--feature_dtype=float16"]
    assert baselines.main([*flags, "--run_dir=first"]) == 0
    (file,) = Path("features").glob("synthetic-views-patches-float16-*.h5")
    file.unlink()
    with writer_lock(file):
        assert baselines.main([*flags, "--run_dir=second"]) == 0
    assert "synthetic images are computed and not kept: " in caplog.text
    assert "is writing this feature cache" in caplog.text
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "writer_lock", refused)
        assert baselines.main([*flags, "--run_dir=third"]) == 0
    assert "computed and not kept: features_dir=features: cannot be written (Permission denied)" in caplog.text
    assert not file.exists()
    expected = Path("first/model.safetensors").read_bytes()
    assert all(Path(run, "model.safetensors").read_bytes() == expected for run in ("second", "third"))


def refused(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_runs_without_a_preconditioner_make_none(tmp_path, monkeypatch, accounting_once):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scatterdp.training.synthetic_views.synthetic_views", lambda _: pytest.fail("made"))
    assert baselines.main(["--dataset=digits", "--noise_multiplier=3", "--epochs=1", "--run_dir=run"]) == 0


def test_features_that_differ_in_anything_meet_other_noise(small_dataset, small_extractor, tmp_path, monkeypatch):
    """Of one data set and extractor by their fingerprints, as when another processor rounds: each normaliser."""
    plan = TrainingPlan(num_examples=60, batch_size=20, epochs=1, lr=1.0, noise_multiplier=5.0, num_groups=2)
    for norm in ("GroupNorm", "none"):
        weights = []
        for number, nudge in enumerate((0.0, 0.0, 1e-6)):
            extractor: Any = Nudged(small_extractor, 1 + nudge)
            with extract_features(small_dataset, extractor, features_dir=tmp_path / f"{norm}{number}") as features:
                result = fit(
                    features,
                    dataclasses.replace(plan, input_norm=norm),
                    extractor=extractor,
                    key=RandomKey.from_seed(0),
                )
            weights.append(result.head.classifier.get_parameter("weight"))
        assert torch.equal(weights[0], weights[1])
        assert not torch.allclose(weights[0], weights[2], rtol=0.1)
