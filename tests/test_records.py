"""The run folder: what is written, atomically, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from scatterdp.config import BaselinesConfig
from scatterdp.errors import ConfigError, UserError
from scatterdp.records import RunFolder, peak_memory_bytes

CONFIG = BaselinesConfig(dataset="digits", epochs=3, seed=1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestCreate:
    def test_a_new_folder_with_its_config(self, tmp_path):
        path = tmp_path / "a" / "b"
        folder = RunFolder.create(path, CONFIG)
        assert folder.path == path
        assert names(path) == ["config.json"]
        assert json.loads((path / "config.json").read_text()) == CONFIG.to_json()

    def test_an_empty_folder_is_as_good_as_none(self, tmp_path):
        RunFolder.create(tmp_path, CONFIG)
        assert names(tmp_path) == ["config.json"]

    def test_a_run_that_is_there_can_be_gone_on_with(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(
            ConfigError, match=rf"give another --run_dir, or --resume={re.escape(str(tmp_path))} to go on"
        ):
            RunFolder.create(tmp_path, CONFIG)

    @pytest.mark.parametrize("kind", ["folder", "hidden", "file"])
    def test_what_is_there_is_left_alone(self, tmp_path, kind):
        path = tmp_path / "run"
        if kind == "file":
            path.write_text("mine")
        else:
            path.mkdir()
            (path / ("notes.txt" if kind == "folder" else ".hidden")).write_text("mine")
        message = f"run_dir={path}: is there already and is left alone; give another --run_dir"
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            RunFolder.create(path, CONFIG)
        content = path if kind == "file" else next(path.iterdir())
        assert content.read_text() == "mine"
        assert kind == "file" or len(names(path)) == 1

    def test_a_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "run"
        with pytest.raises(
            ConfigError,
            match=rf"^run_dir={re.escape(str(path))}: \S+file is not a folder to write in; give another --run_dir$",
        ):
            RunFolder.create(path, CONFIG)


class TestWhole:
    @pytest.mark.parametrize("made", [True, False])
    def test_appears_when_it_is_complete(self, tmp_path, made):
        path = tmp_path / "a" / "b"
        if made:
            path.mkdir(parents=True)
        with RunFolder.whole(path, CONFIG) as folder:
            folder.write_json("summary.json", {})
            assert not path.exists() or names(path) == []
        assert folder.path == path
        assert names(path) == ["config.json", "summary.json"]
        assert names(tmp_path / "a") == ["b"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
    def test_after_an_error_nothing_is_there(self, tmp_path, error):
        def fails():
            with RunFolder.whole(tmp_path / "a" / "b", CONFIG) as folder:
                folder.write_json("certificate.json", {})
                raise error

        with pytest.raises(error):
            fails()
        assert names(tmp_path) == []

    def test_a_disk_that_fails_is_one_sentence(self, tmp_path):
        path = tmp_path / "b"
        with pytest.raises(UserError) as raised, RunFolder.whole(path, CONFIG):
            raise OSError(28, "No space left on device")
        assert str(raised.value) == (
            f"run_dir={path}: cannot be written (No space left on device); make room, or give another --run_dir"
        )
        assert names(tmp_path) == []

    def test_a_folder_that_is_gone_is_one_sentence(self, tmp_path):
        folder = RunFolder(tmp_path / "gone")
        folder.again = "go on with it"
        with pytest.raises(UserError) as raised:
            folder.append_metrics({"step": 1})
        assert (
            str(raised.value)
            == f"run_dir={tmp_path / 'gone'}: cannot be written (No such file or directory); go on with it"
        )

    def test_what_is_there_is_left_alone(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ConfigError) as raised, RunFolder.whole(tmp_path, CONFIG):
            pass
        assert str(raised.value) == f"run_dir={tmp_path}: is there already and is left alone; give another --run_dir"
        assert names(tmp_path) == ["notes.txt"]


class TestReopen:
    def test_gives_the_config_back(self, tmp_path):
        RunFolder.create(tmp_path / "run", CONFIG)
        folder, config = RunFolder.reopen(tmp_path / "run", BaselinesConfig)
        assert folder.path == tmp_path / "run"
        assert config == CONFIG

    @pytest.mark.parametrize("made", [True, False])
    def test_folders_that_are_no_runs(self, tmp_path, made):
        path = tmp_path / "run"
        if made:
            path.mkdir()
        with pytest.raises(
            ConfigError, match=rf"^resume={re.escape(str(path))}: not a run folder \(no config\.json in it\)$"
        ):
            RunFolder.reopen(path, BaselinesConfig)
        assert path.exists() == made

    @pytest.mark.parametrize("content", [b"", b"{", b'{"dataset": "digits"', b"\xff\xfe"])
    def test_a_damaged_config(self, tmp_path, content):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"^resume={re.escape(str(tmp_path))}: its config\.json is damaged \("):
            RunFolder.reopen(tmp_path, BaselinesConfig)


class TestLock:
    def test_another_process_is_kept_out(self, tmp_path):
        folder = RunFolder.create(tmp_path / "run", CONFIG)
        code = (
            "import sys; from pathlib import Path; from scatterdp.records import RunFolder\n"
            "with RunFolder(Path(sys.argv[1])).locked(): print('inside')"
        )

        with folder.locked():
            refused = subprocess.run(
                [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, timeout=120
            )
        assert refused.returncode == 1
        assert (
            f"RunLockedError: run_dir={folder.path}: another live process is running this run; wait for it"
            in refused.stderr
        )
        assert refused.stdout == ""

    def test_is_free_again_after_an_error(self, tmp_path):
        folder = RunFolder.create(tmp_path / "run", CONFIG)
        with pytest.raises(UserError, match="mine"), folder.locked():
            raise UserError("mine")
        with folder.locked():
            pass


class TestWriting:
    def test_json_is_whole_or_not_there(self, tmp_path, monkeypatch):
        folder = RunFolder(tmp_path)
        folder.write_json("a.json", {"ε": 1.5, "list": [None, True]})
        assert json.loads((tmp_path / "a.json").read_text()) == {"ε": 1.5, "list": [None, True]}

        def fails(source, target):
            raise OSError(5, "no")

        monkeypatch.setattr(os, "replace", fails)
        with pytest.raises(UserError, match=r"cannot be written \(no\)"):
            folder.write_json("a.json", {"other": 1})
        assert names(tmp_path) == ["a.json"]
        assert json.loads((tmp_path / "a.json").read_text()) == {"ε": 1.5, "list": [None, True]}

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_json_has_no_numbers_that_json_does_not_have(self, tmp_path, value):
        with pytest.raises(ValueError, match="JSON"):
            RunFolder(tmp_path).write_json("a.json", {"a": value})
        assert names(tmp_path) == []

    def test_metrics_are_replaced_and_appended(self, tmp_path):
        folder = RunFolder(tmp_path)
        folder.write_metrics([{"step": 1}, {"step": 2}])
        folder.append_metrics({"step": 3, "epsilon": None})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 2}, {"step": 3, "epsilon": None}]
        folder.write_metrics([])
        assert (tmp_path / "metrics.jsonl").read_text() == ""
        assert names(tmp_path) == ["metrics.jsonl"]

    def test_metrics_are_strict_json_too(self, tmp_path):
        """A diverged run has a loss that is not finite; readers of strict JSON must not stumble over it."""
        folder = RunFolder(tmp_path)
        folder.write_metrics([{"train_loss_not_private": float("inf")}])
        folder.append_metrics({"train_loss_not_private": float("nan")})

        def refuse(name: str):
            raise AssertionError(f"{name} is no JSON")

        for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=refuse)

    def test_models_carry_their_facts(self, tmp_path):
        tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2, requires_grad=True)}
        RunFolder(tmp_path).write_model("model.safetensors", tensors, {"plan": {"lr": 1.5}, "classes": ["x", "ü"]})
        assert names(tmp_path) == ["model.safetensors"]
        loaded = load_file(tmp_path / "model.safetensors")
        assert loaded.keys() == {"a", "b"}
        assert torch.equal(loaded["a"], tensors["a"])
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            facts = json.loads(file.metadata()["facts"])
        assert facts == {"plan": {"lr": 1.5}, "classes": ["x", "ü"]}

    def test_the_same_model_is_the_same_file(self, tmp_path):
        facts = {name: name for name in ("plan", "classes", "extractor", "config", "fingerprint", "shape", "dtype")}
        contents = set()
        for _ in range(5):
            RunFolder(tmp_path).write_model("model.safetensors", {"a": torch.ones(3), "b": torch.zeros(2)}, facts)
            contents.add((tmp_path / "model.safetensors").read_bytes())
        assert len(contents) == 1

    def test_finish_removes_the_checkpoint(self, tmp_path):
        folder = RunFolder(tmp_path)
        assert folder.checkpoint == tmp_path / "checkpoint.pt"
        folder.finish()
        folder.checkpoint.write_bytes(b"secret")
        folder.finish()
        assert names(tmp_path) == []


@pytest.mark.parametrize("by_example", [True, False])
def test_test_predictions_count_every_pair_and_name_examples_only_of_published_data(tmp_path, by_example):
    predicted, labels = np.array([2, 0, 2, 2, 1]), np.array([2, 1, 2, 0, 1])
    RunFolder(tmp_path).write_test_predictions(predicted, labels, by_example=by_example)
    assert names(tmp_path) == ["test_predictions.npz"]
    with np.load(tmp_path / "test_predictions.npz", allow_pickle=False) as stored:
        assert stored["confusion"].tolist() == [[0, 2, 1], [1, 0, 1], [1, 1, 1], [2, 2, 2]]
        assert ("predicted" in stored) == by_example
        assert not by_example or stored["predicted"].tolist() == [2, 0, 2, 2, 1]


def test_peak_memory_is_in_bytes():
    peak = peak_memory_bytes()
    assert 50 * 2**20 < peak < 2**40
    assert peak_memory_bytes() >= peak
