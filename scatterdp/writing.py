"""Files that appear whole or not at all, and folders that were empty."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scatterdp.errors import ConfigError


def new_folder(path: Path, *, argument: str) -> None:
    """Make a folder, or take an empty one.

    Args:
        argument: the flag that named it, for messages.

    Raises:
        ConfigError: something is there, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError(f"{argument}={path}: holds files already and is left alone; give a new or empty folder")
    except OSError as error:
        message = f"{argument}={path}: is no folder to write in ({error.strerror}); give another --{argument}"
        raise ConfigError(message) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file atomically; text is written as UTF-8."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def json_text(value: Any) -> str:
    """Strict JSON for people and programs: indented, numbers finite, text as it is.

    >>> json_text({"ε": 3.0})
    '{\\n  "ε": 3.0\\n}\\n'
    """
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
