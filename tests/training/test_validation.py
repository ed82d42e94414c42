"""Held-out private examples: who they are, what the accuracy on them costs, and that nobody is trained on."""

from __future__ import annotations

import dataclasses
import json

import dp_accounting
import numpy as np
import pytest
import torch

from scatterdp import experiment
from scatterdp.config import BaselinesConfig
from scatterdp.datasets import Dataset
from scatterdp.errors import ConfigError, UserError
from scatterdp.privacy.checking import check_certificate
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.evaluation import evaluate
from scatterdp.training.fit import context, fit
from scatterdp.training.plan import TrainingPlan
from scatterdp.training.rows import FeatureRows
from scatterdp.training.validation import TrainingSubset, held_out_rows, validation_accuracy

PLAN = TrainingPlan(num_examples=40, batch_size=40, epochs=1, lr=1.0, input_norm="none", noise_multiplier=2.0)


def images(count: int, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 256, (count, 4, 4), dtype=np.uint8), np.arange(count) % 2
    return Dataset(name="made", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4], class_names=("a", "b"))


class TestHeldOutRows:
    def test_adding_or_removing_an_example_moves_no_other(self):
        whole = images(300)
        held_out = held_out_rows(whole, 0.3)
        for removed in (0, 17, 299):
            kept = np.delete(np.arange(300), removed)
            less = dataclasses.replace(whole, x_train=whole.x_train[kept], y_train=whole.y_train[kept])
            np.testing.assert_array_equal(held_out_rows(less, 0.3), held_out[kept])

    def test_the_label_does_not_matter(self):
        whole = images(100)
        np.testing.assert_array_equal(
            held_out_rows(dataclasses.replace(whole, y_train=1 - whole.y_train), 0.3), held_out_rows(whole, 0.3)
        )

    @pytest.mark.parametrize("share", [0.1, 0.5])
    def test_the_share_is_kept_on_average(self, share):
        held_out = held_out_rows(images(4000), share)
        assert abs(held_out.mean() - share) < 5 * (share * (1 - share) / 4000) ** 0.5

    def test_copies_stay_together_and_smaller_shares_are_within_larger_ones(self):
        whole = images(200)
        doubled = dataclasses.replace(
            whole, x_train=np.concatenate([whole.x_train] * 2), y_train=np.concatenate([whole.y_train] * 2)
        )
        first, second = np.split(held_out_rows(doubled, 0.3), 2)
        np.testing.assert_array_equal(first, second)
        assert not (held_out_rows(whole, 0.1) & ~held_out_rows(whole, 0.3)).any()

    def test_a_share_that_leaves_nobody_is_refused(self):
        with pytest.raises(ConfigError, match="validation=1e-12: keeps 0 of 50"):
            held_out_rows(images(50), 1e-12)


class TestTrainingSubset:
    @pytest.mark.parametrize("block", [1, 7, 16, 100])
    def test_rows_and_labels_are_those_of_the_whole(self, small_features, block):
        rows = np.array([0, 1, 5, 20, 21, 22, 59])
        subset = TrainingSubset(small_features, rows)
        found = list(subset.iter_rows("train", block))
        starts = [start for start, _ in found]
        assert starts == [0, *np.cumsum([len(values) for _, values in found])[:-1]]
        np.testing.assert_array_equal(
            np.concatenate([values for _, values in found]), small_features.read("train", rows)
        )
        np.testing.assert_array_equal(subset.labels("train"), small_features.labels("train")[rows])
        assert subset.num_rows("train") == 7
        assert subset.num_rows("test") == 24
        np.testing.assert_array_equal(subset.labels("test"), small_features.labels("test"))

    @pytest.mark.parametrize("block", [1, 4, 16])
    def test_parts_have_the_blocks_of_the_whole(self, small_features, block):
        """So that statistics are the same sum, to the bit, for every number of processes."""
        subset = TrainingSubset(small_features, np.flatnonzero(np.arange(60) % 3))
        whole = list(subset.iter_rows("train", block))
        assert [len(values) for _, values in whole] == [block] * (40 // block) + [40 % block] * (40 % block > 0)
        parts = [*subset.iter_rows("train", block, stop=16), *subset.iter_rows("train", block, first=16)]
        assert [start for start, _ in parts] == [start for start, _ in whole]
        for (_, part), (_, values) in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(part, values)


class TestValidationAccuracy:
    def rows(self, count: int = 50) -> tuple[torch.nn.Module, FeatureRows]:
        x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
        classifier = torch.nn.Linear(3, 2)
        return classifier, FeatureRows(x, torch.arange(count) % 2, x.square().sum(1))

    def test_without_noise_it_is_exact_and_has_no_entry(self):
        classifier, rows = self.rows()
        assert validation_accuracy(classifier, rows, PLAN, RandomKey.from_seed(0)) == (
            evaluate(classifier, rows)[0],
            [],
        )

    @pytest.mark.parametrize("sigma", [1.0, 5.0])
    def test_the_noise_is_that_of_the_entry(self, sigma):
        classifier, rows = self.rows()
        plan = dataclasses.replace(PLAN, validation_noise_multiplier=sigma)
        found = []
        for seed in range(2000):
            accuracy, (entry,) = validation_accuracy(classifier, rows, plan, RandomKey.from_seed(seed))
            assert entry.event == dp_accounting.GaussianDpEvent(sigma)
            found.append(accuracy * 50)
        right = evaluate(classifier, rows)[0] * 50
        assert abs(np.mean(found) - right) < 4 * sigma / 2000**0.5
        # Standard deviation within 4 standard errors; ⅔σ and 1.5σ are 13 and more away.
        assert abs(np.std(found) / sigma - 1) < 4 / (2 * 2000) ** 0.5

    def test_its_last_digits_do_not_tell_the_number_of_right_answers(self):
        """Of a count with floating-point noise, often only one whole number leaves a floating-point number (Mironov 2012)."""
        classifier, rows = self.rows()
        plan = dataclasses.replace(PLAN, validation_noise_multiplier=5.0)
        for seed in range(200):
            accuracy, _ = validation_accuracy(classifier, rows, plan, RandomKey.from_seed(seed))
            noisy = np.round(accuracy * len(rows.y) * 2.0**40) / 2.0**40  # what the division took away, given back
            left = noisy - np.arange(len(rows.y) + 1)
            assert (left.astype(np.float32) == left).all()


class TestRuns:
    def test_nobody_who_is_held_out_is_trained_on(self, small_features, small_extractor):
        """Changing a held-out example's features changes no weight; changing a trained one's does."""
        trained = np.arange(0, 40)
        results = []
        for changed in (None, 50, 10):

            class Changed(TrainingSubset):
                def iter_rows(self, split, rows_per_block, *, first=0, stop=None, changed=changed):
                    for start, block in self.whole.iter_rows(split, rows_per_block, first=first, stop=stop):
                        block = block.copy()
                        if split == "train" and changed is not None and start <= changed < start + len(block):
                            block[changed - start] += 100
                        yield start, block

            subset = TrainingSubset(Changed(small_features, np.arange(60)), trained)
            result = fit(
                subset,
                PLAN,
                extractor=small_extractor,
                key=RandomKey.from_seed(0),
                validation=TrainingSubset(Changed(small_features, np.arange(60)), np.arange(40, 60)),
            )
            results.append(result.head.classifier.state_dict()["weight"])
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_other_rows_are_other_data(self, small_features):
        """Two folds of one size under one seed: their noise must not cancel."""

        def here(trained, validated):
            return context(
                TrainingSubset(small_features, np.arange(*trained)),
                PLAN,
                augmented=None,
                physical_batch_size=8,
                device="cpu",
                validation=None if validated is None else TrainingSubset(small_features, np.arange(*validated)),
            )

        folds = [((0, 40), (40, 60)), ((20, 60), (0, 20)), ((0, 40), (45, 60)), ((0, 40), None)]
        assert len({here(*fold) for fold in folds}) == len(folds)
        assert here(*folds[0]) == here(*folds[0])

    def test_noise_without_examples_to_validate_on_is_refused(self, small_features, small_extractor):
        plan = dataclasses.replace(PLAN, num_examples=60, batch_size=60, validation_noise_multiplier=1.0)
        with pytest.raises(UserError, match="no examples to validate on"):
            fit(small_features, plan, extractor=small_extractor)

    @pytest.mark.parametrize("noise", [None, 4.0])
    def test_the_record_says_whether_the_guarantee_covers_it(self, tmp_path, noise, accounting_once):
        config = BaselinesConfig(
            dataset="digits",
            extractor="pixels",
            input_norm="none",
            epochs=1,
            noise_multiplier=2.0,
            validation=0.1,
            validation_noise_multiplier=noise,
            features_dir=tmp_path / "features",
            run_dir=tmp_path / "run",
            device="cpu",
            seed=0,
        )
        folder = experiment.run(config).path
        summary, certificate = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "certificate")
        )
        names = [entry["name"] for entry in certificate["ledger"]]
        assert certificate["data"]["num_train"] == 1437 - 145
        assert certificate["data"]["num_validation"] == 145
        assert any("two public numbers" in limit for limit in certificate["limits"])
        assert check_certificate(certificate).disagreements == []
        if noise is None:
            assert names == ["training"]
            assert "validation_accuracy_not_private" in certificate["not_private"]
            right = summary["validation_accuracy_not_private"] * 145
            assert right == pytest.approx(round(right), abs=1e-9)
        else:
            assert names == ["training", "validation accuracy"]
            assert not any("validation" in name for name in certificate["not_private"])
            right = summary["validation_accuracy"] * 145
            assert right != pytest.approx(round(right), abs=1e-9)

    def test_the_budget_holds_with_the_validation_in_it(self):
        plan = dataclasses.replace(PLAN, noise_multiplier=None)
        with_it = dataclasses.replace(plan, validation_noise_multiplier=2.0).calibrated(target_epsilon=3.0)
        without = plan.calibrated(target_epsilon=3.0)
        assert with_it.epsilon() <= 3.0
        assert with_it.sigma > without.sigma
