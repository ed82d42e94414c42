"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
