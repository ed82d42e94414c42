"""C++ files that are compiled where they run: for this processor and one image shape, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scatterdp.processor import cpu_instructions

# Not -ffast-math: linking with it switches the whole process to flushing small numbers to zero.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-signed-zeros", "-fassociative-math", "-shared", "-fPIC", "-pthread"),
)


class KernelUnavailableError(RuntimeError):
    """There is no compiler, it failed, or its result is not what it should be."""


def compiled(source: Path, macros: Mapping[str, int]) -> Path:
    """The shared library of a C++ file with these macros; compiled when it is not in the cache folder.

    Raises:
        KernelUnavailableError: no compiler, or it failed.
    """
    compiler = _compiler()
    arguments = [*compiler, *FLAGS, *(f"-D{name}={value}" for name, value in macros.items())]
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise KernelUnavailableError(f"the compiler {shlex.join(compiler)} cannot be run ({error})") from error
    facts = b"\0".join([source.read_bytes(), version, cpu_instructions().encode(), *(a.encode() for a in arguments)])
    folder = _cache_folder()
    library = folder / f"{source.stem}-{hashlib.sha256(facts).hexdigest()[:24]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary) / source.with_suffix(".so").name
            done = subprocess.run(
                [*arguments, str(source), "-o", str(built)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                first_error = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
                raise KernelUnavailableError(f"the compiler {shlex.join(compiler)} failed ({first_error})")
            os.replace(built, library)
    return library


def _compiler() -> list[str]:
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise KernelUnavailableError("there is no C++ compiler (g++ or clang++; name one with CXX)")


def _cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scatterdp"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:  # a read-only home: compile for this process alone
        return Path(tempfile.mkdtemp(prefix="scatterdp-"))
