"""Ranks on machines with different GPUs choose alike, or say why they cannot."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.config import load_config
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.engines.devices import Machine, RankDevices, compare_devices
from bllpipe.errors import ConfigError
from bllpipe.topology import Topology

FOUR = Topology(4)


def own_store() -> Any:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=10))
    return store


def places(*sizes: int) -> list[RankEnvironment]:
    """Machines with so many ranks each."""
    return [
        RankEnvironment(sum(sizes[:node]) + local, sum(sizes), local, size, "host", 1, True, node=node)
        for node, size in enumerate(sizes)
        for local in range(size)
    ]


def chosen(sizes: list[int], gpus: list[int], *settings: str) -> list[str]:
    """What carries alpha, as every rank sees it; machines have ``gpus``, and all ranks ask at the same time."""
    config, store, ranks = load_config(None, list(settings)), own_store(), places(*sizes)

    def choose(rank: RankEnvironment) -> str:
        return RankDevices(config, FOUR, rank, Machine(gpus[rank.node])).agreed_backends(store)["alpha"]

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(choose, ranks))


@pytest.mark.parametrize(
    ("sizes", "gpus", "settings", "backend"),
    [
        ([2, 3], [2, 2], (), "nccl"),
        ([2, 3], [2, 1], (), "gloo"),  # once the first machine chose NCCL, and the second gloo
        ([2, 3], [0, 2], (), "gloo"),
        ([4, 1], [4, 0], (), "nccl"),  # the feedback is alone on a machine without a GPU: no alpha goes there
        ([4, 1], [3, 4], (), "gloo"),
        ([2, 3], [2, 2], ("device=cpu",), "gloo"),
        ([2, 3], [2, 2], ("backend.alpha=gloo",), "gloo"),
    ],
)
def test_all_ranks_choose_alike(sizes: list[int], gpus: list[int], settings: tuple[str, ...], backend: str) -> None:
    assert chosen(sizes, gpus, *settings) == [backend] * 5


@pytest.mark.parametrize(
    ("gpus", "settings", "text"),
    [
        ([2, 1], (), "the machines of ranks 2, 3 have no GPU for each of their blocks: activations go over gloo"),
        ([2, 2], (), ""),
        ([0, 0], (), ""),
        ([2, 1], ("backend.alpha=gloo",), ""),
    ],
)
def test_the_first_rank_says_why_it_is_gloo(
    gpus: list[int], settings: tuple[str, ...], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen([2, 3], gpus, *settings)
    error = capfd.readouterr().err
    assert error.count("bllpipe:") == bool(text) and text in error


def test_the_machine_of_the_feedback_alone_needs_no_gpu_for_alpha() -> None:
    *_, feedback = places(4, 1)
    RankDevices(load_config(None, ["backend.alpha=nccl"]), FOUR, feedback, Machine(0)).check_backends()


def test_where_all_talk_to_all_they_compute_on_the_same() -> None:
    store = own_store()
    compare_devices(0, "cuda", store)
    compare_devices(1, "cuda", store)
    with pytest.raises(ConfigError, match="rank 0 computes on cuda, this rank on cpu, .*; use --set device=cpu, or"):
        compare_devices(2, "cpu", store)
