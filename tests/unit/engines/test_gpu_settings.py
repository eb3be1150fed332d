"""What gpu.* sets, on machines without a GPU: nothing for a CPU, and the switches that torch has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import BatchNorm2d

from bllpipe.config import load_config
from bllpipe.distributed.local_links import LocalLinks
from bllpipe.distributed.torchrun import allow_deterministic_products
from bllpipe.engines.build import JobBuilder, build_job_segment
from bllpipe.engines.devices import set_up
from bllpipe.engines.in_process import links_in_turn
from bllpipe.learn import block
from bllpipe.learn.cuda_graphs import compile_parts, speed_up
from bllpipe.learn.memory_format import as_channels_last, place, uses_channels_last
from tests.unit.engines.test_job import job_of
from tests.unit.learn.test_cuda_graphs import SETTINGS, images, make, step_of

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
EVERYTHING = ["gpu.tf32=true", "gpu.capture=true", "gpu.compile=true", "gpu.deterministic=true"]


def test_a_cpu_computes_as_ever() -> None:
    config = load_config(None, [*EVERYTHING, "engine=sequential"])
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    set_up(config, CPU)
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == before
    plain = make(config)
    forward = plain.forward
    assert speed_up(plain, config).forward == forward
    assert not uses_channels_last(config, CPU) and not plain.channels_last


def test_activations_lie_as_a_gpu_likes_them() -> None:
    assert uses_channels_last(load_config(None), GPU)
    for wanted in (True, False):
        config = load_config(None, [f"channels_last={wanted}".lower()])
        assert uses_channels_last(config, GPU) is uses_channels_last(config, CPU) is wanted
    assert as_channels_last(torch.zeros(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    assert as_channels_last(torch.zeros(2, 3)).is_contiguous()
    layer = place(torch.nn.Conv2d(2, 3, 3), load_config(None), CPU)
    assert layer.weight.is_contiguous()
    layer = place(torch.nn.Conv2d(2, 3, 3), load_config(None, ["channels_last=true"]), CPU)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (2, 1, 4, 4), (1, 1, 1, 1), (2, 3, 1, 4)])
def test_strides_do_not_tell_where_maps_came_from(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape)
    came_so = torch.empty(shape, memory_format=torch.channels_last).copy_(maps)
    here = as_channels_last(maps)
    assert here.stride() == as_channels_last(came_so).stride() == came_so.stride()
    assert torch.equal(here, maps) and torch.equal(came_so, maps)


@pytest.mark.parametrize("method", ["fa", "usf"])
def test_weights_for_the_way_back_lie_as_the_others_do(tmp_path: Path, method: str) -> None:
    job, store = job_of(tmp_path, f"method={method}", "engine=single", "channels_last=true")
    convolutions = [value for value in build_job_segment(job, store, 0, CPU).state_dict().values() if value.dim() == 4]
    assert len(convolutions) == (40 if method == "fa" else 20)
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in convolutions)


def test_channels_last_gives_the_same_up_to_rounding() -> None:
    plain, last = make(load_config(None)), make(load_config(None))
    last.channels_last = True
    wide = torch.randn(6, 8, 8, 8)
    plain.segment.conv1, last.segment.conv1 = torch.nn.Identity(), torch.nn.Identity()
    expected, found = plain.infer(wide), last.infer(wide)
    torch.testing.assert_close(found, expected)
    assert last.x.is_contiguous(memory_format=torch.channels_last) and not last.x.is_contiguous()


@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
def test_compiled_parts_keep_their_names_and_their_steps(settings: tuple[str, ...]) -> None:
    """One region for the segment, one for what is sent, one from alpha to losses and hits, and none a second time:
    whatever step the target is of."""
    torch._dynamo.reset()
    config, counter = load_config(None, list(settings)), CompileCounterWithBackend("eager")
    plain, compiled = make(config), make(config)
    compile_parts(compiled, backend=counter)  # what torch's compiler makes of Python, without its code
    for step in range(4):
        (expected, sent), (found, other) = (step_of(each, images(step), step) for each in (plain, compiled))
        assert all(torch.equal(expected.terms[name], found.terms[name]) for name in expected.terms)
        assert torch.equal(expected.correct, found.correct) and all(map(torch.equal, sent, other))
        assert counter.frame_count == 3
    state, other_state = plain.learner.state(), compiled.learner.state()
    assert [name for name in state if not torch.equal(state[name], other_state[name])] == []
    assert compiled.learner.weights().keys() == plain.learner.weights().keys()


def test_blocks_that_take_turns_on_a_cpu_have_channels(tmp_path: Path) -> None:
    assert isinstance(links_in_turn(job_of(tmp_path, "blocks=2")[0], CPU), LocalLinks)


def test_products_are_deterministic_unless_somebody_has_chosen() -> None:
    unset, chosen = dict[str, str](), {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    allow_deterministic_products(unset)
    allow_deterministic_products(chosen)
    assert unset == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert chosen == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}


@pytest.mark.parametrize(
    ("beside_nccl", "compiled", "expected"), [(True, "false", True), (True, "true", False), (False, "false", False)]
)
def test_batch_norms_beside_nccl_leave_cudnn_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside_nccl: bool, compiled: str, expected: bool
) -> None:
    monkeypatch.setattr(block, "uses_channels_last", lambda config, device: True)  # as on a GPU
    job, store = job_of(tmp_path, "blocks=2", "objective.head=conv", f"gpu.compile={compiled}")
    assembly = JobBuilder(job, store, LocalLinks(CPU, timeout=1), beside_nccl=beside_nccl)
    built = assembly._block(0, build_job_segment(job, store, 0, CPU))
    norms = [part for part in (*built.segment.modules(), *built.head.modules()) if isinstance(part, BatchNorm2d)]
    assert len(norms) > 2 and all(("forward" in vars(norm)) is expected for norm in norms)
