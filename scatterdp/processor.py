"""Which processor this is: on it depend what is compiled and how numbers are rounded."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

_FACTS = Path("/proc/cpuinfo")
_MODEL = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision")


def cpu_model() -> str:
    """The model as far as Linux tells it (family, model and stepping too: names are often general); elsewhere what Python knows."""
    facts = _facts()
    return " ".join(facts[name] for name in _MODEL if name in facts) or platform.processor()


def cpu_instructions() -> str:
    """The instruction sets that it has: their names on Linux, elsewhere what Python knows of the processor."""
    facts = _facts()
    return facts.get("flags") or facts.get("Features") or platform.processor()


def cpu_fingerprint() -> str:
    """:func:`cpu_model` and eight digits that stand for :func:`cpu_instructions`."""
    return f"{cpu_model()} {hashlib.sha256(cpu_instructions().encode()).hexdigest()[:8]}"


def _facts() -> dict[str, str]:
    """Of the first processor; empty where there is no such file."""
    try:
        first = _FACTS.read_text().partition("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
