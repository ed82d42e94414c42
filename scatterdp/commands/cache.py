"""``python -m scatterdp cache``: list, verify and remove feature caches.

    python -m scatterdp cache ls
    python -m scatterdp cache verify [NAME ...]
    python -m scatterdp cache rm NAME ...

each with ``--features_dir`` (``features`` by default).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scatterdp.cache import (
    Summary,
    companion_paths,
    is_feature_cache,
    list_caches,
    partial_path,
    summarize,
    verify,
    writer_lock,
)
from scatterdp.errors import CacheError, ConfigError
from scatterdp.sizes import in_words

Names = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME ...]")]


@dataclass(frozen=True, kw_only=True)
class Ls:
    """List the feature caches of a folder, complete or not."""

    features_dir: Path = Path("features")
    """Folder of the caches."""

    def __call__(self) -> int:
        folder = _folder(self.features_dir)
        rows = [_describe(summarize(path)) for path in list_caches(folder)]
        if not rows:
            print(f"no feature caches in {self.features_dir}")
            return 0
        header = ("NAME", "DATA SET", "EXTRACTOR", "DTYPE", "ROWS", "SHAPE", "SIZE", "STATE")
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        for row in [header, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return 0


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read caches whole and compare them with their digests; exit code 1 when one fails."""

    names: Names = ()
    """Files to verify; all of the folder when none is named."""
    features_dir: Path = Path("features")
    """Folder of the caches."""

    def __call__(self) -> int:
        folder = _folder(self.features_dir)
        paths = [_named(folder, name) for name in self.names] if self.names else list_caches(folder)
        failed = 0
        for path in paths:
            if not self.names and not path.exists():
                print(f"PARTIAL {path.name}: not verified, its extraction has not finished")
                continue
            try:
                _refuse_foreign(path)
                verify(path)
                print(f"OK      {path.name}")
            except (CacheError, ConfigError) as error:
                failed += 1
                print(f"FAILED  {path.name}: {str(error).removeprefix(f'{path}: ')}")
        if not paths:
            print(f"no feature caches in {self.features_dir}")
        return 1 if failed else 0


@dataclass(frozen=True, kw_only=True)
class Rm:
    """Remove the named caches, with what an unfinished extraction left beside them; never anything else."""

    names: Names
    """Files to remove, by name or by a path in the folder."""
    features_dir: Path = Path("features")
    """Folder of the caches."""

    def __call__(self) -> int:
        folder = _folder(self.features_dir)
        if not self.names:
            raise ConfigError("names: expected at least one feature cache to remove; `cache ls` lists them")
        paths = list(dict.fromkeys(_named(folder, name) for name in self.names))
        for path in paths:
            _refuse_foreign(path)
        try:
            _remove(paths)
        except OSError as error:
            raise ConfigError(
                f"features_dir={folder}: cannot be written ({error.strerror}); make it writable first"
            ) from error
        return 0


def _remove(paths: list[Path]) -> None:
    with ExitStack() as locks:  # all of them before the first is removed
        for path in paths:
            locks.enter_context(writer_lock(path))
        for path in paths:
            freed = 0
            for file in (path, *companion_paths(path)):
                if file.is_file() or file.is_symlink():
                    freed += file.lstat().st_size
                    file.unlink()
            print(f"removed {path.name}, {in_words(freed)} freed")


def _folder(features_dir: Path) -> Path:
    if not features_dir.is_dir():
        raise ConfigError(f"features_dir={features_dir}: no such folder; give the folder of the extracted features")
    return features_dir


def _named(folder: Path, name: str) -> Path:
    """The final path of the cache that a user names, with or without its suffix, by name or by path.

    Raises:
        ConfigError: a path outside the folder, or nothing of that name.
    """
    given = Path(name)
    if len(given.parts) != 1 and given.parent.resolve() != folder.resolve():
        raise ConfigError(f"{name}: expected a feature cache inside features_dir={folder}")
    stem = given.name
    for suffix in (".partial", ".creating", ".h5"):
        stem = stem.removesuffix(suffix)
    path = folder / f"{stem}.h5"
    if path.name == ".h5" or not any(file.is_file() for file in (path, partial_path(path), *companion_paths(path)[:1])):
        raise ConfigError(f"{name}: no such feature cache in features_dir={folder}; `cache ls` lists them")
    return path


def _refuse_foreign(path: Path) -> None:
    """Refuse what is not ours: another kind of HDF5 file, or an unreadable file of another kind of name.

    Raises:
        ConfigError: says that the file is not a feature cache.
    """
    for file in (path, partial_path(path)):
        if file.exists() and not is_feature_cache(file):
            raise ConfigError(f"{file}: is not a feature cache; remove it by hand if you mean to")


def _describe(summary: Summary) -> tuple[str, ...]:
    """One line of the table."""
    if summary.published and summary.damage is not None:
        state = f"damaged: {summary.damage}" if is_feature_cache(summary.path) else "not a feature cache"
    elif summary.published:
        state = "complete"
    elif summary.damage is None:
        state = f"partial {100 * summary.rows_done // sum(summary.rows)} %"
    else:
        state = "partial 0 %"  # its next writer starts it over
    if summary.writer is not None:
        state += f", locked by {summary.writer}"
    attributes = summary.attributes
    if not attributes:
        return (summary.path.name, "-", "-", "-", "-", "-", in_words(summary.size), state)
    return (
        summary.path.name,
        attributes["dataset_name"],
        attributes["extractor_name"],
        attributes["dtype"],
        "+".join(map(str, summary.rows)),
        "×".join(map(str, attributes["output_shape"])),
        in_words(summary.size),
        state,
    )


Command = (
    Annotated[Ls, tyro.conf.subcommand("ls")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Rm, tyro.conf.subcommand("rm")]
)


def run(argv: list[str]) -> int:
    """Run ``cache`` with its arguments.

    Returns:
        The exit code: 0, or 1 when ``verify`` found damage.

    Raises:
        UserError: a name or folder does not fit.
    """
    command: Callable[[], int] = tyro.cli(Command, prog="scatterdp cache", args=argv, use_underscores=True)  # pyright: ignore
    return command()
