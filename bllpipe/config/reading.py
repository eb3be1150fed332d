"""From YAML and command-line overrides to a Config, and back."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from bllpipe.config.checks import check
from bllpipe.config.schema import Config
from bllpipe.config.strict_yaml import MAX_DEPTH, dump_yaml, parse_yaml, read_yaml
from bllpipe.config.values import convert, field_types, shown
from bllpipe.errors import ConfigError

# Keys of earlier versions, and what to type instead. Files that a run wrote are read by stored.py, which moves them.
RENAMED = {
    "gpu.channels_last": "channels_last, a key of its own that CPUs obey too; use channels_last: auto (on GPUs only), "
    "true or false",
}


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Reads ``path`` (None: all defaults) and applies overrides of the form ``key.path=value``."""
    mapping = read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply(mapping, override)
    return parse_config(mapping)


def parse_config(mapping: Mapping[str, Any]) -> Config:
    """A checked Config; ConfigError for whatever is unknown, mistyped or impossible."""
    config: Config = _section(Config, mapping, "")
    check(config)
    return config


def to_mapping(config: Any) -> dict[str, Any]:
    """The config as plain nested dicts, which ``parse_config`` turns into an equal one, without a script's objects."""
    values = {name: getattr(config, name) for name in _keys_of(config)}
    return {
        name: to_mapping(value) if dataclasses.is_dataclass(value) else deepcopy(value)
        for name, value in values.items()
    }


def _keys_of(section: Any) -> list[str]:
    kind: type = type(section)
    return list(field_types(kind))


def to_yaml(config: Config) -> str:
    """The config as a YAML file that ``load_config`` reads."""
    return dump_yaml(to_mapping(config))


def known_keys(section: Any = Config, prefix: str = "") -> list[str]:
    """Every dotted key that a config may have."""
    keys: list[str] = []
    for name, kind in field_types(section).items():
        keys += known_keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [f"{prefix}{name}"]
    return keys


def check_keys(names: Sequence[str]) -> None:
    """Raises ConfigError for the first name that is neither a key nor a section of keys; suggests one that is."""
    keys = known_keys()
    sections = sorted({key.rpartition(".")[0] for key in keys if "." in key})
    for name in names:
        if name not in (*keys, *sections) and not name.startswith("model.args."):
            raise _unknown(name, sections)


def _section(section: type, mapping: Any, prefix: str) -> Any:
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{prefix.rstrip('.') or 'the config'} is {shown(mapping)}; needed are keys under it, such as "
            f"{_example(prefix)}"
        )
    types = field_types(section)
    for name in mapping:
        if name not in types:
            raise _unknown(f"{prefix}{name}")
    limits = {field.name: field.metadata for field in dataclasses.fields(section)}
    values = {}
    for name, value in mapping.items():
        kind, key = types[name], f"{prefix}{name}"
        is_section = dataclasses.is_dataclass(kind)
        values[name] = _section(kind, value, f"{key}.") if is_section else convert(value, kind, key, limits[name])
    return section(**values)


def _apply(mapping: dict[str, Any], override: str) -> None:
    """Writes one ``key.path=value`` into the nested mapping."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not key.rpartition(".")[2] or key.count(".") > MAX_DEPTH:
        raise ConfigError(f"--set {override:.200}: needed is key.path=value, for example --set optimizer.lr=0.1")
    source = f"--set {override:.200}"
    put(mapping, key, parse_yaml(text, source), source)


def put(mapping: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Writes ``value`` under a dotted key into the nested mapping; ConfigError, which names ``source``, where a value
    stands instead of keys."""
    if key not in known_keys() and not key.startswith("model.args."):
        raise _unknown(key)
    *parents, leaf = key.split(".")
    node = mapping
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{source}: {name} is {shown(node)} already; needed are keys under it")
    node[leaf] = value


def _unknown(key: str, sections: Sequence[str] = ()) -> ConfigError:
    """Suggests a key that looks alike, or the same last name in another section; a section where that is possible."""
    if key in RENAMED:
        return ConfigError(f"{key} is now {RENAMED[key]}")
    keys = known_keys()
    same_leaf = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    inside = [known for known in keys if known.startswith(f"{key}.")]
    close = (
        same_leaf
        or inside
        or _close_leaves(key, keys)
        or difflib.get_close_matches(key, [*sections, *keys], n=2, cutoff=0.7)
    )
    hint = f"did you mean {' or '.join(repr(known) for known in close[:3])}?" if close else "see configs/digits.yaml"
    return ConfigError(f"unknown key {shown(key)}; {hint}")


def _close_leaves(key: str, keys: Sequence[str]) -> list[str]:
    """Keys of the same section whose last name looks like that of ``key``, or is made of its initials."""
    section, _, leaf = key.rpartition(".")
    leaves = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == section}
    initials = "".join(word[:1] for word in leaf.split("_"))
    alike = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)
    return [leaves[name] for name in ([initials] if initials in leaves else alike)]


def _example(prefix: str) -> str:
    return next((key for key in known_keys() if key.startswith(prefix)), "key: value")
