"""Extractors in words: ``scatternet``, ``patches(patches=1024, size=5)``, ``scatternet(mirror=True) + 0.5 * patches``,
``deskew(scatternet)``, ``views(patches, crops=((1, 0), (0.8, 0)))``."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from typing import Any

from scatterdp.errors import ConfigError

_EXAMPLE = "such as scatternet, patches(patches=1024) or 0.5*scatternet(mirror=True)+patches"
LIGHTEST, HEAVIEST = 1e-6, 1e6  # scales


@dataclass(frozen=True)
class Part:
    """One extractor of a specification, or one that stands before others: ``deskew(scatternet + patches)``."""

    name: str
    settings: dict[str, Any]
    scale: float = 1.0
    of: tuple[Part, ...] = ()


def parse_extractor(text: str) -> list[Part]:
    """The parts of a specification. It is read, not executed: names, keywords and plain values are all there is.

    Raises:
        ConfigError: it is none.

    >>> parse_extractor("scatternet+2*patches(size=5)")
    [Part(name='scatternet', settings={}, scale=1.0, of=()), Part(name='patches', settings={'size': 5}, scale=2.0, of=())]
    """
    try:
        return _parts(ast.parse(text.strip(), mode="eval").body)
    except ConfigError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        why = f" ({error.msg})" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"extractor={text!r}: expected extractors joined by +, {_EXAMPLE}{why}") from error


def _parts(node: ast.expr) -> list[Part]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [*_parts(left), *_parts(right)]
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Name() | ast.Call() as right):
            (part,) = _parts(right)
            return [dataclasses.replace(part, scale=_scale(left, node))]
        case ast.BinOp(op=ast.Mult()) | ast.UnaryOp():
            raise _no_scale(node)
        case ast.Name(id=name):
            return [Part(name, {})]
        case ast.Call(func=ast.Name(id=name), args=[] | [_] as inner, keywords=keywords):
            settings = {word.arg: _value(name, word.arg, word.value) for word in keywords if word.arg is not None}
            for setting in settings:
                if sum(word.arg == setting for word in keywords) > 1:
                    raise ConfigError(f"{setting}: of {name}, is given twice; give it once")
            if len(settings) == len(keywords):  # fewer: **
                return [Part(name, settings, of=tuple(part for node in inner for part in _parts(node)))]
    raise ValueError(ast.dump(node))


def _scale(node: ast.expr, whole: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as scale) if (
            not isinstance(scale, bool) and LIGHTEST <= scale <= HEAVIEST
        ):
            return float(scale)
    raise _no_scale(whole)


def _no_scale(node: ast.expr) -> ConfigError:
    return ConfigError(
        f"extractor={ast.unparse(node)!r}: expected a number from {LIGHTEST:g} to {HEAVIEST:g} before one extractor, such as 0.5*patches"
    )


def _value(name: str, setting: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ConfigError(
            f"{setting}={ast.unparse(node)}: of {name}, expected a number, True, False, words in quotes or a tuple of these"
        ) from None
