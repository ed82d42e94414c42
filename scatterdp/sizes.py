"""Amounts of memory: as a person writes them, and what the machine has."""

from __future__ import annotations

import re
from pathlib import Path

from scatterdp.errors import ConfigError

_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


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
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(kB|MB|GB)", size)
    if match is None or not float(match[1]):
        raise ConfigError(f"{argument}={size!r}: expected a size such as 500MB or 2GB (units: kB, MB, GB)")
    return int(float(match[1]) * _UNITS[match[2]])


def in_words(size: float) -> str:
    """Bytes for a person, in the largest unit of which there is one.

    >>> in_words(1.536e9), in_words(2e6), in_words(640)
    ('1.54 GB', '2 MB', '0.64 kB')
    """
    unit = max((unit for unit in _UNITS if _UNITS[unit] <= size), key=_UNITS.__getitem__, default="kB")
    return f"{size / _UNITS[unit]:.3g} {unit}"


def available_memory() -> int | None:
    """Bytes of main memory that are free or can be freed, or None where the system does not say (Linux does)."""
    return report_field(Path("/proc/meminfo"), "MemAvailable")


def report_field(path: Path, name: str) -> int | None:
    """Bytes, from a line ``name: N kB`` of one of Linux' reports; None where there is no such report or line."""
    if not path.exists():
        return None
    return next((1024 * int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name)), None)
