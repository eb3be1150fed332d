"""Whatever a config says, there is a Config or a ConfigError, and never anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bllpipe.config import Config, load_config, parse_config, to_mapping, to_yaml
from bllpipe.config.loader import dump_yaml, known_keys, parse_yaml
from bllpipe.errors import ConfigError
from tests.support.fuzzing import LEAVES, ODD_TEXT, VALUES, fuzz

KEYS = st.sampled_from(known_keys())
WORDS = st.sampled_from(
    [
        *("seed", "model", "name", "blocks", ": ", "- ", "{", "}", "[", "]", ", ", "\n", "\n  ", "&a ", "*a", "!!int "),
        *("1", "0.5", "1e400", ".nan", "true", "~", "'", '"', "|\n", ">\n", "? ", "# ", "---\n", "...\n", "%YAML 9\n"),
    ]
)
# What a key may well be, beside all that it may not.
LIKELY = st.sampled_from([0, 1, 2, 8, 0.5, 2**63, -1, "bll", "bp", "ranks", "single", "sgd", "balanced", [1], [1, 2]])


def config_or_none(mapping: Any) -> Config | None:
    try:
        return parse_config(mapping)
    except ConfigError as error:
        assert 0 < len(str(error)) < 2000
        return None


def nested(pairs: dict[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    mapping: dict[str, Any] = {}
    for key, value in pairs.items():
        *parents, leaf = key.split(".")
        node = mapping
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return mapping


@fuzz(400)
@given(st.dictionaries(KEYS, LIKELY | LEAVES | VALUES, min_size=1, max_size=4))
def test_known_keys_with_any_values(pairs: dict[str, Any]) -> None:
    config = config_or_none(nested(pairs))
    if config is not None:
        assert parse_config(to_mapping(config)) == config
        assert parse_config(parse_yaml(to_yaml(config), "config.yaml")) == config


@fuzz(200)
@given(VALUES | st.dictionaries(st.none() | st.integers() | ODD_TEXT | KEYS, VALUES, max_size=4))
def test_any_mapping(mapping: Any) -> None:
    config_or_none(mapping)


@fuzz(300)
@given(st.lists(WORDS | ODD_TEXT, max_size=12).map("".join))
def test_any_text(text: str) -> None:
    try:
        config_or_none(parse_yaml(text, "config.yaml"))
    except ConfigError as error:
        assert str(error).startswith("config.yaml")


@fuzz(200)
@given(st.binary(max_size=60) | st.lists(WORDS, max_size=12).map(lambda words: "".join(words).encode()))
def test_any_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    try:
        assert isinstance(load_config(str(tmp_path / "config.yaml")), Config)
    except ConfigError as error:
        assert 0 < len(str(error)) < 2000


@fuzz(300)
@given(st.lists(st.tuples(KEYS | ODD_TEXT | st.just("model.args.a"), WORDS | ODD_TEXT).map("=".join), max_size=3))
def test_any_overrides(overrides: list[str]) -> None:
    try:
        assert isinstance(load_config(None, overrides), Config)
    except ConfigError as error:
        assert 0 < len(str(error)) < 2000


@fuzz(300)
@given(VALUES)
def test_what_is_dumped_is_read_back(value: Any) -> None:
    assert repr(parse_yaml(dump_yaml(value), "dumped")) == repr(value), "repr tells NaN and -0.0"
