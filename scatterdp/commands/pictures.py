"""Where a command may draw."""

from __future__ import annotations

from pathlib import Path

from scatterdp.errors import ConfigError


def check_picture(argument: str, path: Path) -> None:
    """Raise ConfigError, naming ``argument``, unless ``path`` is a .png file in a folder that is there."""
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        raise ConfigError(f"{argument}={path}: expected a .png file in a folder that is there")
