"""Which device each rank computes on, for machines that this one is not."""

from __future__ import annotations

import pytest
import torch

from bllpipe.config import load_config
from bllpipe.engines.devices import distinct_gpus, one_device, rank_device
from bllpipe.errors import ConfigError
from bllpipe.topology import Topology
from bllpipe.wire.environment import RankEnvironment
from bllpipe.wire.processes import chosen_backends

FOUR = Topology(4)


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def rank(number: int, local_world_size: int = 5) -> RankEnvironment:
    return RankEnvironment(number, 5, number % local_world_size, local_world_size, "localhost", 1, True)


@pytest.mark.parametrize(
    ("gpus", "overrides", "devices"),
    [
        (0, [], ["cpu"] * 5),
        (1, [], ["cuda:0"] * 4 + ["cpu"]),
        (4, [], ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu"]),
        (5, [], ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4"]),
        (8, ["feedback.device=cpu"], ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu"]),
        (4, ["feedback.device=cuda"], ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0"]),
        (8, ["device=cpu"], ["cpu"] * 5),
    ],
)
def test_who_computes_where(
    monkeypatch: pytest.MonkeyPatch, gpus: int, overrides: list[str], devices: list[str]
) -> None:
    machine(monkeypatch, gpus)
    config = load_config(None, overrides)
    assert [str(rank_device(config, FOUR, rank(number))) for number in range(5)] == devices


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda:0")])
def test_a_single_process_has_one_device(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    machine(monkeypatch, gpus)
    assert str(one_device(load_config(None))) == device


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=cuda", "device is cuda, but there is no GPU; use --set device=cpu"),
        ("feedback.device=cuda", "feedback.device is cuda, but there is no GPU; use --set feedback.device=cpu"),
    ],
)
def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, override: str, message: str) -> None:
    machine(monkeypatch, 0)
    number = 4 if override.startswith("feedback") else 0
    with pytest.raises(ConfigError, match=message):
        rank_device(load_config(None, [override]), FOUR, rank(number))


@pytest.mark.parametrize(
    ("gpus", "per_machine", "distinct"), [(0, 5, False), (3, 5, False), (4, 5, True), (2, 2, True), (1, 2, False)]
)
def test_nccl_needs_a_gpu_a_block(monkeypatch: pytest.MonkeyPatch, gpus: int, per_machine: int, distinct: bool) -> None:
    machine(monkeypatch, gpus)
    assert distinct_gpus(load_config(None), FOUR, rank(0, per_machine)) is distinct


@pytest.mark.parametrize(
    ("overrides", "distinct", "backends"),
    [
        ([], False, ["gloo", "gloo", "gloo"]),
        ([], True, ["nccl", "gloo", "gloo"]),
        (["backend.alpha=gloo", "backend.stats=nccl"], True, ["gloo", "gloo", "nccl"]),
    ],
)
def test_what_carries_each_kind_of_edge(overrides: list[str], distinct: bool, backends: list[str]) -> None:
    chosen = chosen_backends(load_config(None, overrides).backend, distinct)
    assert [chosen[kind] for kind in ("alpha", "target", "stats")] == backends
