"""Ranks that do not suit each other find out before they send anything."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch.distributed as dist

import bllpipe
from bllpipe.config import load_config, to_mapping
from bllpipe.distributed.message_format import VERSION
from bllpipe.engines.job import compare_with_first, introduce
from bllpipe.errors import ConfigError


def compare(ours: list[str], first: list[str]) -> None:
    store: Any = dist.HashStore()
    introduce(load_config(None, first), store)
    compare_with_first(load_config(None, ours), store)


def test_ranks_with_the_same_config_suit_each_other() -> None:
    compare(["seed=1", "blocks=[2, 4]"], ["seed=1", "blocks=[2, 4]"])


@pytest.mark.parametrize("own", ["data.path=/there", "data.workers=2", "log.every_steps=1", "feedback.device=cpu"])
def test_what_a_rank_reads_for_itself_may_differ(own: str) -> None:
    settings = ["data.name=npz", "data.path=/here"]
    compare([*settings, own], settings)


def test_other_settings_are_named_with_both_values() -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)rank 0 has another configuration than this rank:\n.*start all ranks"
    ) as e:
        compare(["optimizer.lr=0.1", "precision.wire=bf16"], [])
    assert "\n  optimizer.lr: 0.05 in rank 0, 0.1 here\n" in str(e.value)
    assert '\n  precision.wire: "fp32" in rank 0, "bf16" here\n' in str(e.value)


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"messages": VERSION - 1, "bllpipe": bllpipe.__version__}, rf"version {VERSION - 1} of the messages"),
        ({"messages": VERSION, "bllpipe": "9.9"}, r"\(bllpipe 9.9\)"),
        ({}, r"version None of the messages \(bllpipe None\)"),
    ],
)
def test_another_version_is_named(theirs: dict[str, Any], words: str) -> None:
    store: Any = dist.HashStore()
    config = load_config(None, [])
    store.set("first", json.dumps({**theirs, "config": to_mapping(config)}))
    ours = rf"this rank version {VERSION} of the messages \(bllpipe {bllpipe.__version__}\)"
    with pytest.raises(ConfigError, match=rf"rank 0 has .*{words}.*, {ours}; install the same bllpipe on all machines"):
        compare_with_first(config, store)
