"""From YAML and command-line overrides to a Config, and back.

The YAML is strict: no duplicate keys, no aliases, no tags, no ``on`` that is True, and ``1e-3`` is a number.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from os.path import expanduser
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bllpipe.config.schema import END_TO_END, Config
from bllpipe.config.validation import check, convert, field_types, shown
from bllpipe.errors import ConfigError

# Keys of earlier versions, and what to type instead; ``with_moved_keys`` moves those in the files of a run.
RENAMED = {
    "gpu.channels_last": "channels_last, a top-level key that applies to CPUs too; use channels_last: auto (on GPUs "
    "only), true or false",
}
# The new place of a key, and its value there. ``gpu.channels_last: true`` had no effect on a CPU.
MOVED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "gpu.channels_last": ("channels_last", lambda value: "auto" if value is True else value),
}
# Keys whose default is not what earlier versions did, which had no such key: the value that a stored section had in
# effect.
BEFORE: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "objective.head_scale": lambda objective: False if objective.get("head", "linear") == "linear" else "auto",
}
PATHS = (("data", "path"), ("model", "weights"), ("metrics", "discovery"), ("metrics", "textfile"))  # keys of paths
EXAMPLES = Path("configs")  # in a checkout; bllpipe/configs, which a wheel holds too, is the same folder
MAX_BYTES = 1 << 18  # the parser takes a second for this size
MAX_DEPTH = 20
MAX_NODES = 10_000  # keys and values
_QUOTED = re.compile(r"""^(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')""")
_COMMENT = re.compile(r"(?:^|\s)#")
# The scalars of YAML 1.2's core schema; any other unquoted scalar is a string.
_SCALARS = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^[-+]?[0-9]+$"),
    "float": re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.nan$"
    ),
}


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Reads ``path`` (None: all defaults) and applies overrides of the form ``key.path=value``."""
    mapping = read_yaml(path) if path is not None else {}
    for override in overrides:
        source = f"--set {override:.200}"
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals or not key.rpartition(".")[2] or key.count(".") > MAX_DEPTH:
            raise ConfigError(f"{source}: expected key.path=value, for example --set optimizer.lr=0.1")
        if _COMMENT.search(_QUOTED.sub("", text)):
            raise ConfigError(
                f"{source}: expected one value, got a comment behind it, as YAML reads ' #'; if it is part of a text, "
                f"use quotes inside quotes: --set '{key}=\"{text}\"'"
            )
        put(mapping, key, parse_yaml(text, source), source)
    return parse_config(mapping)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config`` and ``--set``, from which ``config_from_options`` makes a Config."""
    parser.add_argument("--config", metavar="FILE", type=expanduser, help="YAML file (default: the handwritten digits)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="override a key, e.g. epochs=3",
    )


def config_from_options(options: argparse.Namespace) -> Config:
    """The Config that ``--config`` and ``--set`` ask for."""
    return load_config(options.config, options.overrides)


def parse_config(mapping: Mapping[str, Any]) -> Config:
    """A checked Config; ConfigError for unknown keys, wrong types and impossible combinations."""
    config: Config = _at_home(_section(Config, mapping, ""))
    check(config)
    return config


def _at_home(config: Config) -> Config:
    """With the home directory for ~ at the start of a path, as torchvision reads it."""
    for section, name in PATHS:
        part = getattr(config, section)
        if (path := getattr(part, name)) is not None:
            config = replace(config, **{section: replace(part, **{name: expanduser(path)})})
    return config


def to_mapping(config: Any) -> dict[str, Any]:
    """The config as plain nested dicts, from which ``parse_config`` makes an equal one, without a script's objects."""
    section: type = type(config)
    values = {name: getattr(config, name) for name in field_types(section)}
    return {
        name: to_mapping(value) if dataclasses.is_dataclass(value) else deepcopy(value)
        for name, value in values.items()
    }


def to_yaml(config: Config) -> str:
    """The config as a YAML file that ``load_config`` reads."""
    return dump_yaml(to_mapping(config))


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    pairs: dict[str, Any] = {}
    for key, value in mapping.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs


def known_keys(section: Any = Config, prefix: str = "") -> list[str]:
    """Every dotted key that a config may have."""
    keys: list[str] = []
    for name, kind in field_types(section).items():
        keys += known_keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [f"{prefix}{name}"]
    return keys


def check_keys(names: Sequence[str]) -> None:
    """Raises ConfigError for the first name that is neither a key nor a section, with a suggestion."""
    keys = known_keys()
    sections = sorted({key.rpartition(".")[0] for key in keys if "." in key})
    for name in names:
        if name not in (*keys, *sections) and not name.startswith("model.args."):
            raise _unknown(name, sections)


def _section(section: type, mapping: Any, prefix: str) -> Any:
    if not isinstance(mapping, Mapping):
        example = next((key for key in known_keys() if key.startswith(prefix)), "key: value")
        raise ConfigError(
            f"{prefix.rstrip('.') or 'the config'} is {shown(mapping)}; expected keys under it, such as {example}"
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


def put(mapping: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Writes ``value`` under a dotted key into the nested mapping; ConfigError, which names ``source``, if a section on
    the way is a value."""
    if key not in known_keys() and not key.startswith("model.args."):
        raise _unknown(key)
    *parents, leaf = key.split(".")
    node = mapping
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{source}: {name} is {shown(node)} already; expected keys under it")
    node[leaf] = value


def _unknown(key: str, sections: Sequence[str] = ()) -> ConfigError:
    """Suggests the same last name in another section, a key inside of ``key``, a key of the same section (by initials
    or by similarity), or any similar key or section."""
    if key in RENAMED:
        return ConfigError(f"{key} is now {RENAMED[key]}")
    keys, (section, _, leaf) = known_keys(), key.rpartition(".")
    siblings = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == section}
    initials = "".join(word[:1] for word in leaf.split("_"))
    alike = [initials] if initials in siblings else difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    close = (
        [known for known in keys if known.rpartition(".")[2] == leaf]
        or [known for known in keys if known.startswith(f"{key}.")]
        or [siblings[name] for name in alike]
        or difflib.get_close_matches(key, [*sections, *keys], n=2, cutoff=0.7)
    )
    hint = f"did you mean {' or '.join(repr(known) for known in close[:3])}?" if close else "see configs/digits.yaml"
    return ConfigError(f"unknown key {shown(key)}; {hint}")


def load_stored_config(path: str) -> Config:
    """The configuration in the ``config.yaml`` of a run directory, of this or an earlier version."""
    return parse_config(stored_mapping(path))


def stored_mapping(path: str) -> dict[str, Any]:
    """The same as nested dicts, with current keys."""
    return with_moved_keys(read_yaml(path))


def with_moved_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """``mapping``, which a run has stored, with every moved key in its new place, unless that has a value already, and
    with the values of missing keys that were not the default of today."""
    result = deepcopy(dict(mapping))
    for old, (new, value_of) in MOVED.items():
        section, _, leaf = old.rpartition(".")
        keys = result.get(section)
        if isinstance(keys, dict) and leaf in keys:
            result.setdefault(new, value_of(keys.pop(leaf)))
    for key, value_then in BEFORE.items():
        section, _, leaf = key.rpartition(".")
        keys = result.get(section)
        if isinstance(keys, dict) and leaf not in keys and result.get("method") not in END_TO_END:
            keys[leaf] = value_then(keys)
    return result


def with_defaults(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """``mapping`` of a stored config with current keys, and with defaults for missing ones: these never change the
    results of earlier runs."""
    return _filled(with_moved_keys(mapping), to_mapping(Config()))


def _filled(mapping: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(mapping)
    for name, default in defaults.items():
        if name not in result:
            result[name] = default
        elif isinstance(default, Mapping) and isinstance(result[name], Mapping):
            result[name] = _filled(result[name], default)
    return result


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars above and without aliases, tags and duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]  # the stubs call it an instance variable
    # PyYAML's, without what Python makes of bytes that are not UTF-8, as in ``--set data.path=...``
    NON_PRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\udc80-\udcff\ue000-\ufffd\U00010000-\U0010ffff]")  # type: ignore[misc]  # the stubs call it final
    _depth = 0
    _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # untyped in the stubs
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem=f"tags are not allowed ({event.tag:.80})", problem_mark=event.start_mark)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES:,} values", problem_mark=event.start_mark)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r:.80}", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        """``010`` is ten."""
        return int(node.value)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that ``_Loader`` would not read as strings."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]  # the stubs call it an instance variable


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _name, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, None)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, None)


def dump_yaml(value: Any) -> str:
    """``value`` as text that ``parse_yaml`` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)  # type: ignore[no-any-return]  # the stubs say Any


def parse_yaml(text: str, source: str) -> Any:
    """The value of one YAML document; ConfigError with ``source``, line and column otherwise."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise ConfigError(f"{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: {error!s:.300}") from error


def read_yaml(path: str) -> dict[str, Any]:
    """The mapping in a YAML file of at most ``MAX_BYTES``; an empty file is an empty mapping. configs/NAME.yaml is the
    installed example wherever there is no such file."""
    file = Path(path)
    if file.parent == EXAMPLES and not file.exists():
        installed = Path(__file__).parents[1] / file
        file = installed if installed.is_file() else file
    try:
        if file.exists() and not file.is_file():  # every rank reads it; a pipe would block
            raise ConfigError(f"{file} cannot be read: it is a directory, a pipe or a device; expected a YAML file")
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{file} has {file.stat().st_size:,} bytes; a config has at most {MAX_BYTES:,}")
        text = content.decode()
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist; examples are in configs/") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error!s:.200}") from error
    value = parse_yaml(text, path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}; expected lines of the form key: value")
    return value
