"""Amounts of memory: as a person writes them, and what the machine has."""

from __future__ import annotations

import re
from pathlib import Path

from scatterdp.errors import ConfigError

_UNITS = {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}


def bytes_of(size: str, *, argument: str) -> int:
    """Bytes of a size in words, in powers of ten.

    >>> bytes_of("1.5GB", argument="memory_bound"), bytes_of("500 MB", argument="memory_bound")
    (1500000000, 500000000)

    Args:
        size: such as ``500MB``.
        argument: the flag without its dashes, for the message.

    Raises:
        ConfigError: not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(kB|KB|MB|GB)", size)
    if match is None or not float(match[1]):
        raise ConfigError(f"{argument}={size!r}: expected a size such as 500MB or 2GB (units: kB, MB, GB)")
    return int(float(match[1]) * _UNITS[match[2]])


def in_words(count: float) -> str:
    """Bytes for people, in powers of ten.

    >>> in_words(3112248344), in_words(512)
    ('3.1 GB', '512 B')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def available_memory() -> int | None:
    """Bytes of main memory that are free or can be freed, or None where the system does not say (Linux does)."""
    return report_field(Path("/proc/meminfo"), "MemAvailable")


def report_field(path: Path, name: str) -> int | None:
    """Bytes, from a line ``name: N kB`` of one of Linux' reports; None where there is no such report or line."""
    if not path.exists():
        return None
    return next((1024 * int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name)), None)
