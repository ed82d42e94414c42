"""What the system has kept of a file in its memory, given up, so that the disk itself answers."""

from __future__ import annotations

import os
from pathlib import Path


def forget_file(path: Path) -> None:
    """Tell the system that nobody needs what it keeps of a file; where it cannot be told (not Linux), nothing."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
