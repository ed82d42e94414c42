"""``scatterdp cache ls | verify | rm``."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pytest
import torch

from scatterdp.cache import cache_path, companion_paths, extract_features, extraction, layout, partial_path, writer_lock
from scatterdp.commands.cache import run
from scatterdp.datasets.dataset import Dataset
from scatterdp.errors import CacheLockedError, ConfigError
from scatterdp.extractors.base import fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainConfig:
    scale: float = 1.0


class Plain:
    """The image itself times a number; stops like Ctrl-C after some images."""

    name = "plain"

    def __init__(self, scale: float = 1.0, stop_after: int = 10**9) -> None:
        self.config = PlainConfig(scale=scale)
        self.input_shape = self.output_shape = (1, 8, 8)
        self.fingerprint = fingerprint("Plain", self.config, self.input_shape, preprocessing={}, versions={})
        self.left = stop_after

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.left <= 0:
            raise KeyboardInterrupt
        self.left -= len(images)
        return images * self.config.scale

    def to(self, device: torch.device | str) -> Self:
        return self


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
LABELS = np.arange(30) % 2
DATASET = Dataset(
    name="made",
    x_train=IMAGES[:20],
    y_train=LABELS[:20],
    x_test=IMAGES[20:],
    y_test=LABELS[20:],
    class_names=("a", "b"),
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(layout, "_CHUNK_BYTES", 5 * 256)
    monkeypatch.setattr(extraction, "_BATCH_BYTES", 5 * 256)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "features"
    made.mkdir()
    (made / "README.md").write_text("about caches")
    return made


def complete(folder: Path, scale: float = 1.0) -> Path:
    with extract_features(DATASET, Plain(scale), features_dir=folder) as cache:
        return cache.path


def partial(folder: Path, scale: float = 2.0) -> Path:
    """Ten of 30 rows."""
    with pytest.raises(KeyboardInterrupt):
        extract_features(DATASET, Plain(scale, stop_after=10), features_dir=folder)
    return cache_path(DATASET, Plain(scale), features_dir=folder)


def at(folder: Path) -> str:
    return f"--features_dir={folder}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- ls


def test_ls_prints_a_line_for_each_cache_with_its_state(folder, capsys):
    done, undone = complete(folder), partial(folder)
    damaged = complete(folder, 3.0)
    os.truncate(damaged, 500)
    assert run(["ls", at(folder)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "DATA", "SET", "EXTRACTOR", "DTYPE", "ROWS", "SHAPE", "SIZE", "STATE"]
    by_name = {line.split()[0]: line.split(maxsplit=7) for line in lines}
    assert set(by_name) == {done.name, undone.name, damaged.name}
    assert by_name[done.name][1:6] == ["made", "plain", "float32", "20+10", "1×8×8"]
    assert by_name[done.name][7] == "kB  complete"
    assert by_name[undone.name][1:6] == ["made", "plain", "float32", "20+10", "1×8×8"]
    assert by_name[undone.name][7] == "kB  partial 33 %"
    assert lines[[line.split()[0] for line in lines].index(damaged.name)].endswith("500 B    damaged: is truncated")


def test_ls_names_the_process_that_is_writing(folder, capsys):
    path = partial(folder)
    with writer_lock(path):
        run(["ls", at(folder)])
    assert f"partial 33 %, locked by process {os.getpid()}" in capsys.readouterr().out
    run(["ls", at(folder)])
    assert "locked" not in capsys.readouterr().out


def test_ls_does_not_get_in_the_way_of_a_writer(folder, capsys):
    path = partial(folder)
    for _ in range(20):
        run(["ls", at(folder)])
        with writer_lock(path):
            pass


def test_an_empty_folder_is_no_error_and_a_missing_one_is(folder, capsys):
    assert run(["ls", at(folder)]) == 0
    assert run(["verify", at(folder)]) == 0
    assert capsys.readouterr().out == f"no feature caches in {folder}\n" * 2
    for command in (["ls"], ["verify"], ["rm", "x"]):
        with pytest.raises(ConfigError, match=r"features_dir=.*nowhere: no such folder"):
            run([*command, at(folder / "nowhere")])


def test_the_default_folder_is_features(folder, capsys, monkeypatch):
    path = complete(folder)
    monkeypatch.chdir(folder.parent)
    run(["ls"])
    assert path.name in capsys.readouterr().out


# ---------------------------------------------------------------- verify


def test_verify_prints_ok_or_failed_for_each_and_the_exit_code_says_so(folder, capsys):
    good, bad = complete(folder), complete(folder, 3.0)
    undone = partial(folder)
    assert run(["verify", at(folder)]) == 0
    told = [f"OK      {good.name}", f"OK      {bad.name}"]
    told.append(f"PARTIAL {undone.name}: not verified, its extraction has not finished")
    assert capsys.readouterr().out.splitlines() == sorted(told, key=lambda line: line.split()[1])
    with h5py.File(bad, "r+") as file:
        file["train/features"][7, 0, 0, 0] += 1  # pyright: ignore
    assert run(["verify", at(folder)]) == 1
    out = capsys.readouterr().out
    assert f"OK      {good.name}" in out
    assert f"FAILED  {bad.name}: train rows 5 to 9 do not match their digest; remove it with" in out
    assert run(["verify", good.name, at(folder)]) == 0
    assert run(["verify", bad.name, at(folder)]) == 1


def test_a_file_of_another_kind_is_not_called_a_damaged_cache(folder, capsys):
    (folder / "notes.h5").write_text("mine")
    assert run(["ls", at(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("not a feature cache")
    assert run(["verify", at(folder)]) == 1
    assert capsys.readouterr().out.endswith("notes.h5: is not a feature cache; remove it by hand if you mean to\n")


def test_verify_fails_a_named_unfinished_cache_and_refuses_an_unknown_name(folder, capsys):
    path = partial(folder)
    assert run(["verify", path.name, at(folder)]) == 1
    assert f"FAILED  {path.name}: no such feature cache" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"other\.h5: no such feature cache in features_dir="):
        run(["verify", "other.h5", at(folder)])


# ---------------------------------------------------------------- rm


@pytest.mark.parametrize("spelling", ["name", "stem", "path", "relative"])
def test_rm_removes_the_named_cache_only_and_says_what_it_freed(folder, capsys, spelling, monkeypatch):
    kept = complete(folder)
    before = names(folder)
    path = complete(folder, 3.0)
    size = path.stat().st_size
    monkeypatch.chdir(folder.parent)
    given = {"name": path.name, "stem": path.stem, "path": str(path), "relative": f"features/../features/{path.name}"}
    assert run(["rm", given[spelling], at(folder)]) == 0
    assert capsys.readouterr().out == f"removed {path.name}, {size / 1000:.1f} kB freed\n"
    assert names(folder) == before
    assert kept.exists()


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_rm_removes_an_unfinished_cache_with_all_that_belongs_to_it(folder, capsys, suffix):
    before = names(folder)
    path = partial(folder)
    for companion in companion_paths(path):
        companion.touch()
    run(["rm", path.name + suffix, at(folder)])
    assert names(folder) == before
    assert "kB freed" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["truncated", "text", "empty"])
def test_rm_removes_a_damaged_cache_by_its_name(folder, content):
    path = complete(folder)
    if content == "truncated":
        os.truncate(path, 1000)
    else:
        path.write_text("text" if content == "text" else "")
    run(["rm", path.name, at(folder)])
    assert names(folder) == {"README.md"}


def test_rm_refuses_all_that_is_not_a_feature_cache(folder):
    path = complete(folder)
    with h5py.File(folder / "embeddings.h5", "w") as file:
        file["x"] = [1.0]
    shutil.copy(folder / "embeddings.h5", folder / f"{path.stem[:-1]}{'0' if path.stem[-1] != '0' else '1'}.h5")
    (folder / "notes.h5").write_text("mine")
    before = names(folder)
    for name in sorted(before - {path.name, path.name + ".lock", "README.md"}):
        with pytest.raises(ConfigError, match=f"{name}: is not a feature cache; remove it by hand"):
            run(["rm", path.name, name, at(folder)])
    for name in ("README.md", "README", "", ".", "..", ".h5", "*", "made*"):
        with pytest.raises(ConfigError, match=r"no such feature cache|expected a feature cache inside"):
            run(["rm", path.name, name, at(folder)])
    assert names(folder) == before  # nor was the other name removed


def test_rm_refuses_a_path_outside_the_folder(folder):
    outside = complete(folder.parent / "elsewhere")
    shutil.copy(outside, folder / outside.name)
    for name in (str(outside), f"../elsewhere/{outside.name}", f"{folder}/../elsewhere/{outside.name}", "/"):
        with pytest.raises(ConfigError, match=r"inside features_dir=|no such feature cache"):
            run(["rm", name, at(folder)])
    assert outside.exists()
    assert (folder / outside.name).exists()


def test_rm_refuses_a_cache_that_is_being_written(folder):
    other, path = complete(folder), partial(folder)
    before = names(folder)
    with (
        writer_lock(path),
        pytest.raises(CacheLockedError, match=f"process {os.getpid()} is writing this feature cache"),
    ):
        run(["rm", other.name, path.name, at(folder)])
    assert partial_path(path).exists()
    assert names(folder) - {other.name + ".pid"} == before


def test_rm_in_a_folder_that_cannot_be_written(folder, monkeypatch):
    path = complete(folder)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(
        ConfigError, match=r"^features_dir=.*: cannot be written \(Permission denied\); make it writable first$"
    ):
        run(["rm", path.name, at(folder)])
    assert path.exists()


def test_rm_wants_a_name(folder):
    with pytest.raises(ConfigError, match="names: expected at least one"):
        run(["rm", at(folder)])


def test_an_unknown_subcommand_leaves_with_exit_code_2(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        run(["remove", at(folder)])
    assert caught.value.code == 2
