"""``python -m scatterdp.tiny_images``: a data set and more labelled images, the same way as the other commands."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pickle
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tyro
from run_folders import interrupted_in_epoch

from scatterdp import tiny_images
from scatterdp.config import TinyImagesConfig
from scatterdp.datasets import load_dataset
from scatterdp.errors import ConfigError
from scatterdp.privacy.accounting import epsilon_of
from scatterdp.privacy.calibration import calibrate_noise_multiplier
from scatterdp.privacy.checking import check_certificate
from scatterdp.training import fit as fit_module
from scatterdp.training.plan import plan_from_config

PUBLISHED = (
    "--batch_size=8192 --lr=16 --delta=9.09e-7 --model=linear --use_scattering --bn_noise_multiplier=8 --epochs=120 --noise_multiplier=1.1",
    "--batch_size=8192 --lr=16 --delta=9.09e-7 --model=cnn --epochs=120 --noise_multiplier=1.1",
    "--batch_size=8192 --lr=16 --delta=9.09e-7 --model=cnn --use_scattering --bn_noise_multiplier=8 --epochs=120 --noise_multiplier=1.1",
)


def parse(command: str) -> TinyImagesConfig:
    return tyro.cli(TinyImagesConfig, args=shlex.split(command), use_underscores=True)


class TestPublishedCommands:
    @pytest.mark.parametrize(
        ("command", "head", "engine", "norm"),
        [
            (PUBLISHED[0], "linear", "linear", "BN"),
            (PUBLISHED[1], "cnn", "mixed_ghost", "none"),
            (PUBLISHED[2], "scatternet_cnn", "mixed_ghost", "BN"),
        ],
    )
    def test_spend_the_published_budget(self, command, head, engine, norm):
        config = parse(command)
        plan = plan_from_config(config, dataset_name="cifar10", num_examples=550_000, epoch_examples=50_000)
        assert (plan.head, plan.engine, plan.input_norm) == (head, engine, norm)
        assert plan.steps == plan.selection().steps == 6 * 120
        assert plan.selection().sample_rate == 8192 / 550_000
        assert plan.delta == 9.09e-7
        classic, pld = (epsilon_of(plan.event(), delta=plan.delta, accountant=a) for a in ("rdp_classic", "pld"))
        assert 2.9 < classic <= 3.0  # published as ε = 3
        assert pld < 2.35

    def test_the_published_noise_multiplier(self):
        """⌊120 · 50000 / 8192⌋ = 732 steps after statistics of a sample: published 1.1, computed 1.0994."""
        plan = plan_from_config(
            parse(PUBLISHED[0]), dataset_name="cifar10", num_examples=550_000, epoch_examples=50_000
        )
        found = {
            accountant: calibrate_noise_multiplier(
                lambda sigma: fit_plan(plan, steps=732).selection().event(sigma),
                target_epsilon=3,
                target_delta=9.09e-7,
                accountant=accountant,
                prior=plan.prior,
            )
            for accountant in ("rdp_classic", "pld")
        }
        assert found["rdp_classic"] == pytest.approx(1.0994, abs=5e-4)
        assert found["pld"] == pytest.approx(0.972, abs=1e-3)
        print(f"noise multiplier at ε = 3: {found}")


def fit_plan(plan, *, steps: int):
    """The plan with another number of steps: an epoch of one step, so many epochs."""
    return dataclasses.replace(plan, epoch_examples=plan.batch_size, epochs=steps)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_size": 0}, "data_size=0: expected a whole number ≥ 1"),
        ({"engine": "crb"}, "engine=crb: has no effect with model=linear; give --model=cnn"),
        ({"size": "small"}, "size=small: has no effect with model=linear"),
        ({"arch": "resnet20"}, "arch=resnet20: has no effect with model=linear"),
        ({"memory_budget": "4 gigs"}, "memory_budget='4 gigs': expected a size such as 500MB or 2GB"),
        ({"optim": "LR"}, "optim=LR: is logistic regression"),
        ({"mirror": True}, "mirror=True: is about fixed features"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(ConfigError) as raised:
        TinyImagesConfig(**flags)
    assert str(raised.value).startswith(message)


def test_the_config_goes_through_json():
    config = TinyImagesConfig(
        tiny_images=Path("more.npz"), data_size=700, model="cnn", memory_budget="1GB", target_delta=1e-6
    )
    text = json.dumps(config.to_json())
    assert TinyImagesConfig.from_json(text) == config
    with pytest.raises(ConfigError, match="model='tree', expected one of"):
        TinyImagesConfig.from_json(text.replace('"model": "cnn"', '"model": "tree"'))


@pytest.fixture(scope="module")
def more_digits(tmp_path_factory) -> Path:
    """Digits with noise in a pickle, labels copied: 2000 images."""
    digits, rng = load_dataset("digits"), np.random.default_rng(0)
    which = rng.integers(0, len(digits.x_train), 2000)
    images = np.clip(digits.x_train[which] + rng.normal(0, 10, (2000, 8, 8)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("more") / "more.pickle"
    path.write_bytes(pickle.dumps({"data": images, "extrapolated_targets": digits.y_train[which]}, 3))
    return path


@pytest.fixture(scope="module")
def cached(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def arguments(tmp_path, monkeypatch, more_digits, cached, accounting_once) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--dataset=digits", f"--tiny_images={more_digits}", "--data_size=3000", "--use_scattering", "--seed=3", "--epochs=4",
            "--noise_multiplier=2", "--batch_size=256", "--input_norm=BN", "--delta=1e-4", "--device=cpu",
            f"--features_dir={cached}"]  # fmt: skip


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("model", ["linear", "cnn"])
def test_a_run_from_memory_and_from_the_disk(arguments, model, capsys):
    for name, budget in (("memory", "1GB"), ("disk", "1kB")):
        assert tiny_images.main([*arguments, f"--model={model}", f"--memory_budget={budget}", f"--run_dir={name}"]) == 0
    out = capsys.readouterr().out
    assert "digits+1563: 3000 training and 360 test images" in out
    assert out.count("batches are read from the disk") == 1
    for name in ("model", "model_ema"):
        assert Path(f"memory/{name}.safetensors").read_bytes() == Path(f"disk/{name}.safetensors").read_bytes()
    summary, certificate = read("disk/summary.json"), read("disk/certificate.json")
    assert summary["test_accuracy"] > (0.7 if model == "linear" else 0.4)
    assert summary["steps"] == 4 * (1437 // 256)
    assert certificate["sampler"] == {
        "kind": "poisson", "num_examples": 3000, "expected_batch_size": 256, "sample_rate": 256 / 3000, "steps": 20,
        "adjacency": certificate["adjacency"],
    }  # fmt: skip
    statistics, training = certificate["ledger"]
    assert statistics["event"]["sampling_probability"] == 1437 / 3000
    assert statistics["details"]["sample"]["expected_batch_size"] == 1437
    assert training["event"]["count"] == 20
    assert "All training images are private alike" in certificate["statement"]
    assert "published pseudo-labels: on CIFAR-10" in certificate["limits"][0]
    assert certificate["data"]["num_train"] == 3000
    assert "commitment" in certificate["data"]
    assert check_certificate(certificate).disagreements == []


def test_an_interrupted_run_on_the_disk_goes_on_in_memory_alike(arguments, monkeypatch, capsys):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
    flags = [*arguments, "--memory_budget=1kB"]
    with interrupted_in_epoch(3):
        assert tiny_images.main([*flags, "--run_dir=run"]) == 130
    assert capsys.readouterr().err.endswith("go on with python -m scatterdp.tiny_images --resume=run\n")
    assert tiny_images.main(["--resume=run"]) == 0
    assert tiny_images.main([*arguments, "--run_dir=whole"]) == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_a_delta_that_is_too_large_is_told(arguments, capsys):
    assert tiny_images.main([*arguments, "--epochs=1", "--target_delta=0.001", "--run_dir=run"]) == 0
    assert "warning: δ = 0.001 is not below 1/N = 0.00033" in capsys.readouterr().err
    assert "δ = 0.001 is not below 1/N" in read("run/certificate.json")["statement"]


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def without(arguments: list[str], *names: str) -> list[str]:
    return [argument for argument in arguments if argument.split("=")[0].removeprefix("--") not in names]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiny_images": None}, "tiny_images: not given; name the file with the further images, --tiny_images=FILE"),
        (
            {"tiny_images": "none.pickle"},
            "tiny_images=none.pickle: no such file; give the published pickle, or an .npz or .h5",
        ),
        (
            {"tiny_images": "hostile.pickle"},
            "tiny_images=hostile.pickle: the pickle names posix.system, which could run code",
        ),
        (
            {"tiny_images": "wide.npz"},
            "tiny_images=wide.npz: its data is uint8 of shape (5, 9, 9), expected uint8 (n, 8, 8)",
        ),
        ({"tiny_images": "eleven.npz"}, "tiny_images=eleven.npz: labels from 10 to 10, expected 0 to 9"),
        ({"data_size": 4000}, "data_size=4000: expected 1438 to 3437; digits has 1437 training images and "),
        ({"data_size": 1437}, "data_size=1437: expected 1438 to 3437"),
        ({"batch_size": 1500}, "batch_size=1500: expected at most 1437, the examples of an epoch"),
        ({"memory_budget": "much"}, "memory_budget='much': expected a size such as 500MB or 2GB"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, changes, message, capsys):
    Path("hostile.pickle").write_bytes(pickle.dumps({"data": Runs()}, 3))
    np.savez("wide.npz", data=np.zeros((5, 9, 9), np.uint8), extrapolated_targets=np.zeros(5, int))
    np.savez("eleven.npz", data=np.zeros((5, 8, 8), np.uint8), extrapolated_targets=np.full(5, 10))
    before = sorted(path.name for path in Path().iterdir())
    given = [f"--{name}={value}" for name, value in changes.items() if value is not None]
    assert tiny_images.main([*without(arguments, *changes), *given, "--features_dir=new", "--run_dir=run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == before


def test_a_disk_too_full_for_the_features(arguments, monkeypatch, capsys):
    usage = functools.partial(SimpleNamespace, total=10**6, used=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=1000))
    assert tiny_images.main([*without(arguments, "features_dir"), "--features_dir=new", "--run_dir=run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: features_dir=new: the disk or quota is full: the cache needs about ")
    assert "1000 are free" in err
    assert not Path("run").exists()
    assert {path.suffix for path in Path("new").iterdir()} <= {".lock", ".pid"}


@pytest.mark.slow
def test_a_file_of_the_published_shape(tmp_path, monkeypatch, capsys):
    """500 000 made-up images of 32×32 behind 3000: pixels in half precision, 3 GB on the disk, in a budget of 100 MB."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    own = rng.integers(0, 256, (3300, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(3300) % 10
    for image, label in zip(own, labels, strict=True):
        image[3 * label : 3 * label + 3] = 255
    np.savez("own.npz", x_train=own[:3000], y_train=labels[:3000], x_test=own[3000:], y_test=labels[3000:])
    more = np.concatenate([own[:3000]] * 167)[:500_000]
    targets = np.concatenate([labels[:3000]] * 167)[:500_000]
    with open("more.pickle", "wb") as file:
        pickle.dump({"data": more, "extrapolated_targets": targets}, file, 3)
    del more
    flags = "--dataset=own.npz --tiny_images=more.pickle --batch_size=1500 --lr=4 --delta=9e-7 --epochs=5 --noise_multiplier=1.1"
    budget = "--memory_budget=100MB --feature_dtype=float16 --run_dir=run --seed=0 --device=cpu"
    assert tiny_images.main([*shlex.split(flags), *shlex.split(budget)]) == 0
    assert "batches are read from the disk" in capsys.readouterr().out
    summary = read("run/summary.json")
    assert summary["sample_rate"] == 1500 / 503_000
    assert summary["steps"] == 10
    assert summary["test_accuracy"] > 0.5
