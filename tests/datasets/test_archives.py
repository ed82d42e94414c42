from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scatterdp.datasets.archives import gunzip, read_file, read_gzipped_members, read_members
from scatterdp.errors import DatasetError

LIMITS = {"a/one": 10, "a/two": 10}
GOOD = {"a/one": b"1" * 10, "a/two": b"2" * 5}


def read(path: Path, total_limit: int = 1 << 20) -> dict[str, bytes]:
    return dict(read_gzipped_members(path, LIMITS, total_limit=total_limit))


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_expected_members_are_read_and_others_ignored(tmp_path: Path, write_tar) -> None:
    path = write_tar(tmp_path / "a.tgz", {"readme": b"x" * 99, "./a/two": b"2" * 5, "a/one": b"1" * 10})
    assert read(path) == GOOD


@pytest.mark.parametrize("name", ["../evil", "/tmp/scatterdp-evil", "a/../../evil"])
def test_a_path_that_leads_outside_is_refused_and_nothing_is_written(tmp_path: Path, write_tar, name: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = write_tar(folder / "a.tgz", {name: b"evil"} | GOOD)
    with pytest.raises(DatasetError, match="leads outside the archive"):
        read(path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.tgz"]
    assert not Path("/tmp/scatterdp-evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a_link_or_device_in_place_of_a_file(tmp_path: Path, write_tar, kind: bytes) -> None:
    path = write_tar(tmp_path / "a.tgz", {"a/one": link("a/one", "/etc/passwd", kind), "a/two": b"2"})
    with pytest.raises(DatasetError, match="member a/one is not a regular file"):
        read(path)


def test_a_member_that_is_too_large(tmp_path: Path, write_tar) -> None:
    path = write_tar(tmp_path / "a.tgz", GOOD | {"a/two": b"2" * 11})
    with pytest.raises(DatasetError, match=r"member a/two of .* holds more than the expected 10 bytes"):
        read(path)


def test_a_bomb_among_the_ignored_members(tmp_path: Path, write_tar) -> None:
    path = write_tar(tmp_path / "a.tgz", {"bomb": bytes(5 << 20)} | GOOD)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(DatasetError, match="unpacks to more than 1048576 bytes"):
        read(path)


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a/one")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"1"))
    with pytest.raises(DatasetError, match="holds a/one twice"):
        read(path)


def test_a_missing_member(tmp_path: Path, write_tar) -> None:
    with pytest.raises(DatasetError, match=r"a\.tgz lacks a/two$"):
        read(write_tar(tmp_path / "a.tgz", {"a/one": b"1"}))


def test_an_absent_or_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read(tmp_path / "none.tgz")
    page = tmp_path / "page.tgz"
    page.write_bytes(b"<html>please log in</html>")
    with pytest.raises(DatasetError, match="damaged or cut short: Not a gzipped file"):
        read(page)


def test_every_truncation_is_noticed(tmp_path: Path, write_tar) -> None:
    whole = write_tar(tmp_path / "a.tgz", GOOD).read_bytes()
    cut = tmp_path / "cut.tgz"
    for size in range(0, 100, 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match=r"cut short|lacks"):
            read(cut)


@given(st.binary(max_size=3000), st.integers(0, 2000))
@settings(max_examples=200)
def test_no_bytes_raise_anything_but_a_dataset_error(noise: bytes, position: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "ü" * 40}
    ) as archive:
        for name, content in GOOD.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = buffer.getvalue()
    damaged = io.BytesIO(data[:position] + noise + data[position + len(noise) :])
    try:
        found = dict(read_members(damaged, LIMITS, total_limit=1 << 20, source="made"))
    except DatasetError:
        return
    assert found.keys() == LIMITS.keys()


def test_gunzip_stops_at_its_limit() -> None:
    assert gunzip(gzip.compress(b"12345"), 5, "made") == b"12345"
    with pytest.raises(DatasetError, match="made holds more than the expected 5 bytes"):
        gunzip(gzip.compress(bytes(10_000_000)), 5, "made")
    with pytest.raises(DatasetError, match="made cannot be read"):
        gunzip(gzip.compress(b"12345")[:-3], 5, "made")


def test_read_file_plain_and_gzipped(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"12345")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"12345"))
    assert read_file(tmp_path / "plain", 5) == read_file(tmp_path / "packed.gz", 5) == b"12345"
    with pytest.raises(DatasetError, match="plain holds more than the expected 4 bytes"):
        read_file(tmp_path / "plain", 4)
    with pytest.raises(DatasetError, match="absent cannot be read: No such file"):
        read_file(tmp_path / "absent", 4)
