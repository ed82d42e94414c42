"""``scatterdp finetune`` from public images to a private classifier."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_folders import files_of_at_most, interrupted_in_epoch, names
from safetensors.torch import load_file, save_file

from scatterdp.commands import finetune
from scatterdp.exits import exit_code
from scatterdp.heads import resnet_v2
from scatterdp.privacy.checking import check_certificate
from scatterdp.training import fit as fit_module

FLAGS = ["--image_size=32", "--train_device_batch_size=20", "--num_train_epochs=2", "--seed=1", "--device=cpu",
         "--base_learning_rate=0.2", "--lr_warmup_epochs=0.4"]  # fmt: skip


SMALL = ((1, 1, 1, 1), (32, 32, 64, 64), (1, 2, 2, 1), False)


def command(*flags: str) -> int:
    return exit_code(lambda: finetune.run(list(flags)))


def read(path: str, name: str) -> dict[str, Any]:
    return json.loads((Path(path) / name).read_text())


@pytest.fixture
def flags(tmp_path, monkeypatch, small_resnets, accounting_once) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return FLAGS


@pytest.fixture
def dp_flags(flags, private) -> list[str]:
    return [*flags, f"--dataset={private}", "--dp_sigma=0.5", "--grad_acc_steps=3", "--target_delta=1e-3"]


@pytest.fixture(scope="session")
def pretrained(public, tmp_path_factory) -> Path:
    """The run folder that pre-training leaves."""
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet_v2.RESNETS_V2, "resnet18", SMALL)
        patch.setattr(resnet_v2, "_STEM_CHANNELS", 32)
        patch.chdir(folder)
        assert command(*FLAGS, "--num_train_epochs=6", f"--dataset={public}", "--disable_dp", "--run_dir=public") == 0
    return folder / "public"


@pytest.fixture
def weights(pretrained, flags) -> str:
    """A copy of it here."""
    shutil.copytree(pretrained, "public")
    return "--finetune_path=public/model.safetensors"


def test_two_phases(flags, dp_flags, weights, capsys):
    assert read("public", "certificate.json")["statement"].startswith("This run is NOT differentially private")
    assert read("public", "summary.json")["test_accuracy"] > 0.5
    assert command(*dp_flags, weights, "--num_layers_to_freeze=6", "--run_dir=run") == 0
    out = capsys.readouterr().out
    assert "noise multiplier 0.866025 (dp_sigma 0.5 × √3)" in out
    certificate = read("run", "certificate.json")
    assert certificate["private"]
    assert not check_certificate(certificate).disagreements
    (entry,) = certificate["ledger"]
    assert entry["details"]["noise_multiplier"] == pytest.approx(0.5 * math.sqrt(3))
    assert entry["event"]["count"] == 2 * (180 // 60)
    assert certificate["sampler"]["sample_rate"] == 60 / 180
    assert "taken to be public (model.safetensors" in certificate["statement"]
    assert "The first 6 of the network's layers" in certificate["statement"]
    assert "compose the two ledgers" in certificate["statement"]
    before, after = load_file("public/model.safetensors"), load_file("run/model.safetensors")
    for name, value in after.items():
        layer = name.split(".")[1]
        frozen = layer in ("stem", "group1", "group2", "group3")
        assert (name in before and torch.equal(before[name], value)) == frozen, name
    assert after["classifier.linear.weight"].shape == (3, 64)


def test_the_published_noise_convention_is_the_standard_one_times_the_root_of_the_pieces(dp_flags):
    assert command(*dp_flags, "--run_dir=published") == 0
    standard = [f for f in dp_flags if "dp_sigma" not in f]
    assert command(*standard, f"--noise_multiplier={0.5 * math.sqrt(3)!r}", "--run_dir=standard") == 0
    assert Path("published/model.safetensors").read_bytes() == Path("standard/model.safetensors").read_bytes()
    assert read("published", "summary.json")["epsilon"] == read("standard", "summary.json")["epsilon"]


def test_pieces_change_nothing_but_rounding(dp_flags, monkeypatch, noise_of_the_key_alone):
    monkeypatch.setattr(fit_module, "context", lambda *_, **__: "one context for all")  # the same noise
    standard = [f for f in dp_flags if "dp_sigma" not in f and "batch" not in f and "acc_steps" not in f]
    for pieces in (1, 4):
        sizes = [f"--train_device_batch_size={60 // pieces}", f"--grad_acc_steps={pieces}"]
        assert command(*standard, *sizes, f"--noise_multiplier={0.5 * math.sqrt(3)!r}", f"--run_dir=by{pieces}") == 0
    one, four = (load_file(f"by{pieces}/model.safetensors") for pieces in (1, 4))
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-3, atol=1e-4)


def test_shards_are_the_same_data(dp_flags, shapes, private, tmp_path, monkeypatch):
    shards = shapes.shards_like(private, tmp_path / "shards")
    monkeypatch.setattr(fit_module, "context", lambda *_, **__: "one context for all")
    assert command(*dp_flags, "--run_dir=folder") == 0
    assert command(*dp_flags, f"--dataset={shards}", "--run_dir=shards_run") == 0
    assert Path("folder/metrics.jsonl").read_text().split("seconds")[0] == Path("shards_run/metrics.jsonl").read_text().split("seconds")[0]  # fmt: skip
    one, other = (load_file(f"{run}/model.safetensors") for run in ("folder", "shards_run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_images_that_are_not_held_train_to_the_same(dp_flags, monkeypatch):
    from scatterdp.datasets.streamed import StreamedImages

    monkeypatch.setattr(fit_module, "context", lambda *_, **__: "one context for all")
    assert command(*dp_flags, "--augment", "--run_dir=held") == 0
    monkeypatch.setattr(StreamedImages, "hold", lambda self: False)
    assert command(*dp_flags, "--augment", "--run_dir=streamed") == 0
    assert Path("held/model.safetensors").read_bytes() == Path("streamed/model.safetensors").read_bytes()


def test_an_interrupted_run_ends_as_if_nothing_had_happened(dp_flags, weights, monkeypatch, capsys):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
    all_flags = [*dp_flags, weights, "--num_layers_to_freeze=3", "--precision=bfloat16", "--augment"]

    with interrupted_in_epoch(2):
        assert command(*all_flags, "--run_dir=run") == 130
    assert capsys.readouterr().err.endswith("go on with python -m scatterdp finetune --resume=run\n")
    assert command("--resume=run") == 0
    assert command(*all_flags, "--run_dir=whole") == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    one, other = load_file("whole/model.safetensors"), load_file("public/model.safetensors")
    assert not torch.equal(one["classifier.group4.0.conv_0.weight"], other["classifier.group4.0.conv_0.weight"])


def test_a_run_that_found_the_disk_full_goes_on(flags, public, capsys):
    all_flags = [*flags, "--num_train_epochs=1", f"--dataset={public}", "--disable_dp"]
    with files_of_at_most(20_000):
        assert command(*all_flags, "--run_dir=run") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: run_dir=run: cannot be written (File too large); make room, and go on with python -m scatterdp finetune --resume=run"
    )
    assert names(Path("run")) == {"config.json", "metrics.jsonl"}
    assert command("--resume=run") == 0


def test_a_features_folder_that_cannot_be_made(flags, public, capsys):
    assert command(*flags, f"--dataset={public}", "--disable_dp", "--features_dir=/proc/features") == 2
    assert capsys.readouterr().err == (
        "error: features_dir=/proc/features: cannot be written (No such file or directory); give another\n"
    )


def test_a_resumed_run_refuses_other_weights(dp_flags, weights, monkeypatch, capsys):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", 0)
    with interrupted_in_epoch(1):
        assert command(*dp_flags, weights, "--run_dir=run") == 130
    tensors = load_file("public/model.safetensors")
    tensors["classifier.stem.weight"] += 1
    save_file(tensors, "public/model.safetensors")
    capsys.readouterr()
    assert command("--resume=run") == 2
    assert "resume: data, settings, device or versions are not those" in capsys.readouterr().err


def test_part_of_the_test_images(dp_flags, monkeypatch):
    from scatterdp.finetuning import running

    monkeypatch.setattr(running, "EVAL_BATCH", 6)
    assert command(*dp_flags, "--max_eval_batches=2", "--run_dir=run") == 0  # fmt: skip
    certificate = read("run", "certificate.json")
    assert certificate["data"]["num_test"] == 12
    confusion = np.load("run/test_predictions.npz")["confusion"]
    assert confusion[:, 2].sum() == 12
    assert len(set(confusion[:, 0])) == 3  # of every class


def test_a_delta_too_large_is_warned_of(flags, private, capsys):
    assert (
        command(
            *flags,
            f"--dataset={private}",
            "--noise_multiplier=1",
            "--target_delta=0.01",
            "--train_device_batch_size=180",
            "--run_dir=run",
        )
        == 0
    )
    assert re.search(r"warning: .*0.01.*give a smaller --target_delta", capsys.readouterr().err)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch taken",)


class TestRefusals:
    """One sentence, exit code 2, nothing written."""

    def refused(self, capsys, *flags: str) -> str:
        assert command(*flags, "--run_dir=refused") == 2
        assert not Path("refused").exists()
        return capsys.readouterr().err

    def test_another_networks_weights(self, dp_flags, capsys):
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}, "other.pth")
        message = self.refused(capsys, *dp_flags, "--finetune_path=other.pth")
        assert message.startswith(
            "error: finetune_path=other.pth: of another network: stem.weight is missing, it has conv1.weight"
        )

    def test_the_wrong_shape(self, dp_flags, weights, capsys):
        tensors = load_file("public/model.safetensors")
        tensors["classifier.stem.weight"] = torch.zeros(1, 1)
        save_file(tensors, "wrong.safetensors")
        message = self.refused(capsys, *dp_flags, "--finetune_path=wrong.safetensors")
        assert "stem.weight has shape (1, 1), expected (32, 3, 7, 7)" in message

    def test_the_last_layer_of_other_classes(self, dp_flags, weights, capsys):
        message = self.refused(capsys, *dp_flags, weights, "--no_finetune_cut_last_layer")
        assert "linear.weight has shape (4, 64), expected (3, 64)" in message

    def test_a_pickle_that_would_run_code(self, dp_flags, capsys):
        torch.save({"stem.weight": Hostile()}, "hostile.pth")
        assert "refused, for reading it would run code" in self.refused(
            capsys, *dp_flags, "--finetune_path=hostile.pth"
        )
        assert not Path("taken").exists()

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--finetune_path=nowhere.npz"], "finetune_path=nowhere.npz: no such file"),
            (["--num_layers_to_freeze=3"], "num_layers_to_freeze=3: would freeze random weights"),
            (["--num_layers_to_freeze=-1"], "num_layers_to_freeze=-1: expected a whole number ≥ 0"),
            (["--disable_dp"], "dp_sigma=0.5 beside disable_dp"),
            (["--target_epsilon=3"], "dp_sigma and target_epsilon: each determines the others"),
            (["--dataset=nowhere"], "--dataset=nowhere: no such folder"),
            (
                ["--grad_acc_steps=100"],
                "train_device_batch_size=20 times grad_acc_steps=100 is 2000, expected at most 180",
            ),
            (["--lr_warmup_epochs=2"], "lr_warmup_epochs=2: expected less than num_train_epochs=2"),
            (["--dp_clip_norm=0"], "dp_clip_norm=0.0: expected a finite number > 0"),
            (["--dp_sigma=nan"], "dp_sigma=nan: expected a finite number ≥ 0"),
        ],
    )
    def test_flags(self, dp_flags, capsys, more, message):
        assert message in self.refused(capsys, *dp_flags, *more)

    def test_too_many_layers(self, dp_flags, weights, capsys):
        assert "num_layers_to_freeze=11: expected 0 to 10" in self.refused(
            capsys, *dp_flags, weights, "--num_layers_to_freeze=11"
        )

    def test_no_data(self, flags, capsys):
        assert "dataset: none given" in self.refused(capsys, *flags)
