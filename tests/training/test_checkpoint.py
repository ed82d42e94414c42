"""Checkpoints: equality, mode, atomicity, hostile and damaged files."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scatterdp.errors import UserError
from scatterdp.privacy.randomness import RandomKey
from scatterdp.training.checkpoint import SCHEMA, Checkpoint


def make(key: RandomKey | None = None) -> Checkpoint:
    return Checkpoint(
        key=key or RandomKey.from_seed(3),
        context="everything that decides the run's numbers",
        normalizer={"mean": torch.arange(3.0), "scale": torch.tensor([1.0, torch.inf, 1e-30])},
        ledger=[{"name": "channel statistics", "event": {"type": "GaussianDpEvent"}, "details": {"a": [1.5, None]}}],
        training={
            "model": {"weight": torch.randn(4, 3), "bias": torch.zeros(4)},
            "optimizer": {"state": {0: {"momentum_buffer": torch.randn(4, 3)}}, "param_groups": [{"lr": 0.1}]},
            "average": {"weight": torch.randn(4, 3)},
            "step": 7,
        },
        metrics=[{"epoch": 1, "epsilon": 0.25, "test_accuracy": 0.5, "note": None}],
        seconds=1.25,
        history=((0, 2), (5, 1)),
        released=2,
        threads=(4,),
        processors=("AVX2",),
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    for field in dataclasses.fields(Checkpoint):
        assert same(getattr(a, field.name), getattr(b, field.name)), field.name


def save_values(path: Path, values: Any, **how: Any) -> None:
    content = io.BytesIO()
    torch.save(values, content, **how)
    sign(path, content.getvalue())


def sign(path: Path, content: bytes) -> None:
    """Write what has the right digest in front, as somebody who knows the format would."""
    path.write_bytes(hashlib.sha256(content).digest() + content)


def stored_values(path: Path) -> dict[str, Any]:
    return torch.load(io.BytesIO(path.read_bytes()[32:]), weights_only=True)


def refused(path: Path, reason: str) -> Any:
    return pytest.raises(
        UserError, match=rf"^{re.escape(str(path))}: {reason}; start the run anew in another --run_dir$"
    )


DAMAGED, OTHER = "damaged checkpoint", "not a checkpoint of this version"


@pytest.mark.parametrize("key", [RandomKey.from_seed(5), RandomKey.from_system()])
def test_what_is_saved_is_loaded(tmp_path, key):
    checkpoint = make(key)
    checkpoint.save(tmp_path / "checkpoint.pt")
    assert_equal(Checkpoint.load(tmp_path / "checkpoint.pt"), checkpoint)


def test_only_the_owner_may_read_it(tmp_path):
    before = os.umask(0)
    try:
        make().save(tmp_path / "checkpoint.pt")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "checkpoint.pt").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_leftover_that_others_may_read_does_not_hold_the_key(tmp_path):
    leftover = tmp_path / "checkpoint.pt.tmp"
    leftover.touch()
    leftover.chmod(0o644)
    make().save(tmp_path / "checkpoint.pt")
    assert stat.S_IMODE((tmp_path / "checkpoint.pt").stat().st_mode) == 0o600


def test_it_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    first = make()
    first.save(path)

    def dies(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        make(RandomKey.from_seed(9)).save(path)
    monkeypatch.undo()
    assert_equal(Checkpoint.load(path), first)
    second = make(RandomKey.from_seed(9))
    second.save(path)
    assert_equal(Checkpoint.load(path), second)


def test_the_new_file_is_on_the_disk_before_it_replaces_the_old_one_and_so_is_its_name_after(tmp_path, monkeypatch):
    """The old file stands, complete, until then."""
    path = tmp_path / "checkpoint.pt"
    first = make()
    first.save(path)
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append("fsync")
        real_fsync(descriptor)

    def replace(source, target):
        events.append("replace")
        assert_equal(Checkpoint.load(path), first)
        assert_equal(Checkpoint.load(Path(source)), second)
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    second = make(RandomKey.from_seed(9))
    second.save(path)
    assert events == ["fsync", "replace", "fsync"]
    assert_equal(Checkpoint.load(path), second)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["plain pickle", "torch, new format", "torch, old format", "inside a checkpoint"])
def test_hostile_pickles_are_not_run(tmp_path, how):
    path, target = tmp_path / "checkpoint.pt", tmp_path / "was here"
    hostile = Hostile(target)
    match how:
        case "plain pickle":
            sign(path, pickle.dumps(hostile))
        case "torch, new format":
            save_values(path, hostile)
        case "torch, old format":
            save_values(path, hostile, _use_new_zipfile_serialization=False)
        case _:
            make().save(path)
            save_values(path, stored_values(path) | {"metrics": [hostile]})
    with refused(path, OTHER):
        Checkpoint.load(path)
    assert not target.exists()
    if how == "plain pickle":
        pickle.loads(path.read_bytes()[32:])
        assert target.exists(), "the file was not hostile"


def test_absent(tmp_path):
    folder = tmp_path / "some run"
    folder.mkdir()
    with pytest.raises(
        UserError,
        match=rf"^resume={re.escape(str(folder))}: has no checkpoint\.pt; start the run anew in another --run_dir$",
    ):
        Checkpoint.load(folder / "checkpoint.pt")


@pytest.mark.parametrize("schema", [None, 0, SCHEMA + 1, str(SCHEMA)])
def test_other_schema(tmp_path, schema):
    path = tmp_path / "checkpoint.pt"
    make().save(path)
    values = stored_values(path)
    values.pop("schema")
    save_values(path, values if schema is None else values | {"schema": schema})
    with refused(path, OTHER):
        Checkpoint.load(path)


@pytest.mark.parametrize("values", [[1, 2], torch.ones(3), None, "text", {}])
def test_other_torch_files(tmp_path, values):
    path = tmp_path / "checkpoint.pt"
    save_values(path, values)
    with refused(path, OTHER):
        Checkpoint.load(path)
    torch.save(values, path)
    with refused(path, DAMAGED):
        Checkpoint.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello\n", b"\x80\x02]q\x00.", bytes(100), b"\xff" * 40])
def test_files_that_are_nothing_of_the_kind(tmp_path, content):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with refused(path, DAMAGED):
        Checkpoint.load(path)
    sign(path, content)
    with refused(path, OTHER):
        Checkpoint.load(path)


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "checkpoint.pt").mkdir()
    with refused(tmp_path / "checkpoint.pt", r"cannot be read \(Is a directory\)"):
        Checkpoint.load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Checkpoint)])
def test_a_missing_part(tmp_path, field):
    path = tmp_path / "checkpoint.pt"
    make().save(path)
    values = stored_values(path)
    del values[field]
    save_values(path, values)
    with refused(path, OTHER):
        Checkpoint.load(path)


@pytest.mark.parametrize("key", [3, {}, {"secret": "00", "seed": 0}, {"secret": "zz" * 32, "seed": 0}])
def test_a_damaged_key(tmp_path, key):
    path = tmp_path / "checkpoint.pt"
    make().save(path)
    save_values(path, stored_values(path) | {"key": key})
    with refused(path, OTHER):
        Checkpoint.load(path)


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_files_are_damaged(tmp_path, cut):
    path = tmp_path / "checkpoint.pt"
    make().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with refused(path, DAMAGED):
        Checkpoint.load(path)


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_never_goes_unnoticed(tmp_path, place, change):
    path = tmp_path / "checkpoint.pt"
    make().save(path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    with refused(path, DAMAGED):
        Checkpoint.load(path)
