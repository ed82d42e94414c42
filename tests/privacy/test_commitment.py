import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import files_of_at_most

from scatterdp.errors import UserError
from scatterdp.privacy.commitment import commitment, commitment_key

FINGERPRINT = "a" * 64


def test_the_key_is_made_once(tmp_path: Path):
    key = commitment_key(tmp_path)
    path = tmp_path / "commitment.key"
    assert len(key) == 32
    assert path.read_bytes() == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.stat().st_mtime_ns
    assert [commitment_key(tmp_path) for _ in range(3)] == [key] * 3
    assert path.stat().st_mtime_ns == written
    assert [entry.name for entry in tmp_path.iterdir()] == ["commitment.key"]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path):
    previous = os.umask(0)
    try:
        commitment_key(tmp_path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "commitment.key").stat().st_mode) == 0o600


def test_a_full_disk_is_one_sentence(tmp_path):
    with (
        files_of_at_most(10),
        pytest.raises(UserError, match=r"^features_dir=.*File too large\); make room, and go on"),
    ):
        commitment_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


def refusing(error: int) -> Callable[..., None]:
    """What the operating system refuses; tests may run as somebody whom it refuses nothing."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(error, os.strerror(error))

    return refuse


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", refusing(errno.EROFS))
    with pytest.raises(UserError, match=r"^features_dir=.*Read-only file system\); make it writable, and go on"):
        commitment_key(tmp_path)


def test_a_file_system_without_hard_links_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", refusing(errno.EPERM))
    with pytest.raises(
        UserError, match=r"not permitted\); its file system may lack hard links, move the folder to another"
    ):
        commitment_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_key_is_one_sentence(tmp_path, monkeypatch):
    commitment_key(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", refusing(errno.EACCES))
    with pytest.raises(
        UserError, match=r"commitment.key: cannot be read \(Permission denied\): the key of somebody else"
    ):
        commitment_key(tmp_path)


def test_a_crash_while_it_is_made_leaves_no_half_of_one(tmp_path: Path, monkeypatch):
    def crash(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", crash)
        with pytest.raises(OSError, match="no space left"):
            commitment_key(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(commitment_key(tmp_path)) == 32


def test_whoever_is_first_makes_it(tmp_path: Path, monkeypatch):
    link = os.link

    def late(source, target):
        (tmp_path / "commitment.key").write_bytes(b"f" * 32)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert commitment_key(tmp_path) == b"f" * 32
    assert [entry.name for entry in tmp_path.iterdir()] == ["commitment.key"]


def test_each_folder_has_its_own(tmp_path: Path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    assert len({commitment_key(folder) for folder in folders}) == 3


def test_a_key_that_is_there_is_used(tmp_path: Path):
    (tmp_path / "commitment.key").write_bytes(bytes(range(32)))
    assert commitment_key(tmp_path) == bytes(range(32))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_size(tmp_path: Path, size: int):
    path = tmp_path / "commitment.key"
    path.write_bytes(b"k" * size)
    with pytest.raises(
        UserError, match=rf"commitment\.key: found {size} bytes, expected a key of 32; move the file away"
    ):
        commitment_key(tmp_path)
    assert path.read_bytes() == b"k" * size


def test_it_changes_with_key_fingerprint_and_nonce():
    first, second = bytes(32), b"\1" + bytes(31)
    values = [
        commitment(text, key, nonce)
        for text in (FINGERPRINT, "b" * 64, FINGERPRINT[:-1])
        for key in (first, second)
        for nonce in ("00", "01")
    ]
    assert len(set(values)) == 12
    assert commitment(FINGERPRINT, first, "00") == values[0]
    for value in values:
        assert len(bytes.fromhex(value)) == 32
        assert FINGERPRINT not in value


def test_it_is_the_standard_mac():
    # RFC 4231, test case 2: its message cut at the first space into nonce and fingerprint.
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert commitment("do ya want for nothing?", b"Jefe", "what") == expected


def test_fingerprints_that_differ_in_one_bit_have_unrelated_commitments():
    key = bytes(range(32))
    first, second = (int(commitment(text, key, "00"), 16) for text in (FINGERPRINT, FINGERPRINT[:-1] + "b"))
    assert 80 < (first ^ second).bit_count() < 176
