"""A value either becomes the type that its key has, or the error says what was found and what is needed."""

import math
import re
from typing import Any, Literal

import pytest

from bllpipe.config.schema import AugmentConfig, Config, DataConfig
from bllpipe.config.validation import convert, describe, field_types, shown
from bllpipe.errors import ConfigError

Color = Literal["red", "green"]
CUTS = int | list[int | str]


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, int, 3),
        (-3, int, -3),
        (3, float, 3.0),
        (0.5, float, 0.5),
        (True, bool, True),
        ("3", str, "3"),
        ("", str, ""),
        (None, str | None, None),
        ("a", str | None, "a"),
        (None, float | None, None),
        (2, float | None, 2.0),
        (2, int | None, 2),
        ("red", Color, "red"),
        (4, CUTS, 4),
        ([4, "layer3.2"], CUTS, [4, "layer3.2"]),
        ([], CUTS, []),
        ("never", int | Literal["never"] | None, "never"),
        (0, int | Literal["never"] | None, 0),
        (None, int | Literal["never"] | None, None),
        ([1, 0.5], list[float], [1.0, 0.5]),
        ([1, 2], list[float] | None, [1.0, 2.0]),
        (None, list[float] | None, None),
        ({"a": [1, {"b": None}]}, dict[str, Any], {"a": [1, {"b": None}]}),
    ],
)
def test_fitting_value_is_kept_or_made_a_float(value: Any, kind: Any, expected: Any) -> None:
    found = convert(value, kind, "some.key", {})
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert [type(item) for item in found] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (True, int, "True (true or false); expected a whole number"),
        (False, float, "False (true or false); expected a finite number"),
        (1, bool, "1 (a whole number); expected true or false"),
        ("true", bool, "'true' (text); expected true or false"),
        ("3", int, "'3' (text); expected a whole number"),
        ("1e-3", float, "'1e-3' (text); expected a finite number"),
        (3.0, int, "3.0 (a number); expected a whole number"),
        (3, str, "3 (a whole number); expected text; for a text use quotes inside quotes: --set 'some.key=\"...\"'"),
        (None, int, "None (null); expected a whole number"),
        ([1], int, "[1] (a list); expected a whole number"),
        ({"a": 1}, int, "{'a': 1} (keys and values); expected a whole number"),
        (0.5, int | None, "0.5 (a number); expected a whole number or null"),
        (True, CUTS, "True (true or false); expected a whole number or a list, each a whole number or text"),
        ([1.5], CUTS, "[1.5] (a list); expected a whole number or a list, each a whole number or text"),
        ([True], CUTS, "[True] (a list); expected a whole number or a list, each a whole number or text"),
        (0.5, list[float], "0.5 (a number); expected a list, each a finite number"),
        ([1, "2"], list[float], "[1, '2'] (a list); expected a list, each a finite number"),
        ([True], list[float], "[True] (a list); expected a list, each a finite number"),
        ([1], dict[str, Any], "[1] (a list); expected text keys and values"),
        ({1: 2}, dict[str, Any], "{1: 2} (keys and values); expected text keys and values"),
        (3, Color, "3 (a whole number); expected one of red, green"),
        (0.5, int | Literal["never"], "0.5 (a number); expected a whole number or never"),
        (None, Color, "None (null); expected one of red, green"),
        (["red"], Color, "['red'] (a list); expected one of red, green"),
    ],
)
def test_other_type_is_refused(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'some.key is {message}')}$"):
        convert(value, kind, "some.key", {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [float, float | None])
def test_nan_and_inf_are_refused(value: float, kind: Any) -> None:
    with pytest.raises(ConfigError, match=f"^some.key is {value} .*; expected a finite number"):
        convert(value, kind, "some.key", {})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_in_a_list_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"some.key is \[0.5, {value}\].*each a finite number"):
        convert([0.5, value], list[float], "some.key", {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("greem", "some.key is 'greem'; expected one of red, green; did you mean 'green'?"),
        ("RED", "some.key is 'RED'; expected one of red, green"),
        ("", "some.key is ''; expected one of red, green"),
        ("xyz", "some.key is 'xyz'; expected one of red, green"),
    ],
)
def test_unknown_choice_suggests_only_what_looks_alike(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        convert(value, Color, "some.key", {})


def test_a_word_beside_numbers_is_suggested_too() -> None:
    message = "some.key is 'nevr'; expected a whole number or never or null; did you mean 'never'?"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        convert("nevr", int | Literal["never"] | None, "some.key", {})


@pytest.mark.parametrize(("kind", "value"), [(int, 0), (int, 5), (float, 0), (float, 5.0), (float | None, 0.0)])
def test_ends_of_the_range_are_allowed(kind: Any, value: float) -> None:
    assert convert(value, kind, "some.key", {"least": 0, "most": 5}) == value


@pytest.mark.parametrize(
    ("value", "kind", "limits", "message"),
    [
        (0, int, {"least": 1}, "some.key is 0; expected at least 1"),
        (-0.1, float, {"least": 0, "most": 1}, "some.key is -0.1; expected at least 0"),
        (0, float, {"least": 0.1}, "some.key is 0; expected at least 0.1"),
        (1.5, float, {"least": 0, "most": 1}, "some.key is 1.5; expected at most 1"),
        (181, float, {"least": None, "most": 180}, "some.key is 181; expected at most 180"),
        (-1, int | None, {"least": 0, "most": None}, "some.key is -1; expected at least 0"),
    ],
)
def test_value_outside_its_range_is_refused(
    value: Any, kind: Any, limits: dict[str, float | None], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        convert(value, kind, "some.key", limits)


def test_null_has_no_range() -> None:
    assert convert(None, int | None, "some.key", {"least": 1, "most": 2}) is None


def test_truth_has_no_range() -> None:
    assert convert(False, bool, "some.key", {"least": 1}) is False


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "a whole number"),
        (float | None, "a finite number or null"),
        (Color, "one of red, green"),
        (CUTS, "a whole number or a list, each a whole number or text"),
        (dict[str, Any], "text keys and values"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert describe(kind) == words


def test_declared_types_of_a_section() -> None:
    recipes = Literal["none", "cifar", "imagenet", "trivial"]
    expected = {"crop_padding": int, "flip": bool, "rotation": float, "recipe": recipes}
    assert field_types(AugmentConfig) == expected
    assert field_types(DataConfig)["augment"] is AugmentConfig
    assert field_types(Config)["blocks"] == int | str | list[int | str]


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**4000])
def test_numbers_that_no_file_or_message_can_carry(value: int) -> None:
    with pytest.raises(ConfigError, match=r"^some.key is -?\d+(\.\.\.)?; expected a number of at most 63 bits$"):
        convert(value, int, "some.key", {})
    assert convert(2**63 - 1, int, "some.key", {}) == 2**63 - 1


def test_what_is_shown_of_a_value_has_an_end() -> None:
    assert shown("short") == "'short'"
    assert shown("x" * 1000) == "'" + "x" * 199 + "..."
    assert shown(10**5000) == "a number of thousands of digits"
