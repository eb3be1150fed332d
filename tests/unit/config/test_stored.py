"""Configurations of earlier versions: what a run wrote is moved to the keys of today, what a user types is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bllpipe.config import Config, load_config, parse_config, to_mapping
from bllpipe.config.loader import dump_yaml, load_stored_config, with_defaults, with_moved_keys
from bllpipe.errors import ConfigError


def old_form(config: Config, channels_last: bool = True) -> dict[str, Any]:
    """The mapping that the version before ``channels_last`` had a key of its own wrote for ``config``."""
    mapping = to_mapping(config)
    del mapping["channels_last"]
    return {**mapping, "gpu": {"channels_last": channels_last, **mapping["gpu"]}}


@pytest.mark.parametrize(("then", "now"), [(True, "auto"), (False, False)])
def test_the_old_key_is_moved(tmp_path: Path, then: bool, now: bool | str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(old_form(load_config(None, ["seed=3"]), then)))
    config = load_stored_config(str(file))
    assert config.channels_last == now and config.seed == 3
    assert load_config(None, ["seed=3", f"channels_last={now}".lower()]) == config


def test_what_stands_in_the_new_place_stays() -> None:
    assert with_moved_keys({"channels_last": True, "gpu": {"channels_last": False}}) == {
        "channels_last": True,
        "gpu": {},
    }


@pytest.mark.parametrize("mapping", [{}, {"gpu": None}, {"gpu": {"tf32": True}}, to_mapping(Config())])
def test_anything_else_is_left_alone(mapping: dict[str, Any]) -> None:
    assert with_moved_keys(mapping) == mapping


@pytest.mark.parametrize(
    ("settings", "then"),
    [([], False), (["objective.head=gap"], "auto"), (["method=bp", "engine=single"], "auto")],
)
def test_linear_heads_were_not_scaled_before_there_was_a_key_for_it(
    tmp_path: Path, settings: list[str], then: bool | str
) -> None:
    """Their results are those of today with the key; others do not depend on it."""
    mapping = to_mapping(load_config(None, settings))
    del mapping["objective"]["head_scale"]
    expected = load_config(None, [*settings, f"objective.head_scale={then}".lower()])
    assert parse_config(with_defaults(mapping)) == expected
    (tmp_path / "config.yaml").write_text(dump_yaml(mapping))
    assert load_stored_config(str(tmp_path / "config.yaml")) == expected
    assert with_moved_keys(to_mapping(expected)) == to_mapping(expected), "what a run says of it stays"


def test_keys_that_were_not_there_had_their_default() -> None:
    mapping = old_form(load_config(None, ["optimizer.lr=0.3"]))
    del mapping["objective"]["keep_weight"], mapping["trace"]
    assert parse_config(with_defaults(mapping)) == load_config(None, ["optimizer.lr=0.3"])


def test_in_a_file_of_ones_own_the_old_key_is_an_error(tmp_path: Path) -> None:
    message = r"^gpu\.channels_last is now channels_last, .*; use channels_last: auto \(on GPUs only\), true or false$"
    file = tmp_path / "mine.yaml"
    file.write_text("gpu: {channels_last: true}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(str(file))
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["gpu.channels_last=true"])
