"""Turning one YAML value into the type that a key has, or saying exactly why not."""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bllpipe.config.keys import GIVEN
from bllpipe.errors import ConfigError

NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}


SHOWN = 200  # characters of a value in a message
LARGEST = 2**63 - 1  # what a file or a message can carry


def shown(value: Any) -> str:
    """``value`` as a message shows it: without an end only as far as one wants to read."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@cache
def field_types(section: type) -> dict[str, Any]:
    """The declared type of every key, and of every section of keys, of a config section."""
    types = get_type_hints(section)
    return {field.name: types[field.name] for field in fields(section) if GIVEN not in field.metadata}


def convert(value: Any, kind: Any, key: str, limits: Mapping[str, Any]) -> Any:
    """``value`` as a ``kind`` within its limits; ConfigError naming ``key``, what was found and what is needed."""
    if isinstance(value, str) and not _fits(value, kind) and (words := _words(kind)):
        close = difflib.get_close_matches(value, words, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{key} is {shown(value)}; needed is {describe(kind)}{hint}")
    if not _fits(value, kind):
        raise ConfigError(f"{key} is {shown(value)} ({_kind_of(value)}); needed is {describe(kind)}")
    _check_limits(value, key, limits)
    return _coerced(value, kind)


def describe(kind: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is list:
        return f"a list, each {describe(arguments[0])}"
    return "text keys and values" if origin is dict else NAMES[kind]


def _words(kind: Any) -> list[str]:
    """The words that a ``kind`` knows, alone or beside numbers and lists."""
    if get_origin(kind) is Literal:
        return [argument for argument in get_args(kind) if isinstance(argument, str)]
    is_union = get_origin(kind) in (Union, types.UnionType)
    return [word for argument in get_args(kind) for word in _words(argument)] if is_union else []


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _coerced(value: Any, kind: Any) -> Any:
    """Whole numbers become floats where the key is a float."""
    wants_float = kind is float or (float in get_args(kind) and int not in get_args(kind))
    if wants_float and isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, list) and kind in (list[float], list[float] | None):
        return [float(item) for item in value]
    return value


def _check_limits(value: Any, key: str, limits: Mapping[str, Any]) -> None:
    least, most = limits.get("least"), limits.get("most")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    if least is not None and value < least:
        raise ConfigError(f"{key} is {shown(value)}; needed is at least {least:g}")
    if most is not None and value > most:
        raise ConfigError(f"{key} is {shown(value)}; needed is at most {most:g}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{key} is {shown(value)}; needed is a number of at most 63 bits")


def _kind_of(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "keys and values"
    return "a number" if isinstance(value, float) else NAMES.get(type(value), type(value).__name__)
