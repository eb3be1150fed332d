"""What differs between two configurations, and whether a run may go on with it."""

from __future__ import annotations

import json

import pytest

from bllpipe.checkpoint.resume import Change, changes, refuse_others
from bllpipe.config import Config, to_mapping
from bllpipe.config.loader import flat
from bllpipe.errors import ConfigError


def test_a_configuration_read_from_json_does_not_differ() -> None:
    assert changes(json.loads(json.dumps(to_mapping(Config()))), to_mapping(Config())) == []


def test_values_and_kinds_of_values_differ_and_so_do_keys_that_only_one_has() -> None:
    then = {"a": {"b": 1, "gone": None}, "same": [1, "x"], "kind": 1}
    now = {"a": {"b": 2, "new": "y"}, "same": [1, "x"], "kind": 1.0}
    assert [str(change) for change in changes(then, now)] == [
        "a.b: 1 then, 2 now",
        "a.gone: null then, nothing now",
        'a.new: nothing then, "y" now',
        "kind: 1 then, 1.0 now",
    ]


@pytest.mark.parametrize(
    ("then", "now", "is_harmless"),
    [
        ("ranks", "threads", True),
        ("sequential", "streams", True),
        ("sequential", "ranks", True),
        ("single", "1f1b", False),
        ("ranks", "single", False),
        ("gpipe", "1f1b", False),
    ],
)
def test_another_engine_is_harmless_only_if_it_gives_the_same_bits(then: str, now: str, is_harmless: bool) -> None:
    assert Change("engine", json.dumps(then), json.dumps(now)).is_harmless is is_harmless


@pytest.mark.parametrize(
    ("accepted", "is_accepted"),
    [(["optimizer.lr"], True), (["optimizer"], True), (["optim"], False), (["optimizer.l"], False), ([], False)],
)
def test_a_key_is_accepted_by_its_name_or_that_of_its_section(accepted: list[str], is_accepted: bool) -> None:
    assert Change("optimizer.lr", "1", "2").is_accepted(accepted) is is_accepted


def test_all_that_is_refused_is_named_at_once() -> None:
    found = [Change("blocks", "4", "2"), Change("log.every_steps", "1", "2"), Change("seed", "0", "1")]
    refuse_others(found, ["blocks", "seed"], "it")
    with pytest.raises(
        ConfigError, match=r"(?s)^it was written .*:\n  blocks: 4 then, 2 now\n  seed: 0 .*--accept blocks seed"
    ):
        refuse_others(found, [], "it")


def test_nested_keys_become_dotted_ones() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_replicas_are_harmless_while_their_sums_are_exact() -> None:
    assert Change("replicas", "1", "2").is_harmless
    assert not Change("replicas", "1", "2", is_exact=False).is_harmless
