"""``--set`` never cuts a value silently, and says how a text is quoted."""

from __future__ import annotations

import re

import pytest

from bllpipe.config import load_config
from bllpipe.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "name"), [('"a #1"', "a #1"), ("'it''s #1'", "it's #1"), ("a#1", "a#1"), ('"2"', "2")]
)
def test_a_text_in_quotes_is_taken_whole(value: str, name: str) -> None:
    assert load_config(None, [f"name={value}"]).name == name


@pytest.mark.parametrize("override", ["name=a #1", "name=#1", "steps=5 # x", 'name="a" # b'])
def test_a_comment_is_not_cut_off(override: str) -> None:
    with pytest.raises(ConfigError, match="got a comment behind it.*use quotes inside quotes: --set '"):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("override", "found"), [("name=2024", "2024 (a whole number)"), ("name=true", "True (true or")]
)
def test_what_is_no_text_says_how_to_make_it_one(override: str, found: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(found) + ".*quotes inside quotes: --set 'name=\"...\"'"):
        load_config(None, [override])
