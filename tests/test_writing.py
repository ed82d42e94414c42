"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scatterdp.writing import json_text, write_whole


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


def test_json_is_strict():
    assert json.loads(json_text({"ε": [1, None, "ö"]})) == {"ε": [1, None, "ö"]}
    with pytest.raises(ValueError, match="JSON"):
        json_text(float("nan"))
