"""YAML without surprises: no duplicate keys, no aliases, no tags, no ``on`` that is True, and ``1e-3`` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from bllpipe.errors import ConfigError

MAX_BYTES = 1 << 18  # the parser takes a second for so much
MAX_DEPTH = 20
MAX_NODES = 10_000  # keys and values

# The scalars of YAML 1.2's core schema; whatever else has no quotes is a string.
_SCALARS = {
    "null": re.compile(r"^(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^[-+]?[0-9]+$"),
    "float": re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.nan$"
    ),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars above and without aliases, tags and duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]  # the stubs call it an instance variable
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
    """Puts quotes round what ``_Loader`` would not read as text."""

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
    """The mapping in a YAML file; an empty file is an empty mapping."""
    value = parse_yaml(_text(Path(path)), path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}; needed are lines of the form key: value")
    return value


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # every rank reads it, and nobody waits for a pipe
            raise ConfigError(f"{path} cannot be read: it is a directory, a pipe or a device; needed is a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size:,} bytes; a config has at most {MAX_BYTES:,}")
        return content.decode()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; examples are in configs/") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error!s:.200}") from error
