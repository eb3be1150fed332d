"""YAML holds no surprises, and whatever is refused is refused with file, line and column."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from bllpipe.config.loader import MAX_BYTES, MAX_DEPTH, MAX_NODES, dump_yaml, parse_yaml, read_yaml
from bllpipe.errors import ConfigError


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("5.", 5.0),
        (".5", 0.5),
        ("-2.5e+1", -25.0),
        ("-.inf", -math.inf),
        ("0", 0),
        ("+7", 7),
        ("-12", -12),
        ("010", 10),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("# only a comment", None),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
    ],
)
def test_scalars_of_the_core_schema(text: str, expected: Any) -> None:
    value = parse_yaml(text, "run.yaml")
    assert value == expected
    assert type(value) is type(expected)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_yaml(".nan", "run.yaml"))


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "no", "y", "On", "0x10", "1_000", "12:30", "2020-01-01", "1e", "."]
)
def test_what_yaml_1_1_would_convert_stays_text(text: str) -> None:
    assert parse_yaml(text, "run.yaml") == text


@pytest.mark.parametrize(
    "value", ["1e5", "1.5e3", "on", "010", "~", "a: b", 1e5, 10, None, True, [1e-7, "4"], {"a": {}}]
)
def test_what_is_dumped_is_read_back(value: Any) -> None:
    again = parse_yaml(dump_yaml(value), "run.yaml")
    assert again == value
    assert type(again) is type(value)


@pytest.mark.parametrize("text", ["[1]: 2", "? {a: 1}\n: 2"])
def test_key_that_is_no_word(text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml, line 1, column .: a key must be a word"):
        parse_yaml(text, "run.yaml")


def test_merge_key_is_an_ordinary_key() -> None:
    assert parse_yaml("<<: {a: 1}", "run.yaml") == {"<<": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "where", "key"),
    [
        ("seed: 1\nepochs: 2\nseed: 3\n", "line 3, column 1", "seed"),
        ("optimizer:\n  lr: 0.1\n  lr: 0.2\n", "line 3, column 3", "lr"),
        ("data:\n  augment: {flip: true, flip: true}\n", "line 2, column 25", "flip"),
        ("1: a\n'1': b\n", "line 2, column 1", "1"),
    ],
)
def test_duplicate_key_is_refused_with_its_place(text: str, where: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^run.yaml, {where}: duplicate key '{key}'$"):
        parse_yaml(text, "run.yaml")


def test_same_key_in_two_sections_is_no_duplicate() -> None:
    assert parse_yaml("a: {lr: 1}\nb: {lr: 2}", "run.yaml") == {"a": {"lr": 1}, "b": {"lr": 2}}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: &x 1", "line 1, column 4"),
        ("a: *x", "line 1, column 4"),
        ("a: 1\nb: &list [1]\nc: *list", "line 2, column 4"),
        ("a: 1\nb: &map {c: 1}", "line 2, column 4"),
        ("&key a: 1", "line 1, column 1"),
    ],
)
def test_anchors_and_aliases_are_refused(text: str, where: str) -> None:
    with pytest.raises(ConfigError, match=f"^run.yaml, {where}: anchors and aliases are not allowed$"):
        parse_yaml(text, "run.yaml")


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("a: !!str 1", "tag:yaml.org,2002:str"),
        ("a: !local 1", "!local"),
        ("a: ! text", "!"),
        ("a: !!python/object/apply:os.getcwd []", "tag:yaml.org,2002:python/object/apply:os.getcwd"),
        ("a: !!omap {b: 1}", "tag:yaml.org,2002:omap"),
    ],
)
def test_tags_are_refused(text: str, tag: str) -> None:
    with pytest.raises(ConfigError, match=rf"^run.yaml, line 1, column 4: tags are not allowed \({tag}\)$"):
        parse_yaml(text, "run.yaml")


def test_deepest_nesting_allowed() -> None:
    value, levels = parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "run.yaml"), 1
    while value:
        value, levels = value[0], levels + 1
    assert levels == MAX_DEPTH


@pytest.mark.parametrize("text", ["[" * 21 + "]" * 21, "{a: " * 21 + "}" * 21, "[" * 100_000])
def test_deeper_nesting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^run.yaml, line 1, column \\d+: nested deeper than {MAX_DEPTH} levels$"):
        parse_yaml(text, "run.yaml")


def test_depth_does_not_add_up_over_siblings() -> None:
    assert parse_yaml("[" + "[1], " * (2 * MAX_DEPTH) + "]", "run.yaml") == [[1]] * (2 * MAX_DEPTH)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "^run.yaml, line 1, column 9: expected ',' or ']'"),
        ("a: 1\n\tb: 2", "^run.yaml, line 2, column 1: found character"),
        ("a: 1\n---\nb: 2", "^run.yaml, line 2, column 1: but found another document"),
        ("a: \x07", "^run.yaml: unacceptable character #x0007"),
        ("a: " + "9" * 5000, "^run.yaml: Exceeds the limit"),
    ],
)
def test_broken_yaml_names_its_source(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "run.yaml")


def test_file_is_read(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "name: über\ndata: {batch_size: 8}\n")) == {
        "name": "über",
        "data": {"batch_size": 8},
    }


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", "---\n", "null\n", "{}\n"])
def test_empty_file_is_an_empty_mapping(tmp_path: Path, text: str) -> None:
    assert read_yaml(written(tmp_path, text)) == {}


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "\ufeffseed: 1")) == {"seed": 1}


@pytest.mark.parametrize(("text", "found"), [("- a\n- b\n", "list"), ("hello", "str"), ("3", "int"), ("1e-3", "float")])
def test_file_without_a_mapping_is_refused(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=f"run.yaml holds a {found}; expected lines of the form key: value"):
        read_yaml(written(tmp_path, text))


def test_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml, line 2, column 1: duplicate key 'seed'"):
        read_yaml(written(tmp_path, "seed: 1\nseed: 2\n"))


def test_largest_file_allowed(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "#" * MAX_BYTES)) == {}


def test_larger_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run.yaml has 262,145 bytes; a config has at most 262,144"):
        read_yaml(written(tmp_path, "#" * (MAX_BYTES + 1)))


def test_a_file_that_seems_endless_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1")
    os.truncate(path, 200 << 20)
    with pytest.raises(ConfigError, match="run.yaml has 209,715,200 bytes; a config has at most"):
        read_yaml(path)


def test_more_values_than_any_config_has() -> None:
    fits = "[" + "0," * (MAX_NODES - 1) + "]"
    assert len(parse_yaml(fits, "run.yaml")) == MAX_NODES - 1
    with pytest.raises(ConfigError, match="^run.yaml, line 1, column \\d+: more than 10,000 values$"):
        parse_yaml(fits[:-1] + "0]", "run.yaml")


def test_what_is_said_of_endless_words_has_an_end() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(f"{'a' * 99_999}: 1\n{'a' * 99_999}: 2", "run.yaml")
    assert len(str(caught.value)) < 200


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="run.yaml cannot be read: it is a directory, a pipe or a device; expected"):
        read_yaml(str(tmp_path / "run.yaml"))
    with pytest.raises(ConfigError, match="/dev/zero cannot be read: it is a directory, a pipe or a device"):
        read_yaml("/dev/zero")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml does not exist; examples are in configs/"):
        read_yaml(str(tmp_path / "none.yaml"))


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: .*[Dd]irectory"):
        read_yaml(str(tmp_path))


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run.yaml cannot be read: 'utf-8' codec can't decode byte 0xfc"):
        read_yaml(written(tmp_path, "name: über".encode("latin-1")))
