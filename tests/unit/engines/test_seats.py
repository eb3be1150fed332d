"""What is counted of blocks, against the estimates of bllpipe check, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.config import Config, load_config
from bllpipe.data.catalog import PUBLISHED
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.engines import Options, check_ranks, launcher, topology
from bllpipe.engines.job import JobStore
from bllpipe.engines.seats import Decision, count_blocks, in_one_process, is_open
from bllpipe.errors import ConfigError
from bllpipe.launch import check_number
from bllpipe.tools.planning.dry_run import count
from bllpipe.topology import feedback_ranks_among, num_feedback_ranks

DIGITS = PUBLISHED["digits"]
SMALL = ("model.width=4", "data.batch_size=32")


def decided(ranks: int, *settings: str, nodes: tuple[int, ...] = (), shards: int | None = None) -> Config:
    decision = Decision(load_config(None, [*SMALL, *settings]), ranks, DIGITS)
    decision.nodes, decision.shards = nodes, shards
    return decision.made()


@pytest.mark.parametrize(
    "settings", [(), ("objective.head=conv", "precision.wire=bf16", "blocks=[3, 5]"), ("objective.message=cells",)]
)
def test_bytes_are_those_of_the_estimates(settings: tuple[str, ...]) -> None:
    config = load_config(None, [*SMALL, "blocks=3", *settings])
    estimates, counts = count(config, DIGITS), count_blocks(config, DIGITS)
    assert [each.gradient for each in counts] == [rank.memory.gradients for rank in estimates.ranks[:-1]]
    headers = 1024  # and the space between tensors
    for kind in ("alpha", "target", "stats"):
        messages = [edge.message_bytes for edge in estimates.edges if edge.kind == kind]
        found = [getattr(each, kind) for each in counts][: len(messages)]
        assert all(0 < size - own < headers for size, own in zip(messages, found, strict=True))


def test_replicas_and_shards_follow_from_the_number_of_ranks() -> None:
    found = decided(5, "blocks=2", "replicas=auto")
    assert (found.block_replicas, found.shards, found.placement) == ((2, 2), 2, "block")
    assert topology(found).world_size == 5 and not is_open(found)
    assert decided(3, "blocks=2", "replicas=auto", shards=4).shards == 4, "those of the run that is resumed"
    assert decided(4, "blocks=2", "replicas=auto", "shards=8", shards=4).shards == 8, "the config's come first"


def test_blocks_that_are_balanced_are_cut_before_they_are_counted() -> None:
    found = decided(4, "blocks=balanced 2", "replicas=auto")
    assert (found.blocks, sum(found.block_replicas)) == ("balanced 2", 3)


def test_what_depends_on_shards_is_checked_when_they_are_known() -> None:
    with pytest.raises(ConfigError, match="norm is sync, .* but method predsim"):
        decided(5, "blocks=2", "replicas=auto", "norm=sync", "method=predsim")


@pytest.mark.parametrize(
    ("settings", "order"), [(("objective.head=conv",), "block"), (("data.batch_size=4096",), "pipeline")]
)
def test_the_order_with_fewer_bytes_between_nodes(settings: tuple[str, ...], order: str) -> None:
    """Large batches have large alphas, and the same gradients."""
    words = "blocks=2", "replicas=2", "shards=2", *settings
    assert decided(5, *words, nodes=(0, 0, 1, 1, 1)).placement == order
    assert decided(5, *words, nodes=(0,) * 5).placement == "block"
    assert decided(5, *words, "placement=pipeline").placement == "pipeline"


def test_a_network_that_cannot_be_counted_keeps_the_order(capsys: pytest.CaptureFixture[str]) -> None:
    own = ("model.name=tests.support.networks.planning:small", "model.args.looks=true", "blocks=2")
    assert decided(5, *own, "replicas=2", nodes=(0, 0, 1, 1, 1)).placement == "block"
    assert "placement is auto, but the operations of unit" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="^replicas is auto, but the operations of unit .*; use --set replicas=2"):
        decided(5, *own, "replicas=auto")


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_feedback_ranks_among_any_number_of_ranks(blocks: int) -> None:
    for ranks in range(blocks + 1, 400):
        found = feedback_ranks_among(ranks, blocks)
        assert num_feedback_ranks(ranks - found, blocks) <= found <= blocks
    words = "blocks=2", "replicas=auto", "data.batch_size=256", "shards=128"
    seats = decided(66, *words)
    assert (sum(seats.block_replicas), seats.feedback.ranks) == (64, 2), "one would have 65 ranks of blocks"
    assert decided(65, *words).feedback.ranks is None


def test_one_process_has_the_shards_of_the_run(tmp_path: Path) -> None:
    raw: Any = dist.HashStore()
    config, options = load_config(None, ["replicas=auto", "engine=sequential"]), Options(run_dir=str(tmp_path))
    found = in_one_process(config, options, JobStore(raw))
    assert (found.replicas, found.shards) == (1, None)
    assert not is_open(config), "who holds what is not asked"


def test_at_least_one_rank_for_every_block() -> None:
    config = load_config(None, ["replicas=auto"])
    check_ranks(config, 5)
    check_ranks(config, 50)
    with pytest.raises(ConfigError, match="4 blocks and 1 feedback rank need 5 ranks, but torchrun started 4"):
        check_ranks(config, 4)


def test_the_launcher_starts_a_rank_for_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "usable_processors", lambda: 12)
    auto = ["replicas=auto", "device=cpu"]
    assert launcher.num_ranks(load_config(None, auto)) == 13
    assert launcher.num_ranks(load_config(None, [*auto, "cpu_threads=2"])) == 7
    assert launcher.num_ranks(load_config(None, [*auto, "cpu_threads=8"])) == 5, "one for every block"
    assert launcher.num_ranks(load_config(None, [*auto, "shards=2"])) == 9, "every replica needs a shard"
    assert launcher.num_ranks(load_config(None, auto), asked=9) == 9
    assert launcher.num_ranks(load_config(None, ["replicas=2"])) == 9
    assert launcher.describe_failure({3: -9}, None) == "rank 3 was killed by signal 9 (Killed)"


@pytest.mark.parametrize("settings", [("engine=gpipe", "method=bp"), ("engine=single", "method=bp")])
def test_other_engines_have_no_replicas_to_count(settings: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="replicas is auto, but engine .* has no replicas of blocks"):
        load_config(None, ["replicas=auto", *settings])


def test_more_feedback_ranks_than_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="feedback.ranks is 3, but the feedback has one loop a block, 2 in all"):
        load_config(None, ["blocks=2", "feedback.ranks=3"])


def test_another_number_of_ranks_than_torchrun_started() -> None:
    environment = RankEnvironment(0, 5, 0, 5, "localhost", 1, True)
    check_number(5, load_config(None, ["replicas=auto"]), environment)
    with pytest.raises(ConfigError, match="--ranks is 6, but torchrun started 5; use torchrun --nproc_per_node=6"):
        check_number(6, load_config(None, ["replicas=auto"]), environment)
