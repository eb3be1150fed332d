"""Which device each rank computes on, for machines that this one is not."""

from __future__ import annotations

import pytest
import torch

from bllpipe.config import load_config
from bllpipe.distributed.process_links import chosen_backends
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.engines.devices import Machine, RankDevices, one_device
from bllpipe.engines.ranks import placed
from bllpipe.errors import ConfigError
from bllpipe.topology import Topology

FOUR = Topology(4)


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
        (5, ["feedback.device=cuda"], ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4"]),
        (1, ["feedback.device=cuda"], ["cuda:0"] * 5),
        (8, ["device=cpu"], ["cpu"] * 5),
    ],
)
def test_who_computes_where(gpus: int, overrides: list[str], devices: list[str]) -> None:
    config = load_config(None, overrides)
    assert [str(RankDevices(config, FOUR, rank(number), Machine(gpus)).device()) for number in range(5)] == devices


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda:0")])
def test_a_single_process_has_one_device(gpus: int, device: str) -> None:
    assert str(one_device(load_config(None), Machine(gpus))) == device


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=cuda", "device is cuda, but there is no GPU; use --set device=cpu"),
        ("feedback.device=cuda", "feedback.device is cuda, but there is no GPU; use --set feedback.device=cpu"),
    ],
)
def test_a_gpu_that_is_not_there(override: str, message: str) -> None:
    number = 4 if override.startswith("feedback") else 0
    with pytest.raises(ConfigError, match=message):
        RankDevices(load_config(None, [override]), FOUR, rank(number), Machine(0)).device()


@pytest.mark.parametrize(
    ("gpus", "per_machine", "distinct"), [(0, 5, False), (3, 5, False), (4, 5, True), (2, 2, True), (1, 2, False)]
)
def test_nccl_needs_a_gpu_a_block(gpus: int, per_machine: int, distinct: bool) -> None:
    assert RankDevices(load_config(None), FOUR, rank(0, per_machine), Machine(gpus)).has_distinct_gpus() is distinct


def test_the_feedback_has_no_gpu_of_its_own_when_the_blocks_take_all() -> None:
    with pytest.raises(ConfigError, match=r"the blocks take 4 GPUs, all there are on this machine; use --set feedback"):
        RankDevices(load_config(None, ["feedback.device=cuda"]), FOUR, rank(4), Machine(4)).device()


@pytest.mark.parametrize(
    ("gpus", "overrides", "message"),
    [
        (1, ["backend.alpha=nccl"], "backend.alpha is nccl, which takes one rank a GPU, but 4 blocks find 1 GPU on"),
        (0, ["backend.alpha=nccl"], "but 4 blocks find 0 GPUs on this machine; use --set backend.alpha=gloo"),
        (4, ["backend.target=nccl"], "backend.target is nccl, but the feedback rank has no GPU of its own: 4 blocks"),
        (8, ["backend.stats=nccl", "feedback.device=cpu"], "backend.stats is nccl, but the feedback rank has no GPU"),
    ],
)
def test_nccl_on_too_few_gpus(gpus: int, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RankDevices(load_config(None, overrides), FOUR, rank(0), Machine(gpus)).check_backends()


@pytest.mark.parametrize(
    ("gpus", "overrides", "per_machine"),
    [
        (0, [], 5),
        (1, [], 5),
        (4, ["backend.alpha=nccl"], 5),
        (5, ["backend.alpha=nccl", "backend.target=nccl", "backend.stats=nccl"], 5),
        (2, ["backend.alpha=nccl", "backend.target=nccl"], 2),
    ],
)
def test_placements_that_work(gpus: int, overrides: list[str], per_machine: int) -> None:
    RankDevices(load_config(None, overrides), FOUR, rank(0, per_machine), Machine(gpus)).check_backends()


@pytest.mark.parametrize(("gpus", "overrides"), [(0, []), (4, []), (1, ["device=cpu"])])
def test_nobody_shares(gpus: int, overrides: list[str]) -> None:
    assert RankDevices(load_config(None, overrides), FOUR, rank(0), Machine(gpus)).sharing_warning() == ""


@pytest.mark.parametrize(("gpus", "text"), [(1, "4 blocks share 1 GPU: their"), (2, "4 blocks share 2 GPUs: their")])
def test_who_shares_a_gpu_is_told_what_that_is(gpus: int, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert str(placed(RankDevices(load_config(None), FOUR, rank(0), Machine(gpus)))) == "cuda:0"
    assert text in capfd.readouterr().err
    placed(RankDevices(load_config(None), FOUR, rank(1), Machine(gpus)))
    assert capfd.readouterr().err == "", "the first rank speaks for all"


def test_this_machine() -> None:
    assert Machine.found().gpus == torch.cuda.device_count()


@pytest.mark.parametrize(("gpus", "distinct"), [(4, True), (3, False)])
def test_the_feedback_takes_no_gpu_from_the_last_of_several_machines(gpus: int, distinct: bool) -> None:
    """Nine ranks on two machines of four GPUs: once the second, with five, chose gloo and the first NCCL."""
    ranks = [RankEnvironment(3, 9, 3, 4, "host", 1, True), RankEnvironment(4, 9, 0, 5, "host", 1, True)]
    devices = [RankDevices(load_config(None), Topology(8), rank, Machine(gpus)) for rank in ranks]
    assert [each.has_distinct_gpus() for each in devices] == [distinct] * 2


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
