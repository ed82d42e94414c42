"""Private training on stored features: caches and old-style files, with and without statistics."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scatterdp.cache.files import cache_path
from scatterdp.datasets import load_dataset
from scatterdp.errors import ConfigError, UserError
from scatterdp.extractors import make_extractor
from scatterdp.privacy.checking import check_certificate
from transfer import extract
from transfer.config import TransferConfig
from transfer.transfer_cifar import main, run

SHORT = {"batch_size": 600, "epochs": 3, "noise_multiplier": 2.0, "seed": 0, "device": "cpu"}


def certificate(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "certificate.json").read_text())


@pytest.fixture
def digits(tmp_path) -> Path:
    """The digits' pixels as old-style files, without statistics; the prefix of their names."""
    data = load_dataset("digits")
    for split in ("train", "test"):
        np.save(tmp_path / f"pixels_{split}.npy", data.split(split)[0].reshape(-1, 64).astype(np.float32) / 255)
    return tmp_path / "pixels"


@pytest.fixture
def with_statistics(digits) -> Path:
    rows = np.load(f"{digits}_train.npy")
    np.save(f"{digits}_mean.npy", rows.mean(0))
    np.save(f"{digits}_var.npy", rows.var(0))
    return digits


def config(prefix: Path, **flags: Any) -> TransferConfig:
    run_dir = prefix.parent / "run"
    return TransferConfig(**{**SHORT, "feature_path": prefix, "dataset": "digits", "run_dir": run_dir, **flags})


pytestmark = pytest.mark.usefixtures("accounting_once")


class TestGivenStatistics:
    def test_are_used_and_the_certificate_says_on_whose_word(self, with_statistics):
        folder = run(config(with_statistics, epochs=20)).path
        found = certificate(folder)
        claim = (
            "The normalisation statistics (pixels_mean.npy and pixels_var.npy) were given and are claimed to be public. If they were computed "
            "from private data, what that cost is not covered."
        )
        assert claim in found["limits"]
        assert claim in found["statement"]
        assert [entry["name"] for entry in found["ledger"]] == ["training"]
        assert check_certificate(found).disagreements == []
        weights = load_file(folder / "model.safetensors")
        mean, var = (np.load(f"{with_statistics}_{name}.npy") for name in ("mean", "var"))
        np.testing.assert_allclose(weights["normalizer.mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(weights["normalizer.scale"], 1 / np.sqrt(var + 1e-5), rtol=1e-5)
        assert json.loads((folder / "summary.json").read_text())["test_accuracy"] > 0.75

    def test_another_normalisation_leaves_them(self, with_statistics, capsys):
        folder = run(config(with_statistics, input_norm="GroupNorm")).path
        assert "are not used: input_norm=GroupNorm was given" in capsys.readouterr().out
        assert not any("claimed to be public" in limit for limit in certificate(folder)["limits"])

    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("mean", np.zeros(63), r"mean of shape \(63,\), expected \(64,\)"),
            ("var", -np.ones(64), "the variance is negative, NaN or infinite in places"),
            ("mean", np.full(64, np.nan), "the mean is negative, NaN or infinite in places"),
        ],
    )
    def test_that_are_none(self, with_statistics, name, values, message):
        np.save(f"{with_statistics}_{name}.npy", values)
        with pytest.raises(UserError, match=message):
            run(config(with_statistics))
        assert not (with_statistics.parent / "run").exists()

    def test_a_run_goes_on_only_with_the_same(self, with_statistics):
        def stop(row):
            raise KeyboardInterrupt

        settings = config(with_statistics)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("scatterdp.experiment._metrics_line", stop)
            with pytest.raises(KeyboardInterrupt, match=r"go on with python -m transfer\.transfer_cifar --resume="):
                run(settings)
        np.save(f"{with_statistics}_mean.npy", np.zeros(64))
        resumed = TransferConfig(resume=settings.run_dir)
        with pytest.raises(UserError, match="resume: data, settings, device or versions are not those"):
            run(resumed)


class TestMissingStatistics:
    @pytest.mark.parametrize("there", ["", "mean", "var"])
    def test_are_an_error_that_names_the_files_and_the_ways_out(self, with_statistics, there):
        for name in {"mean", "var"} - {there}:
            Path(f"{with_statistics}_{name}.npy").unlink()
        missing = {
            "": "pixels_mean.npy and pixels_var.npy are",
            "mean": "pixels_var.npy is",
            "var": "pixels_mean.npy is",
        }[there]
        with pytest.raises(UserError) as raised:
            run(config(with_statistics))
        assert str(raised.value) == (
            f"feature_path={with_statistics}: {missing} missing; give public statistics there, or release them with DP "
            "(--input_norm=BN --bn_noise_multiplier=8 --feature_clip_norm=C), or normalise each example by itself at no cost "
            "(--input_norm=GroupNorm), or not at all (--input_norm=none)"
        )
        assert not (with_statistics.parent / "run").exists()

    def test_a_release_needs_a_bound(self, digits):
        with pytest.raises(ConfigError, match=r"need a public bound of a row's L2 norm.*give --feature_clip_norm=C"):
            run(config(digits, input_norm="BN"))

    def test_a_release_is_counted_and_its_bound_is_named(self, digits):
        folder = run(config(digits, input_norm="BN", feature_clip_norm=5.0, bn_noise_multiplier=8.0)).path
        found = certificate(folder)
        statistics, training = found["ledger"]
        assert statistics["name"] == "channel statistics"
        assert statistics["event"] == {
            "type": "SelfComposedDpEvent",
            "count": 2,
            "event": {"type": "GaussianDpEvent", "noise_multiplier": 8.0},
        }
        assert statistics["details"]["feature_clip_norm"] == [5.0, 25.0]
        assert statistics["details"]["bound_source"] == "feature_clip_norm=5, given as a public number"
        assert training["name"] == "training"
        assert any(
            "If it was chosen by looking at private features, that is not covered" in limit for limit in found["limits"]
        )
        free = certificate(run(config(digits, input_norm="GroupNorm", run_dir=digits.parent / "free")).path)
        assert found["epsilon"] > free["epsilon"]
        rows = np.load(f"{digits}_train.npy")
        assert np.linalg.norm(rows, axis=1).max() < 5
        released = load_file(folder / "model.safetensors")["normalizer.mean"].numpy()
        assert np.abs(released - rows.mean(0)).max() < 5 * 8 * 5 / len(rows)  # five deviations of the noise

    def test_each_row_by_itself_costs_nothing(self, digits):
        found = certificate(run(config(digits, input_norm="GroupNorm")).path)
        assert [entry["name"] for entry in found["ledger"]] == ["training"]

    def test_none_is_said_aloud(self, digits):
        folder = run(config(digits, input_norm="none")).path
        assert "normalizer.mean" not in load_file(folder / "model.safetensors")


class TestFiles:
    def test_what_is_taken_for_granted_is_in_the_certificate(self, digits):
        found = certificate(run(config(digits, input_norm="GroupNorm")).path)
        assert "taken on the word of whoever made them" in found["statement"]
        assert found["features"]["config"] == {"files": "pixels"}
        assert found["features"]["shape"] == [64, 1, 1]

    def test_a_private_sets_features_leave_no_digest(self, tmp_path, own_images):
        with np.load(own_images) as own:
            for split in ("train", "test"):
                np.save(tmp_path / f"f_{split}.npy", own[f"x_{split}"].mean((1, 2)).astype(np.float32))
        flags = {"dataset": str(own_images), "input_norm": "GroupNorm", "batch_size": 100}
        first = certificate(run(config(tmp_path / "f", **flags)).path)
        np.save(tmp_path / "f_train.npy", np.load(tmp_path / "f_train.npy")[:, ::-1])
        second = certificate(run(config(tmp_path / "f", **flags, run_dir=tmp_path / "again")).path)
        assert first["features"] == second["features"]
        assert "fingerprint" not in first["data"]
        assert first["data"]["commitment"] != second["data"]["commitment"]

    def test_maps_are_read(self, digits):
        for split in ("train", "test"):
            rows = np.load(f"{digits}_{split}.npy")
            np.save(f"{digits}_{split}.npy", rows.reshape(-1, 4, 4, 4).astype(np.float64))
        found = certificate(run(config(digits, input_norm="GroupNorm", num_groups=2)).path)
        assert found["features"]["shape"] == [4, 4, 4]

    @pytest.mark.parametrize(
        ("split", "array", "message"),
        [
            (
                "train",
                np.zeros((3, 64), np.float32),
                r"_train\.npy: 3 rows, but digits has 1437 train labels; give the --dataset",
            ),
            (
                "test",
                np.zeros((360, 65), np.float32),
                r"_test\.npy: rows of shape \(65,\), the training file's are \(64,\)",
            ),
            ("test", np.zeros((360, 64), np.int64), r"_test\.npy: int64 of shape \(360, 64\), expected floating point"),
            (
                "test",
                np.zeros(360, np.float32),
                r"_test\.npy: float32 of shape \(360,\), expected floating point \(N, D\)",
            ),
            ("test", np.full((360, 64), np.nan, np.float32), "row 0 is not finite"),
        ],
    )
    def test_arrays_that_do_not_fit(self, digits, split, array, message):
        np.save(f"{digits}_{split}.npy", array)
        with pytest.raises(UserError, match=message):
            run(config(digits, input_norm="none"))

    def test_a_pickle_is_refused(self, digits):
        np.save(f"{digits}_test.npy", np.array([print, 1], object), allow_pickle=True)
        with pytest.raises(UserError, match=r"_test\.npy: holds pickled objects, which are not read"):
            run(config(digits, input_norm="none"))
        Path(f"{digits}_test.npy").write_bytes(pickle.dumps(print))
        with pytest.raises(UserError, match=r"_test\.npy: (not a readable|holds pickled)"):
            run(config(digits, input_norm="none"))

    def test_one_split_alone(self, digits):
        Path(f"{digits}_test.npy").unlink()
        with pytest.raises(UserError, match=r"_test\.npy: no such file"):
            run(config(digits, input_norm="none"))


@pytest.fixture
def cached(mine, own_images, tmp_path) -> Path:
    """What the extraction of one's own network wrote; the feature path that names it."""
    flags = [f"--backbone=module:{mine}:features", f"--images={own_images}", f"--features_dir={tmp_path / 'features'}"]
    assert extract.main(flags) == 0
    return tmp_path / "features" / "module_mine_features"


def on_cache(path: Path, **flags: Any) -> TransferConfig:
    return TransferConfig(**{**SHORT, "batch_size": 120, "feature_path": path, "run_dir": path.parent / "run", **flags})


class TestCaches:
    def test_bounds_come_from_synthetic_images_through_the_same_network(self, cached, mine):
        folder = run(on_cache(cached, backbone=f"module:{mine}:features", epochs=15)).path
        found = certificate(folder)
        assert found["ledger"][0]["details"]["bound_source"].startswith("256 synthetic dead-leaves images")
        assert found["features"]["config"]["backbone"] == f"module:{mine}:features"
        assert "and the data it was trained on are taken as public" in found["statement"]
        assert json.loads((folder / "summary.json").read_text())["test_accuracy"] > 0.8

    def test_code_is_not_run_because_a_file_names_it(self, cached, mine):
        mine.write_text("raise SystemExit('it ran')")
        with pytest.raises(
            ConfigError,
            match=r"is not run because a file names it: give --backbone=module:.*mine\.py:features to run it",
        ):
            run(on_cache(cached))

    def test_other_code_is_another_extractor(self, cached, mine):
        mine.write_text(mine.read_text().replace("manual_seed(0)", "manual_seed(1)"))
        with pytest.raises(UserError, match=r"was made by another extractor than this one.*or bound the statistics by"):
            run(on_cache(cached, backbone=f"module:{mine}:features"))

    def test_a_bound_or_a_free_normalisation_needs_no_network(self, cached, mine):
        mine.unlink()
        found = certificate(run(on_cache(cached, feature_clip_norm=10.0)).path)
        assert found["ledger"][0]["details"]["feature_clip_norm"] == [10.0, 100.0]
        found = certificate(run(on_cache(cached, input_norm="GroupNorm", run_dir=cached.parent / "free")).path)
        assert len(found["ledger"]) == 1

    def test_the_file_itself_may_be_named(self, cached):
        (file,) = cached.parent.glob("*.h5")
        run(on_cache(file, input_norm="none"))

    def test_files_that_may_be_meant_are_named(self, cached, mine):
        file = next(cached.parent.glob("*.h5"))
        file.with_name(file.name.replace("own-", "other-")).write_bytes(file.read_bytes())
        with pytest.raises(
            UserError, match=r"may be any of other-module_mine.*, own-module_mine.*; give one of these files"
        ):
            run(on_cache(cached))

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match=r"neither x_train\.npy and x_test\.npy nor a feature cache is there"):
            run(on_cache(tmp_path / "x"))

    def test_scatterdps_own_features_serve_too(self, tmp_path, digits_features_dir):
        extractor = make_extractor("scatternet", (1, 8, 8))
        file = cache_path(load_dataset("digits"), extractor, features_dir=digits_features_dir)
        found = certificate(run(on_cache(file, run_dir=tmp_path / "run")).path)
        assert found["features"]["extractor"] == extractor.name
        assert found["ledger"][0]["details"]["bound_source"].startswith("256 synthetic")

    def test_a_run_that_was_stopped_goes_on_to_the_same_weights(self, cached):
        settings = on_cache(cached, input_norm="GroupNorm")
        whole = load_file(
            run(dataclasses.replace(settings, run_dir=cached.parent / "whole")).path / "model.safetensors"
        )

        def stop(row):
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("scatterdp.experiment._metrics_line", stop)
            with pytest.raises(KeyboardInterrupt):
                run(settings)
        assert not (cached.parent / "run" / "summary.json").exists()
        resumed = load_file(run(TransferConfig(resume=settings.run_dir)).path / "model.safetensors")
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"feature_path": None}, "feature_path=None: give the features"),
        ({"optim": "LR"}, "optim=LR: is logistic regression"),
        (
            {"input_norm": "GroupNorm", "feature_clip_norm": 1.0},
            "feature_clip_norm=1.0: has no effect with input_norm=GroupNorm",
        ),
        ({"input_norm": "none", "weights": Path("w")}, "weights=w: has no effect with input_norm=none"),
        ({"feature_clip_norm": 0.0, "input_norm": "BN"}, "feature_clip_norm=0.0: expected a finite number > 0"),
        ({"feature_clip_norm": 1.0}, "feature_clip_norm=1.0: bounds a release of statistics; give --input_norm=BN too"),
        ({"weights": Path("w")}, r"weights=w: \.npy files say nothing of a network"),
        ({"input_norm": "GroupNorm", "num_groups": 7}, "num_groups=7: does not divide the 64 channels"),
        ({"dataset": "nonsense"}, "--dataset=nonsense: unknown"),
    ],
)
def test_flags_that_do_not_fit(with_statistics, flags, message):
    with pytest.raises(UserError, match=message):
        run(config(with_statistics, **flags))
    assert not (with_statistics.parent / "run").exists()


def test_labels_of_another_set_beside_a_cache(cached):
    with pytest.raises(ConfigError, match="dataset=digits: a feature cache has its own labels"):
        run(on_cache(cached, dataset="digits"))


def test_the_published_settings_fill_what_is_left_out():
    from scatterdp.privacy.accounting import epsilon_of
    from scatterdp.training.plan import plan_from_recipe
    from transfer.config import RECIPE

    for batch_size, lr, sigma in ((2048, 8.0, 3.32), (1024, 4.0, 2.40)):
        told = TransferConfig(feature_path=Path("x"), batch_size=batch_size, lr=lr, noise_multiplier=sigma)
        plan = plan_from_recipe(told, RECIPE, num_examples=50_000, public_statistics=True)
        assert plan.steps == 40 * (50_000 // batch_size)
        assert (plan.momentum, plan.max_grad_norm, plan.input_norm) == (0.9, 0.1, "given")
        assert 1.99 < epsilon_of(plan.event(), delta=1e-5, accountant="rdp_classic") <= 2.0


def test_as_a_process(run_module, with_statistics):
    flags = [
        f"--feature_path={with_statistics}",
        "--dataset=digits",
        "--batch_size=600",
        "--lr=8",
        "--noise_multiplier=2",
        "--epochs=2",
    ]
    done = run_module("transfer.transfer_cifar", *flags, f"--run_dir={with_statistics.parent / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "digits: 1437 training and 360 test rows of 64×1×1 features by pixels, 10 classes" in done.stdout
    assert "statistics: pixels_mean.npy and pixels_var.npy, taken as public on your word" in done.stdout
    assert {"certificate.json", "summary.json", "config.json"} <= {
        p.name for p in (with_statistics.parent / "run").iterdir()
    }
    stored = json.loads((with_statistics.parent / "run" / "config.json").read_text())
    assert TransferConfig.from_json(json.dumps(stored)).feature_path == with_statistics


def test_errors_are_one_sentence_and_2(digits, capsys):
    assert main([f"--feature_path={digits}", "--dataset=digits", "--noise_multiplier=2"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: feature_path={digits}: pixels_mean.npy and pixels_var.npy are missing")
    assert captured.err.count("\n") == 1
