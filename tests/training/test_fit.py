"""From cached features to a certified classifier: the whole, its accounting, and its exact continuation."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scatterdp
from scatterdp.cache import FeatureCache, extract_features
from scatterdp.datasets import Dataset
from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors.base import Extractor
from scatterdp.heads import Head
from scatterdp.privacy.ledger import Ledger
from scatterdp.privacy.noise import gaussian_noise
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training import fit as fit_module
from scatterdp.training import loading as loading_module
from scatterdp.training import loop, normalization
from scatterdp.training.checkpoint import Checkpoint
from scatterdp.training.device import processor_of
from scatterdp.training.evaluation import evaluate
from scatterdp.training.fit import fit
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.result import FitResult
from scatterdp.training.rows import load_rows
from scatterdp.training.streaming import open_rows

pytestmark = pytest.mark.usefixtures("accounting_once")

KEY = RandomKey.from_seed(0)


def make_plan(**changes: Any) -> TrainingPlan:
    values: dict[str, Any] = {
        "num_examples": 60,
        "batch_size": 20,
        "epochs": 4,
        "lr": 1.0,
        "noise_multiplier": 2.0,
        "num_groups": 3,
        "delta": 1e-3,
    }
    return TrainingPlan(**(values | changes))


def weights(result: FitResult) -> dict[str, torch.Tensor]:
    return result.head.state_dict() | {f"average.{name}": value for name, value in result.average.items()}


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def claims(certificate: dict[str, Any]) -> dict[str, Any]:
    """A certificate but for the commitment, which has a fresh nonce each time."""
    data = {name: value for name, value in certificate["data"].items() if not name.startswith("commitment")}
    return certificate | {"data": data}


def assert_same_run(a: FitResult, b: FitResult) -> None:
    """Bit for bit, all but the time that it took."""
    assert weights(a).keys() == weights(b).keys()
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name
    assert claims(a.certificate) == claims(b.certificate)
    assert without_seconds(a.metrics) == without_seconds(b.metrics)
    assert (a.test_accuracy, a.test_accuracy_ema) == (b.test_accuracy, b.test_accuracy_ema)


def assert_other_run(a: FitResult, b: FitResult) -> None:
    assert not torch.allclose(
        a.head.classifier.get_parameter("weight"), b.head.classifier.get_parameter("weight"), atol=1e-3
    )


class TestResult:
    def test_head_average_accuracies_and_rows_belong_together(
        self, small_features: FeatureCache, small_extractor: Extractor
    ):
        plan = make_plan(lr=20.0, noise_multiplier=50.0)  # so much noise that last and averaged weights differ
        for seed in range(50):
            rows: list[dict[str, Any]] = []
            key = RandomKey.from_seed(seed)
            result = fit(small_features, plan, extractor=small_extractor, key=key, on_metrics=rows.append)
            if result.test_accuracy != result.test_accuracy_ema:
                break
        else:
            raise AssertionError("last and averaged weights are always equally good")
        assert isinstance(result.head, Head)
        test = load_rows(small_features, "test", result.head.normalizer)
        assert evaluate(result.head.classifier, test)[0] == result.test_accuracy
        assert evaluate(result.head.classifier, test, result.average)[0] == result.test_accuracy_ema
        assert rows == result.metrics
        assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6), (3, 9), (4, 12)]
        assert all(
            row.keys() == {"epoch", "step", "epsilon", "test_accuracy", "test_accuracy_ema", "seconds"} for row in rows
        )
        assert (rows[-1]["test_accuracy"], rows[-1]["test_accuracy_ema"]) == (
            result.test_accuracy,
            result.test_accuracy_ema,
        )
        seconds = [row["seconds"] for row in rows]
        assert seconds == sorted(seconds)
        assert 0 < seconds[-1] <= result.seconds + 1e-3

    def test_learns_without_noise(self, small_features: FeatureCache, small_extractor: Extractor):
        plan = make_plan(noise_multiplier=0.0, batch_size=60, epochs=60, max_grad_norm=1.0)
        result = fit(small_features, plan, extractor=small_extractor, key=KEY)
        assert result.test_accuracy > 0.8  # chance: 1/3
        assert result.certificate["private"] is False
        assert result.certificate["epsilon"] is None
        assert {row["epsilon"] for row in result.metrics} == {None}

    @pytest.mark.parametrize("input_norm", ["BN", "GroupNorm", "none"])
    @pytest.mark.parametrize("sampling", ["poisson", "shuffle", "full"])
    def test_epsilon_is_that_of_the_ledger_and_of_the_plan(
        self, small_features: FeatureCache, small_extractor: Extractor, input_norm, sampling
    ):
        plan = make_plan(
            input_norm=input_norm,
            batch_size=60 if sampling == "full" else 20,
            sampling="poisson" if sampling == "full" else sampling,
        )
        certificate = fit(small_features, plan, extractor=small_extractor, key=KEY).certificate
        ledger = Ledger.from_json(certificate["ledger"])
        assert [entry.name for entry in ledger.entries] == ["channel statistics"] * (input_norm == "BN") + ["training"]
        assert ledger.entries[-1].event == plan.selection().event(2.0)
        assert certificate["epsilon"] == ledger.epsilon(delta=1e-3)
        assert certificate["epsilon"] == pytest.approx(plan.epsilon(), rel=1e-6)
        assert certificate["sampler"]["kind"] == sampling
        assert ("PoissonSampled" in json.dumps(certificate)) == (sampling == "poisson")

    def test_epsilon_of_the_rows_grows_to_the_certificates(
        self, small_features: FeatureCache, small_extractor: Extractor
    ):
        plan = make_plan(input_norm="BN")
        result = fit(small_features, plan, extractor=small_extractor, key=KEY)
        epsilons = [row["epsilon"] for row in result.metrics]
        assert epsilons == sorted(epsilons)
        assert len(set(epsilons)) == 4
        assert epsilons[-1] == pytest.approx(result.certificate["epsilon"], rel=1e-9)
        for row in result.metrics:
            exact = plan.epsilon(row["step"])
            assert exact - 1e-9 <= row["epsilon"] <= exact * 1.05

    def test_a_plan_that_is_cut_short_stops_in_the_middle_of_an_epoch(
        self, small_features: FeatureCache, small_extractor: Extractor
    ):
        plan = make_plan(max_steps=7)
        result = fit(small_features, plan, extractor=small_extractor, key=KEY)
        assert [(row["epoch"], row["step"]) for row in result.metrics] == [(1, 3), (2, 6), (3, 7)]
        assert result.certificate["sampler"]["steps"] == 7
        assert result.certificate["epsilon"] == pytest.approx(make_plan().epsilon(7), rel=1e-9)

    def test_train_metrics_are_marked_and_change_nothing(
        self, small_features: FeatureCache, small_extractor: Extractor
    ):
        plain = fit(small_features, make_plan(), extractor=small_extractor, key=KEY)
        result = fit(small_features, make_plan(), extractor=small_extractor, key=KEY, train_metrics=True)
        names = ["train_accuracy_not_private", "train_loss_not_private"]
        assert not any("train" in name for row in plain.metrics for name in row)
        assert not any("train" in name for name in plain.certificate["not_private"])
        assert result.certificate["not_private"][-2:] == names
        train = load_rows(small_features, "train", result.head.normalizer)
        assert tuple(result.metrics[-1][name] for name in names) == evaluate(result.head.classifier, train)
        assert all(math.isfinite(row["train_loss_not_private"]) for row in result.metrics)
        for name, value in weights(plain).items():
            assert torch.equal(value, weights(result)[name])

    @pytest.mark.parametrize("published", [True, False])
    def test_only_published_data_are_named_by_their_digest(
        self, small_features: FeatureCache, small_extractor: Extractor, published
    ):
        certificate = fit(
            small_features, make_plan(epochs=1), extractor=small_extractor, key=KEY, published_data=published
        ).certificate
        assert (small_features.dataset_fingerprint in json.dumps(certificate)) == published

    def test_half_precision_is_close_to_single_precision(
        self, small_dataset: Dataset, small_extractor: Extractor, tmp_path: Path
    ):
        """Full batches without noise: the noise of the two would differ."""
        plan = make_plan(noise_multiplier=0.0, batch_size=60, epochs=20)
        results = []
        for dtype in ("float32", "float16"):
            with extract_features(small_dataset, small_extractor, features_dir=tmp_path, dtype=dtype) as features:
                results.append(fit(features, plan, extractor=small_extractor, key=KEY))
                assert results[-1].certificate["features"]["dtype"] == dtype
        single, half = (result.head.classifier.get_parameter("weight") for result in results)
        assert (single - half).norm() < 0.01 * single.norm()


class TestRandomness:
    def test_same_key_same_run(self, small_features: FeatureCache, small_extractor: Extractor):
        first, second = (fit(small_features, make_plan(), extractor=small_extractor, key=KEY) for _ in range(2))
        assert_same_run(first, second)

    def test_another_key_another_run(self, small_features: FeatureCache, small_extractor: Extractor):
        first, second = (
            fit(small_features, make_plan(), extractor=small_extractor, key=RandomKey.from_seed(seed))
            for seed in (0, 1)
        )
        assert_other_run(first, second)

    def test_without_a_key_the_system_gives_one(self, small_features: FeatureCache, small_extractor: Extractor):
        first, second = (fit(small_features, make_plan(), extractor=small_extractor) for _ in range(2))
        assert_other_run(first, second)
        assert first.certificate["noise_source"]["cryptographic"] is True

    @pytest.fixture
    def draws(self, monkeypatch) -> list[torch.Tensor]:
        """Every noise draw of training, as standard normal numbers."""
        draws: list[torch.Tensor] = []

        def noted(shape, **arguments):
            noise = gaussian_noise(shape, **arguments)
            draws.append(noise / (arguments["noise_multiplier"] * arguments["sensitivity"]))
            return noise

        monkeypatch.setattr(loop, "gaussian_noise", noted)
        return draws

    def assert_nothing_shared(self, draws: list[torch.Tensor]) -> None:
        """Else the difference of two releases of one seed would be free of noise."""
        half = len(draws) // 2
        assert half > 0
        for first, second in zip(draws[:half], draws[half:], strict=True):
            assert not torch.isclose(first, second).any()

    @pytest.mark.parametrize(
        "change", [{"lr": 2.0}, {"max_grad_norm": 0.2}, {"noise_multiplier": 2.5}, {"input_norm": "BN"}]
    )
    def test_runs_of_different_plans_share_no_noise(
        self, small_features: FeatureCache, small_extractor: Extractor, draws, change
    ):
        for plan in (make_plan(epochs=1), make_plan(epochs=1, **change)):
            fit(small_features, plan, extractor=small_extractor, key=KEY)
        self.assert_nothing_shared(draws)

    def test_runs_of_data_that_differ_in_an_example_share_no_noise(
        self, small_dataset: Dataset, small_extractor: Extractor, draws, tmp_path
    ):
        images = small_dataset.x_train.copy()
        images[5] = 255 - images[5]
        for dataset in (small_dataset, dataclasses.replace(small_dataset, x_train=images)):
            with extract_features(dataset, small_extractor, features_dir=tmp_path) as features:
                fit(features, make_plan(epochs=1), extractor=small_extractor, key=KEY)
        self.assert_nothing_shared(draws)

    def test_runs_with_and_without_augmentation_share_no_noise(
        self, small_features: FeatureCache, small_dataset: Dataset, small_extractor: Extractor, draws
    ):
        for images in (None, small_dataset.x_train):
            fit(small_features, make_plan(epochs=1), extractor=small_extractor, key=KEY, augmented_images=images)
        self.assert_nothing_shared(draws)

    @pytest.mark.parametrize("physical_batch_size", [1, 7])
    def test_physical_batch_size_has_no_meaning(
        self, small_features: FeatureCache, small_extractor: Extractor, physical_batch_size
    ):
        """But for rounding; without noise and with full batches, since rounding is enough to make another context."""
        plan = make_plan(noise_multiplier=0.0, batch_size=60)
        plain = fit(small_features, plan, extractor=small_extractor, key=KEY)
        result = fit(small_features, plan, extractor=small_extractor, key=KEY, physical_batch_size=physical_batch_size)
        for name, value in weights(plain).items():
            torch.testing.assert_close(value, weights(result)[name], rtol=1e-5, atol=1e-5)
        assert claims(result.certificate) == claims(plain.certificate)

    @pytest.mark.parametrize("physical_batch_size", [7, 59])
    def test_runs_that_round_differently_share_no_noise(
        self, small_features: FeatureCache, small_extractor: Extractor, draws, physical_batch_size
    ):
        for size in (256, physical_batch_size):
            fit(small_features, make_plan(epochs=1), extractor=small_extractor, key=KEY, physical_batch_size=size)
        self.assert_nothing_shared(draws)

    @pytest.mark.parametrize("seed", [3, None])
    def test_certificate_and_rows_never_hold_the_key(
        self, small_features: FeatureCache, small_extractor: Extractor, monkeypatch, seed
    ):
        key = RandomKey.make(seed)
        checkpoints: list[Checkpoint] = []
        result = fit(
            small_features,
            make_plan(epochs=1),
            extractor=small_extractor,
            key=key,
            on_checkpoint=checkpoints.append,
        )
        text = json.dumps([result.certificate, result.metrics]) + repr(result)
        for secret in (key.secret, checkpoints[0].key.secret):
            assert secret.hex() not in text
            assert repr(secret) not in text


class TestAugmentation:
    def run(self, features, dataset, extractor, **changes: Any) -> FitResult:
        arguments: dict[str, Any] = {"key": KEY, "augmented_images": dataset.x_train}
        return fit(features, make_plan(epochs=2), extractor=extractor, **(arguments | changes))

    def test_is_a_function_of_the_key(
        self, small_features: FeatureCache, small_dataset: Dataset, small_extractor: Extractor
    ):
        first, second = (self.run(small_features, small_dataset, small_extractor) for _ in range(2))
        assert_same_run(first, second)
        assert first.certificate["features"]["augmented"] is True
        assert_other_run(first, self.run(small_features, small_dataset, small_extractor, key=RandomKey.from_seed(1)))

    def test_differs_from_training_on_cached_rows(
        self, small_features: FeatureCache, small_dataset: Dataset, small_extractor: Extractor
    ):
        augmented = self.run(small_features, small_dataset, small_extractor)
        plain = self.run(small_features, small_dataset, small_extractor, augmented_images=None)
        assert_other_run(augmented, plain)
        assert augmented.certificate["epsilon"] == plain.certificate["epsilon"]
        assert augmented.certificate["ledger"] == plain.certificate["ledger"]

    def test_reads_no_cached_training_rows(
        self, small_features: FeatureCache, small_dataset: Dataset, small_extractor: Extractor, monkeypatch
    ):
        splits = []

        def noted(features, split, normalizer, **arguments):
            splits.append(split)
            return open_rows(features, split, normalizer, **arguments)

        monkeypatch.setattr(loading_module, "open_rows", noted)
        self.run(small_features, small_dataset, small_extractor)
        assert splits == ["test"]

    def test_with_train_metrics_on_the_images_as_they_are(
        self, small_features: FeatureCache, small_dataset: Dataset, small_extractor: Extractor
    ):
        result = self.run(small_features, small_dataset, small_extractor, train_metrics=True)
        train = load_rows(small_features, "train", result.head.normalizer)
        assert result.metrics[-1]["train_accuracy_not_private"] == evaluate(result.head.classifier, train)[0]


class Killed(BaseException):
    pass


RUNS: dict[str, dict[str, Any]] = {
    "momentum, BN, Poisson": {"input_norm": "BN"},
    "Nesterov, GroupNorm, Poisson": {"nesterov": True},
    "Adam, BN, Poisson": {"input_norm": "BN", "optimizer": "Adam", "lr": 0.1},
    "Adam, GroupNorm, shuffle": {"optimizer": "Adam", "lr": 0.1, "sampling": "shuffle"},
    "momentum, none, full batch": {"input_norm": "none", "batch_size": 60},
    "momentum, GroupNorm, cut short": {"max_steps": 11},
}


class TestResume:
    def killed(
        self, features: FeatureCache, extractor: Extractor, plan: TrainingPlan, path: Path, epoch: int, **arguments: Any
    ) -> list[dict[str, Any]]:
        """Stop like a kill while the row of ``epoch`` is written; gives the rows until then."""
        rows: list[dict[str, Any]] = []

        def on_metrics(row: dict[str, Any]) -> None:
            rows.append(row)
            if row["epoch"] == epoch:
                raise Killed

        with pytest.raises(Killed):
            fit(
                features,
                plan,
                extractor=extractor,
                on_metrics=on_metrics,
                on_checkpoint=lambda checkpoint: checkpoint.save(path),
                **arguments,
            )
        return rows

    @pytest.mark.parametrize("epoch", [1, 2, 4])
    @pytest.mark.parametrize("run", RUNS)
    def test_ends_bit_for_bit_like_a_run_without_interruption(
        self, small_features: FeatureCache, small_extractor: Extractor, tmp_path: Path, monkeypatch, run, epoch
    ):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        plan, path = make_plan(**RUNS[run]), tmp_path / "checkpoint.pt"
        whole = fit(small_features, plan, extractor=small_extractor, key=KEY)
        self.killed(small_features, small_extractor, plan, path, epoch, key=KEY)

        def again(*_, **__):
            raise AssertionError("the statistics are released a second time")

        monkeypatch.setattr(normalization, "release_channel_statistics", again)
        checkpoint = Checkpoint.load(path)
        assert checkpoint.training["step"] == (epoch - 1) * plan.steps_per_epoch
        rows: list[dict[str, Any]] = []
        resumed = fit(small_features, plan, extractor=small_extractor, resume=checkpoint, on_metrics=rows.append)
        assert_same_run(whole, resumed)
        assert [row["epoch"] for row in rows] == list(range(epoch, 5))
        names = [entry["name"] for entry in resumed.certificate["ledger"]]
        assert names == ["channel statistics"] * (plan.input_norm == "BN") + ["training"]

    def test_twice(self, small_features: FeatureCache, small_extractor: Extractor, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        plan, path = make_plan(input_norm="BN"), tmp_path / "checkpoint.pt"
        whole = fit(small_features, plan, extractor=small_extractor, key=KEY)
        self.killed(small_features, small_extractor, plan, path, 2, key=KEY)
        self.killed(small_features, small_extractor, plan, path, 4, resume=Checkpoint.load(path))
        resumed = fit(small_features, plan, extractor=small_extractor, resume=Checkpoint.load(path))
        assert_same_run(whole, resumed)

    def test_with_other_threads(self, small_features: FeatureCache, small_extractor: Extractor, tmp_path: Path):
        """They add up in another order: what has been shown must not be done again so, with other noise."""
        plan, path, threads = make_plan(), tmp_path / "checkpoint.pt", torch.get_num_threads()
        self.killed(small_features, small_extractor, plan, path, 2, key=KEY)
        checkpoint = Checkpoint.load(path)
        assert checkpoint.threads == (threads,)
        other = dataclasses.replace(checkpoint, threads=(threads + 1,))
        fit(small_features, plan, extractor=small_extractor, resume=other)
        shown = dataclasses.replace(other, released=len(other.metrics) + 1)
        with pytest.raises(UserError, match=f"go on with OMP_NUM_THREADS={threads + 1}$"):
            fit(small_features, plan, extractor=small_extractor, resume=shown)

    def test_on_another_processor(self, small_features: FeatureCache, small_extractor: Extractor, tmp_path: Path):
        plan, path = make_plan(), tmp_path / "checkpoint.pt"
        self.killed(small_features, small_extractor, plan, path, 2, key=KEY)
        checkpoint = Checkpoint.load(path)
        assert checkpoint.processors == (processor_of("cpu"),)
        other = dataclasses.replace(checkpoint, processors=("another",))
        fit(small_features, plan, extractor=small_extractor, resume=other)
        shown = dataclasses.replace(other, released=len(other.metrics) + 1)
        with pytest.raises(UserError, match=r"go on with processor another$"):
            fit(small_features, plan, extractor=small_extractor, resume=shown)

    def test_features_that_would_be_computed_in_another_way(
        self,
        small_features: FeatureCache,
        small_dataset: Dataset,
        small_extractor: Extractor,
        tmp_path: Path,
        monkeypatch,
    ):
        """As without the compiler that the run had when it began: it matters where features are computed while training."""
        plan, call = make_plan(), type(small_extractor).__call__
        cases: list[dict[str, Any]] = [{}, {"augmented_images": small_dataset.x_train}]
        for how in cases:
            path = tmp_path / f"{len(how)}.pt"
            self.killed(small_features, small_extractor, plan, path, 2, key=KEY, **how)
            with monkeypatch.context() as patch:
                patch.setattr(type(small_extractor), "__call__", lambda self, images: call(self, images) * (1 + 1e-6))
                refused = pytest.raises(UserError, match="resume: data, settings, device or") if how else nullcontext()
                with refused:
                    fit(small_features, plan, extractor=small_extractor, resume=Checkpoint.load(path), **how)
            fit(small_features, plan, extractor=small_extractor, resume=Checkpoint.load(path), **how)

    def test_with_augmentation_and_train_metrics(
        self,
        small_features: FeatureCache,
        small_dataset: Dataset,
        small_extractor: Extractor,
        tmp_path: Path,
        monkeypatch,
    ):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        plan, path = make_plan(input_norm="BN"), tmp_path / "checkpoint.pt"
        how = {"augmented_images": small_dataset.x_train, "train_metrics": True}
        whole = fit(small_features, plan, extractor=small_extractor, key=KEY, **how)
        self.killed(small_features, small_extractor, plan, path, 3, key=KEY, **how)
        resumed = fit(small_features, plan, extractor=small_extractor, resume=Checkpoint.load(path), **how)
        assert_same_run(whole, resumed)

    def test_the_checkpoints_key_counts_not_the_given_one(
        self, small_features: FeatureCache, small_extractor: Extractor, tmp_path: Path, monkeypatch
    ):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        plan, path = make_plan(), tmp_path / "checkpoint.pt"
        whole = fit(small_features, plan, extractor=small_extractor, key=KEY)
        self.killed(small_features, small_extractor, plan, path, 2, key=KEY)
        resumed = fit(
            small_features,
            plan,
            extractor=small_extractor,
            key=RandomKey.from_seed(99),
            resume=Checkpoint.load(path),
        )
        assert_same_run(whole, resumed)

    def test_a_run_killed_after_its_last_epoch_has_nothing_to_do(
        self, small_features: FeatureCache, small_extractor: Extractor, monkeypatch
    ):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        plan = make_plan()
        checkpoints: list[Checkpoint] = []
        whole = fit(small_features, plan, extractor=small_extractor, key=KEY, on_checkpoint=checkpoints.append)
        assert len({checkpoint.context for checkpoint in checkpoints}) == 1
        assert len(checkpoints) == 5
        rows: list[dict[str, Any]] = []
        resumed = fit(small_features, plan, extractor=small_extractor, resume=checkpoints[-1], on_metrics=rows.append)
        assert rows == []
        assert_same_run(whole, resumed)

    def test_a_checkpoint_kept_in_memory_does_not_move_on(
        self, small_features: FeatureCache, small_extractor: Extractor, monkeypatch
    ):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        plan = make_plan()
        checkpoints: list[Checkpoint] = []
        whole = fit(small_features, plan, extractor=small_extractor, key=KEY, on_checkpoint=checkpoints.append)
        assert [len(checkpoint.metrics) for checkpoint in checkpoints] == [0, 1, 2, 3, 4]
        assert [checkpoint.training["step"] for checkpoint in checkpoints] == [0, 3, 6, 9, 12]
        for checkpoint in checkpoints[:3]:
            assert_same_run(whole, fit(small_features, plan, extractor=small_extractor, resume=checkpoint))

    def test_time_goes_on_counting(
        self, small_features: FeatureCache, small_extractor: Extractor, tmp_path: Path, monkeypatch
    ):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
        plan, path = make_plan(), tmp_path / "checkpoint.pt"
        self.killed(small_features, small_extractor, plan, path, 3, key=KEY)
        checkpoint = dataclasses.replace(Checkpoint.load(path), seconds=1000.0)
        resumed = fit(small_features, plan, extractor=small_extractor, resume=checkpoint)
        assert 1000 < resumed.metrics[-1]["seconds"] <= resumed.seconds < 1100

    @pytest.mark.parametrize(("interval", "expected"), [(0, 5), (1e9, 1)])
    def test_checkpoints_come_first_of_all_and_then_by_the_clock(
        self, small_features: FeatureCache, small_extractor: Extractor, monkeypatch, interval, expected
    ):
        monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", interval)
        seen: list[Any] = []
        fit(
            small_features,
            make_plan(input_norm="BN"),
            extractor=small_extractor,
            key=KEY,
            on_checkpoint=lambda checkpoint: seen.append(checkpoint.ledger[0]["name"]),
            on_metrics=seen.append,
        )
        assert seen[0] == "channel statistics"
        assert seen.count("channel statistics") == expected


class TestRefusals:
    def test_plan_of_another_number_of_examples(self, small_features: FeatureCache, small_extractor: Extractor):
        plan = make_plan(num_examples=61)
        with pytest.raises(
            UserError, match=r"^num_examples=61: the features have 60 training rows, make the plan for those$"
        ):
            fit(small_features, plan, extractor=small_extractor, key=KEY)

    def test_another_extractor(self, small_features: FeatureCache, other_extractor: Extractor):
        with pytest.raises(UserError, match=r"^extractor: textures with this configuration did not make .*\.h5$"):
            fit(small_features, make_plan(), extractor=other_extractor, key=KEY)

    def test_images_of_another_number(self, small_features: FeatureCache, small_extractor: Extractor):
        images = np.zeros((7, *small_features.image_shape), np.uint8)
        with pytest.raises(UserError, match=r"^augmented_images: 7 images for 60 training rows$"):
            fit(small_features, make_plan(), extractor=small_extractor, key=KEY, augmented_images=images)

    def test_a_plan_without_noise_multiplier(self, small_features: FeatureCache, small_extractor: Extractor):
        with pytest.raises(ConfigError, match=r"^noise_multiplier=None: give one, or call calibrated"):
            fit(small_features, make_plan(noise_multiplier=None), extractor=small_extractor, key=KEY)

    def test_groups_that_do_not_divide(self, small_features: FeatureCache, small_extractor: Extractor):
        with pytest.raises(ConfigError, match="num_groups=27: does not divide the 6 channels"):
            fit(small_features, make_plan(num_groups=27), extractor=small_extractor, key=KEY)

    def test_without_a_folder_for_the_key_of_commitments(self, small_features, small_extractor, monkeypatch):
        """Said before the budget is spent, for there would be no certificate."""

        def refused(_: Path) -> bytes:
            raise UserError("features_dir: cannot be written")

        monkeypatch.setattr(fit_module, "commitment_key", refused)
        monkeypatch.setattr(fit_module, "release_normalizer", lambda *_, **__: pytest.fail("released"))
        with pytest.raises(UserError, match="cannot be written"):
            fit(small_features, make_plan(), extractor=small_extractor, key=KEY)

    def checkpoint(self, features: FeatureCache, extractor: Extractor, plan: TrainingPlan, path: Path) -> Checkpoint:
        fit(features, plan, extractor=extractor, key=KEY, on_checkpoint=lambda checkpoint: checkpoint.save(path))
        return Checkpoint.load(path)

    RESUMED_ELSEWHERE = (
        r"^resume: data, settings, device or versions are not those that the run began with; its noise must not be used "
        r"for anything else: restore them, or start a new run$"
    )

    def test_a_data_set_that_has_changed(
        self, small_features: FeatureCache, small_dataset: Dataset, small_extractor: Extractor, tmp_path: Path
    ):
        checkpoint = self.checkpoint(small_features, small_extractor, make_plan(), tmp_path / "checkpoint.pt")
        images = small_dataset.x_train.copy()
        images[0, 0, 0] ^= 1
        changed = dataclasses.replace(small_dataset, x_train=images)
        with (
            extract_features(changed, small_extractor, features_dir=tmp_path) as features,
            pytest.raises(UserError, match=self.RESUMED_ELSEWHERE),
        ):
            fit(features, make_plan(), extractor=small_extractor, resume=checkpoint)

    @pytest.mark.parametrize(
        "change",
        [{"noise_multiplier": 20.0}, {"max_grad_norm": 0.01}, {"batch_size": 10}, {"epochs": 5}, {"lr": 2.0}],
    )
    def test_another_plan_than_the_checkpoints(
        self, small_features: FeatureCache, small_extractor: Extractor, tmp_path: Path, change
    ):
        """The certificate would charge the steps that are done by the noise of the new plan."""
        checkpoint = self.checkpoint(small_features, small_extractor, make_plan(), tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match=self.RESUMED_ELSEWHERE):
            fit(small_features, make_plan(**change), extractor=small_extractor, resume=checkpoint)

    def test_other_circumstances_than_the_checkpoints(
        self,
        small_features: FeatureCache,
        small_dataset: Dataset,
        small_extractor: Extractor,
        other_extractor: Extractor,
        tmp_path: Path,
        monkeypatch,
    ):
        plan = make_plan()
        checkpoint = self.checkpoint(small_features, small_extractor, plan, tmp_path / "checkpoint.pt")
        changes: list[dict[str, Any]] = [{"physical_batch_size": 7}, {"augmented_images": small_dataset.x_train}]
        for change in changes:
            with pytest.raises(UserError, match=self.RESUMED_ELSEWHERE):
                fit(small_features, plan, extractor=small_extractor, resume=checkpoint, **change)
        with (
            extract_features(small_dataset, other_extractor, features_dir=tmp_path) as features,
            pytest.raises(UserError, match=self.RESUMED_ELSEWHERE),
        ):
            fit(features, plan, extractor=other_extractor, resume=checkpoint)
        with (
            extract_features(small_dataset, small_extractor, features_dir=tmp_path, dtype="float16") as features,
            pytest.raises(UserError, match=self.RESUMED_ELSEWHERE),
        ):
            fit(features, plan, extractor=small_extractor, resume=checkpoint)
        monkeypatch.setattr(fit_module, "version", lambda name: "0.0.0")
        with pytest.raises(UserError, match=self.RESUMED_ELSEWHERE):
            fit(small_features, plan, extractor=small_extractor, resume=checkpoint)


def test_the_way_of_the_readme(digits_features_dir: Path):
    """Load, extract, calibrate, fit, certificate: by the names of the package alone."""
    dataset = scatterdp.load_dataset("digits")
    extractor = scatterdp.make_extractor("scatternet", dataset.image_shape)
    with scatterdp.extract_features(dataset, extractor, features_dir=digits_features_dir) as features:
        plan = scatterdp.TrainingPlan(
            num_examples=len(dataset.x_train), batch_size=512, epochs=15, lr=4.0, accountant="rdp"
        ).calibrated(target_epsilon=3.0)
        result = scatterdp.fit(features, plan, extractor=extractor, key=scatterdp.RandomKey.from_seed(0))
    assert 1 < plan.sigma < 5
    assert result.test_accuracy > 0.8
    assert result.test_accuracy_ema > 0.8
    assert 2.9 < result.certificate["epsilon"] <= 3
    assert result.certificate["accountant"] == "rdp"
    assert result.certificate["epsilon_by_accountant"]["pld"] < result.certificate["epsilon"]
    assert len(result.metrics) == 15
    assert plan.steps == result.metrics[-1]["step"] == 30
    with torch.no_grad():
        logits = result.head(torch.from_numpy(np.zeros((1, 81, 2, 2), np.float32)))
    assert logits.shape == (1, 10)
