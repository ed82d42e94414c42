"""The command that made a run, from its ``config.json``.

>>> command_line({"dataset": "digits", "lr": 2.0, "epochs": None, "seed": 1, "run_dir": "runs/a"}, show_seed=True)
'python -m scatterdp.baselines --dataset=digits --lr=2.0 --seed=1'
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from scatterdp.config import BaselinesConfig, CnnsConfig, TinyImagesConfig, TrainingConfig

_WIDTH = 88  # of one line; a longer command has a line a flag
_PLACES = ("run_dir", "resume")  # where one run is; another goes elsewhere
_SHARED = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}


def command_line(config: dict[str, Any], *, show_seed: bool) -> str:
    """What to type into a shell that does the same again in a new run folder.

    Flags at their default are left out where the default is known; a flag that is written out changes nothing.

    Args:
        config: the values of ``config.json``; names that no command has are written like flags.
        show_seed: False: leave it out, for whoever knows it can take the noise away.
    """
    module, defaults = _command(config)
    flags = [
        _flag(name, value, defaults)
        for name, value in config.items()
        if name not in _PLACES
        and (show_seed or name != "seed")
        and value is not None
        and (name not in defaults or value != _plain(defaults[name]))
    ]
    words = [shlex.join(["python", "-m", *module.split()]), *map(shlex.quote, flags)]
    line = " ".join(words)
    return line if len(line) <= _WIDTH else " \\\n    ".join(words)


def _command(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The command whose config this is, by the names that only it has, and its flags' defaults as far as they are known here."""
    if "feature_path" in config:
        return "transfer.transfer_cifar", _SHARED
    if "labels" in config and "features" in config:
        return "scatterdp fit", {}
    if "finetune_path" in config:
        return "scatterdp finetune", {}
    found: type[BaselinesConfig] = BaselinesConfig
    if "tiny_images" in config:  # first: it has the names of the others, too
        found = TinyImagesConfig
    elif "arch" in config:
        found = CnnsConfig
    return found.module_name(), {field.name: field.default for field in dataclasses.fields(found)}


def _flag(name: str, value: Any, defaults: dict[str, Any]) -> str:
    if isinstance(value, bool) and isinstance(defaults.get(name), bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name}={value}"


def _plain(default: Any) -> Any:
    return default if default is None or isinstance(default, int | float | str) else str(default)
