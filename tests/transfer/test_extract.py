"""The three extraction commands, as a user runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scatterdp.cache import FeatureCache, verify
from transfer import extract as general
from transfer.architectures.resnext import ResNeXt29, numbered_bottlenecks
from transfer.architectures.simclr import SimCLR, converted


def only_cache(folder: Path) -> Path:
    (path,) = folder.glob("*.h5")
    return path


def light(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names and shapes, one number each: a file of kilobytes."""
    return {
        name: torch.tensor(1.0 if name.endswith(("running_var", "norm.weight")) else 0.01).expand(value.shape)
        for name, value in tensors.items()
        if not name.endswith("num_batches_tracked")
    }


def test_your_own_network(run_module, mine, own_images, tmp_path):
    flags = [f"--backbone=module:{mine}:features", f"--images={own_images}", "--feature_dtype=float16"]
    done = run_module("transfer.extract", *flags, f"--features_dir={tmp_path / 'f'}")
    assert done.returncode == 0, done.stderr
    assert "own: 240 training and 60 test images of 3×20×20; features 64×1×1" in done.stdout
    path = only_cache(tmp_path / "f")
    assert f"features: {path} after" in done.stdout
    assert path.name.startswith("own-module_mine_features-float16-")
    verify(path)
    with FeatureCache(path) as cache, np.load(own_images) as own:
        assert cache.extractor_config["backbone"] == f"module:{mine}:features"
        assert len(cache.extractor_config["weights_sha256"]) == 64
        assert np.array_equal(cache.labels("train"), own["y_train"])
    written = path.stat().st_mtime_ns
    assert run_module("transfer.extract", *flags, f"--features_dir={tmp_path / 'f'}").returncode == 0
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("prefix", ["", "module."])
def test_resnext(run_module, own_images, tmp_path, prefix):
    with torch.device("meta"):
        own = ResNeXt29().state_dict()
    named = {prefix + numbered_bottlenecks(name): value for name, value in light(own).items()}
    classifier = {f"{prefix}classifier.weight": torch.zeros(100, 1024), f"{prefix}classifier.bias": torch.zeros(100)}
    torch.save({"epoch": 300, "state_dict": {**named, **classifier}}, tmp_path / "model_best.pth.tar")
    small = tmp_path / "small.npz"
    with np.load(own_images) as own_arrays:
        np.savez(small, **{name: own_arrays[name][:6] for name in own_arrays})
    done = run_module(
        "transfer.extract_cifar100",
        f"--weights={tmp_path / 'model_best.pth.tar'}",
        f"--images={small}",
        f"--features_dir={tmp_path / 'f'}",
    )
    assert done.returncode == 0, done.stderr
    path = only_cache(tmp_path / "f")
    assert path.name.startswith("small-cifar100_resnext-float32-")
    with FeatureCache(path) as cache:
        assert cache.output_shape == (1024, 1, 1)
        assert cache.extractor_config["preprocessing"]["size"] == 32


def test_simclr(run_module, own_images, tmp_path):
    with torch.device("meta"):
        own = SimCLR().state_dict()
    named = {converted(name): value for name, value in light(own).items()}
    named |= {"fc.weight": torch.zeros(1).expand(1000, 4096), "fc.bias": torch.zeros(1000)}
    head = {"layers.0.weight": torch.zeros(1).expand(4096, 4096)}
    torch.save({"resnet": named, "head": head}, tmp_path / "r50_2x_sk1.pth")
    small = tmp_path / "small.npz"
    with np.load(own_images) as own_arrays:
        np.savez(small, **{name: own_arrays[name][:2] for name in own_arrays})
    flags = [f"--weights={tmp_path / 'r50_2x_sk1.pth'}", f"--images={small}", f"--features_dir={tmp_path / 'f'}"]
    done = run_module("transfer.extract_simclr", *flags)
    assert done.returncode == 0, done.stderr
    with FeatureCache(only_cache(tmp_path / "f")) as cache:
        assert cache.extractor_name == "simclr_r50_2x_sk1"
        assert cache.output_shape == (4096, 1, 1)
        assert cache.extractor_config["preprocessing"]["resize"] == "corner_bicubic"


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("transfer.extract_cifar100", [], "error: weights=transfer/resnext-8x64d/model_best.pth.tar: no such file"),
        ("transfer.extract_simclr", [], "error: weights=transfer/r50_2x_sk1.pth: no such file"),
        ("transfer.extract", ["--backbone=nonsense"], "error: backbone='nonsense': expected cifar100_resnext"),
    ],
)
def test_errors_are_one_sentence_and_2(run_module, own_images, tmp_path, module, flags, message):
    done = run_module(module, *flags, f"--images={own_images}", f"--features_dir={tmp_path / 'f'}")
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size=0"], "batch_size=0: expected a whole number ≥ 1"),
        (["--image_size=0"], "image_size=0: expected a number above 0"),
        (["--crop=2"], "crop=2.0: expected a number above 0 and at most 1"),
        (["--device=cuda:99"], "device=cuda:99: this machine shows"),
        (["--images=nowhere.npz"], "--images=nowhere.npz: no such file"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(mine, own_images, tmp_path, capsys, flags, message):
    given = [f"--images={own_images}"] if not flags[0].startswith("--images") else []
    arguments = [f"--backbone=module:{mine}:features", *given, *flags, f"--features_dir={tmp_path / 'f'}"]
    assert general.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "f").exists()


def test_batches_change_nothing(mine, own_images, tmp_path):
    contents = []
    for size in (1, 7, 64):
        folder = tmp_path / str(size)
        arguments = [f"--backbone=module:{mine}:features", f"--images={own_images}", f"--batch_size={size}"]
        assert general.main([*arguments, f"--features_dir={folder}"]) == 0
        with FeatureCache(only_cache(folder)) as cache:
            contents.append(cache.read("train", range(240)))
    np.testing.assert_allclose(contents[0], contents[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(contents[0], contents[2], rtol=1e-5, atol=1e-6)
