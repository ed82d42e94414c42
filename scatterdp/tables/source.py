"""Where a table is: the argument that said so, a path and, inside an archive, a key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from scatterdp.errors import DatasetError

HDF5_SUFFIXES = (".h5", ".hdf5")
KEYED_SUFFIXES = (".npz", *HDF5_SUFFIXES)
"""Files that hold several arrays by name."""

_MOST_NAMES = 12
_LONGEST_NAME = 40


def listed(names: Iterable[str]) -> str:
    """Names of arrays or columns for a message: one line, not all when they are many or long.

    >>> listed(["a", "b" * 50])
    'a, bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb…'
    """
    flat = [" ".join(name.split()) for name in names]
    short = [name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…" for name in flat[:_MOST_NAMES]]
    return ", ".join([*short, "…"] if len(flat) > _MOST_NAMES else short)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file or folder as the user named it.

    Args:
        argument: the flag without its dashes, for messages.
        text: what the user wrote.
        path: the file or folder.
        key: what follows the colon in ``FILE.npz:KEY``; for a ``.csv`` the name of a column.
    """

    argument: str
    text: str
    path: Path
    key: str | None = None

    @classmethod
    def parse(cls, argument: str, text: str, *, keyed: tuple[str, ...] = KEYED_SUFFIXES) -> Self:
        """Split ``PATH[:KEY]``; a path that is there is taken whole, colons and all.

        Args:
            argument: the flag without its dashes.
            text: what the user wrote.
            keyed: suffixes of files that can be followed by a key.

        Raises:
            DatasetError: no such file or folder.
        """
        whole = cls(argument=argument, text=text, path=Path(text))
        if text and whole.path.exists():
            return whole
        before, colon, key = text.rpartition(":")
        if colon and key and before.lower().endswith(keyed):
            parted = cls(argument=argument, text=text, path=Path(before), key=key)
            if not parted.path.exists():
                raise parted.error(f"there is no file {before}")
            return parted
        raise whole.error("there is no such file or folder")

    @property
    def suffix(self) -> str:
        """In lower case, with its dot."""
        return self.path.suffix.lower()

    def error(self, what: str) -> DatasetError:
        """The error that names the argument and says ``what``."""
        return DatasetError(f"{self.argument}={self.text}: {what}")
