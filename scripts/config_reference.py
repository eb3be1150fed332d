"""Every key of a configuration as people read it: the tables of docs/configuration.md, and configs/digits.yaml.

    python -m scripts.config_reference docs/configuration.md configs/digits.yaml

writes both anew from what the schema says; of a page only what stands between its two marks.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bllpipe.config.loader import dump_yaml, to_mapping
from bllpipe.config.schema import Config
from bllpipe.config.validation import describe, field_types
from bllpipe.errors import ConfigError

BEGIN = "<!-- made of bllpipe/config by `make docs`; change the meanings there -->"
END = "<!-- until here -->"
HEAD = """# The embedded default, written out: what `make train` and `python -m bllpipe.launch` do without --config.
# Handwritten digits of 8x8 pixels that come with bllpipe, a small ResNet-18 in four blocks, gloo on CPUs.
# Every key of a config stands here, with its default; each can be given as --set key.path=value.

"""


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, its default as YAML, what it may be in words, and its meaning."""

    name: str
    default: str
    needed: str
    doc: str


@dataclass(frozen=True)
class Section:
    """The keys under one name, ``""`` for those that stand at the left edge."""

    name: str
    doc: str
    keys: tuple[Key, ...]


def sections(kind: type = Config, prefix: str = "") -> Iterator[Section]:
    """Every section in the order of the schema, those inside of another right behind it."""
    types = field_types(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    own = [_key(fields[name], inner, prefix) for name, inner in types.items() if not dataclasses.is_dataclass(inner)]
    yield Section(prefix.rstrip("."), kind.__doc__ or "", tuple(own))
    for name, inner in types.items():
        if dataclasses.is_dataclass(inner):
            assert isinstance(inner, type), "a section is a class"
            yield from sections(inner, f"{prefix}{name}.")


def tables() -> str:
    """The part of docs/configuration.md between the marks."""
    return "\n".join(_table(section) for section in sections())


def example() -> str:
    """configs/digits.yaml: the defaults, each with its meaning behind it."""
    docs = {section.name: _remark(section.doc) for section in sections()}
    docs |= {key.name: key.doc for section in sections() for key in section.keys}
    return HEAD + "".join(_lines(to_mapping(Config()), docs, ""))


def renewed(page: str, name: str) -> str:
    """``page`` with the tables of today between its marks. Raises ConfigError when the marks are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{name} has no place for the tables; expected the lines\n{BEGIN}\n{END}")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def main(files: Sequence[str] | None = None) -> int:
    """Writes every page and every YAML file in ``files`` anew; without any, prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m scripts.config_reference", description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE", help="a page with the two marks, or a .yaml to write")
    options = parser.parse_args(files)
    if not options.files:
        print(tables())
    for path in map(Path, options.files):
        made = example() if path.suffix == ".yaml" else renewed(path.read_text(), str(path))
        path.write_text(made)
    return 0


def _key(field: dataclasses.Field[Any], kind: Any, prefix: str) -> Key:
    default = field.default if field.default is not dataclasses.MISSING else _made(field)
    return Key(f"{prefix}{field.name}", _yaml(default), _needed(kind, field.metadata), field.metadata["doc"])


def _made(field: dataclasses.Field[Any]) -> Any:
    assert field.default_factory is not dataclasses.MISSING, "every key has a default"
    return field.default_factory()


def _needed(kind: Any, limits: Mapping[str, Any]) -> str:
    """``a whole number or null, at least 0``."""
    least, most = limits["least"], limits["most"]
    words = [describe(kind)]
    words += [f"at least {least:g}"] if least is not None else []
    words += [f"at most {most:g}"] if most is not None else []
    return ", ".join(words)


def _yaml(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    return dump_yaml(value).removesuffix("...\n").strip()


def _remark(doc: str) -> str:
    """A docstring as a remark: from a small letter on, without the full stop."""
    return doc[:1].lower() + doc[1:].removesuffix(".")


def _table(section: Section) -> str:
    title = f"### `{section.name}`\n\n{section.doc}" if section.name else "### The run itself"
    rows = [f"| `{key.name}` | {_cell(key.needed)} | `{key.default}` | {_cell(key.doc)} |\n" for key in section.keys]
    return f"{title}\n\n| key | may be | default | meaning |\n|---|---|---|---|\n{''.join(rows)}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _lines(values: Mapping[str, Any], docs: Mapping[str, str], prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield "" if indent else "\n"
            yield f"{indent}{name}:  # {docs[key]}\n"
            yield from _lines(value, docs, f"{key}.")
        else:
            yield f"{indent}{name}: {_yaml(value)}  # {docs[key]}\n"


if __name__ == "__main__":
    sys.exit(main())
