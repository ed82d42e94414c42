"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from run_folders import files_of_at_most

from scatterdp.errors import ConfigError
from scatterdp.writing import json_text, make_folder, whole_file, write_whole


@pytest.mark.parametrize("content", ["ε = 3\n", b"\x00\xff"])
def test_a_file_is_replaced(tmp_path: Path, content: str | bytes):
    path = tmp_path / "file"
    path.write_text("before")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_until_the_last_moment_the_old_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    path.write_text("before")

    def is_killed(source: Path, target: Path) -> None:
        assert Path(source).read_text() == "after"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", is_killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "after")
    assert path.read_text() == "before"


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("before")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_whole(tmp_path / "file", "after" * 100)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


@pytest.mark.parametrize("there", [True, False])
def test_a_private_file_is_the_owners(tmp_path: Path, there):
    if there:
        (tmp_path / "key.tmp").touch(mode=0o644)
    with whole_file(tmp_path / "key", private=True) as file:
        assert (tmp_path / "key.tmp").stat().st_mode & 0o777 == 0o600
        file.write(b"secret")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key").read_bytes() == b"secret"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as raised:
        make_folder(tmp_path / "file" / "a", argument="logdir")
    assert str(raised.value) == f"logdir={tmp_path}/file/a: cannot be written (Not a directory); give another"


def test_json_is_strict():
    assert json.loads(json_text({"ε": [1, None, "ö"]})) == {"ε": [1, None, "ö"]}
    with pytest.raises(ValueError, match="JSON"):
        json_text(float("nan"))
