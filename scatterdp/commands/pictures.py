"""Where a command may draw."""

from __future__ import annotations

from pathlib import Path

from scatterdp.errors import ConfigError


def check_picture(argument: str, path: Path) -> None:
    """Raise ConfigError, naming ``argument``, unless ``path`` is a .png file that is not there yet, in a folder that is."""
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise ConfigError(f"{argument}={path}: expected a .png file in a folder that is there")
    if path.exists():
        raise ConfigError(f"{argument}={path}: is there already, give another name or remove it")
