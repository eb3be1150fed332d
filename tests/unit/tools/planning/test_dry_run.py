"""The estimates of ``bllpipe check``: by hand for a small network, and as real runs measure them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bllpipe import launch
from bllpipe.cli.check import estimates_table, known_spec
from bllpipe.config import load_config
from bllpipe.data.catalog import PUBLISHED, DataSpec
from bllpipe.engines import topology
from bllpipe.errors import ConfigError, DataError
from bllpipe.tools.planning.dry_run import NeedsRealTensors, count, held_microbatches
from bllpipe.tools.planning.estimates import Estimates, Memory

SMALL = ("model.name=tests.support.networks.dry_run:small", "blocks=2", "data.batch_size=16")


def estimates_of(*overrides: str) -> Estimates:
    config = load_config(None, overrides)
    spec = known_spec(config.data)
    assert spec is not None
    return count(config, spec)


def train(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The summary of three steps."""
    words = [word for override in (*overrides, "steps=3", "evaluate.every_epochs=0") for word in ("--set", override)]
    assert launch.main([*words, "--run-dir", str(folder), "--quiet"]) == 0
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_messages_by_hand() -> None:
    estimates = estimates_of(*SMALL)
    frame = 256 + 64  # header and closing
    expected = {
        "alpha 0->1": frame + 16 * 2 * 8 * 8 * 4,
        "target 2->0": frame + 16 * 8 + 16 * 2 * 4 + 16 * 4,
        "target 2->1": frame + 16 * 8 + 16 * 10 * 4 + 16 * 4,
        "stats 0->2": frame + 128 + 64,  # 80 and 40 bytes, to the next multiple of 64
        "stats 1->2": frame + 448 + 64,
    }
    assert {str(edge): edge.step_bytes for edge in estimates.edges} == expected
    assert str(estimates.edges[0].tensors[0]) == "float32[16, 2, 8, 8]"
    assert (estimates.steps, estimates.steps_per_epoch) == (20 * 90, 90)
    assert estimates.sent(0) == expected["alpha 0->1"] + expected["stats 0->2"]
    assert estimates.received(2) == expected["stats 0->2"] + expected["stats 1->2"]


def test_memory_by_hand() -> None:
    estimates = estimates_of(*SMALL, "method=bp", "engine=gpipe", "pipeline.microbatches=4")
    weights, alpha = (2 * 9 + 2) * 4, 4 * 2 * 64 * 4
    kept = 4 * 64 * 4 + alpha  # images, and what the ReLU gives; it works in place of nothing else that is kept
    assert estimates.ranks[0].memory == Memory(weights, weights, weights, 4 * kept)
    assert estimates.ranks[0].memory.total == 3 * weights + 4 * kept


@pytest.mark.parametrize(
    "overrides", [("method=predsim",), ("method=bp", "engine=1f1b"), ("method=usf", "engine=single")]
)
def test_tensors_with_contents_take_the_memory_that_was_counted(
    overrides: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = estimates_of(*overrides, "model.width=4")
    monkeypatch.setattr("bllpipe.tools.planning.dry_run.SHAPES_ONLY", torch.device("cpu"))
    assert estimates_of(*overrides, "model.width=4") == counted


def test_a_block_keeps_messages_in_rings() -> None:
    edges = {str(edge): edge.message_bytes for edge in estimates_of(*SMALL).edges}
    overrides = (*SMALL, "backend.ring=3", "backend.in_flight=5")
    first, second, feedback = estimates_of(*overrides).ranks
    assert first.memory.messages == 5 * (edges["alpha 0->1"] + edges["stats 0->2"]) + 3 * edges["target 2->0"]
    assert second.memory.messages == 3 * (edges["alpha 0->1"] + edges["target 2->1"]) + 5 * edges["stats 1->2"]
    assert feedback.memory.messages > 0
    threads = estimates_of(*overrides, "engine=threads").ranks
    assert threads[0].memory.messages == 3 * edges["target 2->0"], "a sender of the same process keeps nothing"


def test_the_sums_of_probabilities_are_counted_for_tests_and_their_buffers() -> None:
    overrides = (*SMALL, "backend.ring=3", "backend.in_flight=5")
    plain, voting = estimates_of(*overrides), estimates_of(*overrides, "evaluate.ensemble=true")
    more = 16 * 10 * 4  # 16 images, 10 classes, float32
    assert {str(edge): edge.ensemble_bytes for edge in voting.edges if edge.ensemble_bytes} == {"alpha 0->1": more}
    assert not any(edge.ensemble_bytes for edge in plain.edges)
    assert [edge.step_bytes for edge in voting.edges] == [edge.step_bytes for edge in plain.edges]
    kept = [one.memory.messages - other.memory.messages for one, other in zip(voting.ranks, plain.ranks, strict=True)]
    assert kept == [5 * more, 3 * more, 0]


@pytest.mark.parametrize(
    "overrides",
    [
        ("engine=sequential", "blocks=3", "model.width=4", "objective.family=gaussian_learned"),
        ("engine=sequential", "blocks=2", "model.width=4", "precision.wire=int8", "shards=2"),
        ("engine=sequential", "blocks=balanced 2", "model.width=4", "feedback.update=sgd", "precision.wire=bf16"),
        ("engine=single", "method=dfa", "model.width=4"),
        ("engine=single", "method=fa", "model.width=4"),
    ],
    ids=" ".join,
)
def test_a_run_in_one_process_sends_and_holds_what_was_counted(tmp_path: Path, overrides: Sequence[str]) -> None:
    compare(estimates_of(*overrides), train(tmp_path, overrides))


@pytest.mark.ranks
def test_stages_send_and_hold_what_was_counted(tmp_path: Path) -> None:
    overrides = ("engine=zbv", "method=bp", "blocks=4", "model.width=4")
    compare(estimates_of(*overrides), train(tmp_path, overrides))


def compare(estimates: Estimates, summary: dict[str, Any]) -> None:
    """Bytes of the training, of all steps, and parameters, as they were measured."""
    assert [each.parameters for each in estimates.ranks] == summary["parameters"]
    assert [each.role for each in estimates.ranks] == summary["roles"]
    sent = [3 * estimates.sent(each.rank) for each in estimates.ranks]
    assert [sum(edges.values()) for edges in summary["sent_bytes"]] == sent


def test_replicas_average_their_gradients_in_a_ring() -> None:
    estimates = estimates_of(*SMALL, "method=bp", "engine=ddp", "blocks=4")
    num_bytes = (2 * 9 + 2 + 128 * 10 + 10) * 4
    assert [estimates.sent(rank) for rank in range(4)] == [2 * 3 * num_bytes // 4] * 4
    assert {each.memory.messages for each in estimates.ranks} == {num_bytes}, "the buckets"
    assert estimates_of(*SMALL, "method=bp", "engine=ddp", "blocks=1").edges == ()


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("gpipe", [8, 8, 8, 8]), ("1f1b", [4, 3, 2, 1]), ("interleaved", [2.5, 1.5]), ("zbv", [2, 2])],
)
def test_a_schedule_holds_microbatches(engine: str, expected: list[float]) -> None:
    config = load_config(None, ["method=bp", f"engine={engine}", "pipeline.microbatches=8", "blocks=4"])
    layout = topology(config)
    assert [held_microbatches(config, layout, rank) for rank in layout.block_ranks] == expected


def test_autocast_changes_no_figure() -> None:
    assert estimates_of(*SMALL, "precision.compute=bf16") == estimates_of(*SMALL)


def test_a_network_that_looks_at_values_is_not_counted() -> None:
    with pytest.raises(NeedsRealTensors, match="meta"):
        estimates_of("model.name=tests.support.networks.dry_run:choosy", "blocks=2")


def test_a_network_that_refuses_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot compute batches of 64 images: one image at a time; change the"):
        estimates_of("model.name=tests.support.networks.dry_run:lonely", "blocks=2")


def test_what_is_wrong_with_shapes_is_told_as_a_rank_would() -> None:
    with pytest.raises(ConfigError, match=r"block 1 \(1 last\) cannot take \[2, 16, 16\]"):
        estimates_of(*SMALL, "data.name=synthetic", "data.image_size=16")


def test_sizes_of_data_that_are_there_are_read(tmp_path: Path) -> None:
    x, y = np.zeros((8, 6, 5, 3), np.uint8), np.arange(8) % 4
    np.savez(tmp_path / "own.npz", train_x=x, train_y=y, test_x=x[:4], test_y=y[:4])
    data = load_config(None, ["data.name=npz", f"data.path={tmp_path}/own.npz"]).data
    assert known_spec(data) == DataSpec(8, 4, (3, 6, 5), 4)
    assert known_spec(load_config(None, ["data.name=npz", "data.path=/nowhere/own.npz"]).data) is None


def test_data_that_are_there_but_wrong_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(b"nothing")
    data = load_config(None, ["data.name=npz", f"data.path={tmp_path}/own.npz"]).data
    with pytest.raises(DataError, match=r"own\.npz"):
        known_spec(data)
    with pytest.raises(DataError, match="train does not exist"):
        known_spec(load_config(None, ["data.name=imagefolder", f"data.path={tmp_path}"]).data)


def test_a_local_head_is_counted_with_its_share_of_the_block() -> None:
    """By hand: 3x3 convolutions from 8 to 64 channels on 4x4, 2x2 and 1x1 positions, and a linear layer."""
    config = load_config(None, ["model.width=8", "objective.head=strided"])
    estimates = count(config, PUBLISHED["digits"])
    first, *_, last, _ = estimates.ranks
    products = [9 * 8 * 16 * 16, 9 * 16 * 32 * 4, 9 * 32 * 64 * 1, 64 * 10]
    assert first.head_operations == 2 * sum(products)
    convolution = 9 * 8 * 8 * 64  # with as many channels, on 8x8 positions
    assert first.operations - first.head_operations == 2 * (4 * convolution + convolution // 8)
    weights = 9 * (8 * 16 + 16 * 32 + 32 * 64) + 64 * 10 + 10
    assert first.head_parameters == weights + 4 * (16 + 32 + 64), "BatchNorm has four numbers a channel"
    assert last.head_parameters == last.head_operations == 0 < last.operations
    assert "block 0" in estimates_table(estimates, config).split("local head of")[1]


def test_replicas_hold_a_shard_and_add_up_their_gradients() -> None:
    whole, many = estimates_of("blocks=2"), estimates_of("blocks=2", "replicas=[2, 1]", "shards=4")
    assert [each.role for each in many.ranks] == ["block 0 replica 0", "block 0 replica 1", "block 1", "feedback"]
    assert [each.parameters for each in many.ranks[1:3]] == [each.parameters for each in whole.ranks[:2]]
    assert many.ranks[0].memory.activations == many.ranks[1].memory.activations < whole.ranks[0].memory.activations / 3
    edges = {str(edge): edge for edge in many.edges}
    alphas = [edges["alpha 0->2"], edges["alpha 1->2"]]
    assert [edge.num_messages for edge in alphas] == [2, 2]
    one = next(edge for edge in whole.edges if edge.kind == "alpha")
    assert 0 < sum(edge.step_bytes for edge in alphas) - one.step_bytes < 4 * 512, "but for headers"
    gradients = whole.ranks[0].memory.gradients
    assert {name: edge.step_bytes for name, edge in edges.items() if edge.kind == "gradient"} == {
        "gradient 0->1": gradients,
        "gradient 1->0": gradients,
    }


def test_with_norm_sync_the_shards_of_a_replica_go_together() -> None:
    many = estimates_of("blocks=2", "replicas=2", "shards=4", "norm=sync")
    stats = [edge for edge in many.edges if edge.kind == "stats"]
    assert [edge.num_messages for edge in stats] == [1] * 4


def test_slices_and_recomputed_units_need_less() -> None:
    replicas = ("blocks=2", "replicas=[2, 1]", "reduce=native")
    settings: tuple[tuple[str, ...], ...] = ((), ("sharding=fsdp",), ("model.recompute=units",))
    plain, sliced, recomputed = ([each.memory for each in estimates_of(*replicas, *more).ranks] for more in settings)
    assert [sliced[rank].gradients / plain[rank].gradients for rank in range(3)] == [0.5, 0.5, 1], "one has no replicas"
    assert sliced[0].weights == plain[0].weights // 2 and sliced[0].optimizer == plain[0].optimizer // 2
    assert sliced[0].activations == plain[0].activations
    assert all(recomputed[rank].activations < plain[rank].activations for rank in range(2))
    assert recomputed[0].weights == plain[0].weights
