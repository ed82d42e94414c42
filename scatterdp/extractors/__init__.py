"""Fixed, data-independent feature extractors, by name.

A library behind an extractor is imported when that extractor is made, not before.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from scatterdp.errors import ConfigError
from scatterdp.extractors.specification import Part, parse_extractor

if TYPE_CHECKING:
    from scatterdp.extractors.base import Extractor


def _check_fields(name: str, config_class: type | None, given: dict[str, Any]) -> None:
    known = [] if config_class is None else [field.name for field in dataclasses.fields(config_class)]
    for key in given:
        if key not in known:
            there = f"no such setting, expected one of {', '.join(known)}" if known else "no settings"
            raise ConfigError(f"{key}={given[key]!r}: {name} has {there}")


def _scatternet(input_shape: tuple[int, int, int], **config: Any) -> Extractor:
    from scatterdp.extractors.scatternet import ScatterNet, ScatterNetConfig, default_config

    _check_fields("scatternet", ScatterNetConfig, config)
    return ScatterNet(default_config(input_shape, **config), input_shape)


def _pixels(input_shape: tuple[int, int, int], **config: Any) -> Extractor:
    from scatterdp.extractors.pixels import Pixels, PixelsConfig

    _check_fields("pixels", PixelsConfig, config)
    return Pixels(PixelsConfig(**config), input_shape)


def _patches(input_shape: tuple[int, int, int], **config: Any) -> Extractor:
    from scatterdp.extractors.patches import Patches, PatchesConfig, default_config

    _check_fields("patches", PatchesConfig, config)
    return Patches(default_config(input_shape, **config), input_shape)


def _deep_patches(input_shape: tuple[int, int, int], **config: Any) -> Extractor:
    from scatterdp.extractors.deep_patches import DeepPatches, DeepPatchesConfig, default_config

    _check_fields("deep_patches", DeepPatchesConfig, config)
    return DeepPatches(default_config(input_shape, **config), input_shape)


def _deskew(extractor: Extractor, **config: Any) -> Extractor:
    from scatterdp.extractors.deskew import Deskew

    _check_fields("deskew", None, config)
    return Deskew(extractor)


def _views(extractor: Extractor, **config: Any) -> Extractor:
    from scatterdp.extractors.views import Views, ViewsConfig

    _check_fields("views", ViewsConfig, config)
    return Views(extractor, ViewsConfig(**config))


def _map_patches(extractor: Extractor, **config: Any) -> Extractor:
    from scatterdp.extractors.map_patches import MapPatches, MapPatchesConfig

    _check_fields("map_patches", MapPatchesConfig, config)
    return MapPatches(extractor, MapPatchesConfig(**config))


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "scatternet": _scatternet,
    "pixels": _pixels,
    "patches": _patches,
    "deep_patches": _deep_patches,
}
"""Name → function of ``(input_shape, **config)`` that makes the extractor with its defaults for such images."""

WRAPPERS: dict[str, Callable[..., Extractor]] = {
    "deskew": _deskew,
    "map_patches": _map_patches,
    "views": _views,
}
"""Name → function of ``(extractor, **config)`` that makes an extractor around the given one, which sees other images or gives maps."""


def make_extractor(name: str, input_shape: tuple[int, int, int], **config: Any) -> Extractor:
    """Make a registered extractor, or several side by side.

    Args:
        name: a key of :data:`EXTRACTORS`, or a specification (:mod:`scatterdp.extractors.specification`) such as
            ``"scatternet+patches(size=5)"``.
        input_shape: ``(C, H, W)`` of the images.
        config: settings that differ from the defaults; for a single extractor, others have theirs in the specification.

    Raises:
        ConfigError: an unknown name or setting, or a value out of range.

    >>> make_extractor("scatternet", (1, 28, 28)).output_shape
    (81, 7, 7)
    >>> make_extractor("scatternet+patches", (1, 28, 28)).output_shape
    (13185, 1, 1)
    >>> make_extractor("deskew(scatternet)", (1, 28, 28)).output_shape
    (81, 7, 7)
    """
    if len(input_shape) != 3 or any(not isinstance(side, int) or side < 1 for side in input_shape):
        raise ConfigError(f"input_shape={input_shape}: expected (C, H, W), whole numbers ≥ 1, the channels first")
    return _made(parse_extractor(name), input_shape, config)


def _made(parts: Sequence[Part], input_shape: tuple[int, int, int], config: dict[str, Any]) -> Extractor:
    if len(parts) == 1 and parts[0].scale == 1:
        return _one(parts[0], input_shape, config)
    from scatterdp.extractors.concat import Concat

    if config:
        raise ConfigError(
            f"{', '.join(config)}: of which part? write it into the extractor, as in 'patches(size=5)+pixels'"
        )
    made = [_said_of(part.name, lambda part=part: _one(part, input_shape, {})) for part in parts]
    return Concat(made, [part.scale for part in parts])


def _said_of(name: str, make: Callable[[], Extractor]) -> Extractor:
    """What ``make`` makes; an error says which of several extractors is meant."""
    try:
        return make()
    except ConfigError as error:
        setting, colon, why = str(error).partition(": ")
        if not colon or setting == name or setting.startswith("extractor=") or why.startswith(("of ", name)):
            raise
        raise ConfigError(f"{setting}: of {name}, {why}") from error


def _one(part: Part, input_shape: tuple[int, int, int], config: dict[str, Any]) -> Extractor:
    if part.name in WRAPPERS:
        if not part.of:
            raise ConfigError(f"{part.name}: of which extractor? such as {part.name}(scatternet)")
        inner = _said_of(part.of[0].name, lambda: _made(part.of, input_shape, config))
        return _said_of(part.name, lambda: WRAPPERS[part.name](inner, **part.settings))
    if part.name not in EXTRACTORS:
        what = f"{part.name}(…)" if part.of else part.name
        wrappers = " or ".join(f"{name}(…)" for name in sorted(WRAPPERS))
        near = difflib.get_close_matches(part.name, [*EXTRACTORS, *WRAPPERS], n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"extractor={what!r}: {meant}expected one of {', '.join(sorted(EXTRACTORS))}, or {wrappers} of them"
        )
    if part.of:
        raise ConfigError(
            f"extractor='{part.name}(…)': {part.name} takes settings and no extractor in its brackets; expected {part.name} alone, or one of "
            f"{', '.join(f'{name}(…)' for name in sorted(WRAPPERS))} around it"
        )
    for setting in config.keys() & part.settings.keys():
        raise ConfigError(
            f"{setting}={config[setting]!r}: of {part.name}, whose brackets say {setting}={part.settings[setting]!r}; give one of them"
        )
    return EXTRACTORS[part.name](input_shape, **config, **part.settings)
