"""What gpu.* sets, on machines without a GPU: nothing for a CPU, and the switches that torch has."""

from __future__ import annotations

from pathlib import Path

import torch

from bllpipe.config import load_config
from bllpipe.engines.gpu import compile_parts, set_up, speed_up
from bllpipe.engines.sequential import wires_in_turn
from bllpipe.learn.placing import as_channels_last, lies_channels_last, place
from bllpipe.wire.environment import allow_deterministic_products
from bllpipe.wire.local import LocalWires
from tests.unit.engines.test_job import job_of
from tests.unit.learn.test_capture import images, make, step_of

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
EVERYTHING = ["gpu.tf32=true", "gpu.capture=true", "gpu.compile=true", "gpu.deterministic=true"]


def test_a_cpu_computes_as_ever() -> None:
    config = load_config(None, [*EVERYTHING, "engine=sequential"])
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    set_up(config, CPU)
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == before
    block = make(config)
    forward = block.forward
    assert speed_up(block, config).forward == forward
    assert not lies_channels_last(config, CPU) and not block.channels_last


def test_activations_lie_as_a_gpu_likes_them() -> None:
    assert lies_channels_last(load_config(None), GPU)
    assert not lies_channels_last(load_config(None, ["gpu.channels_last=false"]), GPU)
    assert as_channels_last(torch.zeros(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    assert as_channels_last(torch.zeros(2, 3)).is_contiguous()
    layer = place(torch.nn.Conv2d(2, 3, 3), load_config(None), CPU)
    assert layer.weight.is_contiguous()


def test_channels_last_gives_the_same_up_to_rounding() -> None:
    plain, last = make(load_config(None)), make(load_config(None))
    last.channels_last = True
    wide = torch.randn(6, 8, 8, 8)
    plain.segment.conv1, last.segment.conv1 = torch.nn.Identity(), torch.nn.Identity()
    expected, found = plain.infer(wide), last.infer(wide)
    torch.testing.assert_close(found, expected)
    assert last.x.is_contiguous(memory_format=torch.channels_last) and not last.x.is_contiguous()


def test_compiled_parts_keep_their_names_and_their_steps() -> None:
    plain, compiled = make(load_config(None)), make(load_config(None))
    compile_parts(compiled, backend="eager")  # what torch's compiler makes of Python, without its code
    for step in range(2):
        expected, found = (step_of(block, images(step), step)[0] for block in (plain, compiled))
        assert all(torch.equal(expected.terms[name], found.terms[name]) for name in expected.terms)
    assert compiled.learner.weights().keys() == plain.learner.weights().keys()


def test_blocks_that_take_turns_on_a_cpu_have_channels(tmp_path: Path) -> None:
    assert isinstance(wires_in_turn(job_of(tmp_path, "blocks=2"), CPU), LocalWires)


def test_products_are_deterministic_unless_somebody_has_chosen() -> None:
    unset, chosen = dict[str, str](), {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    allow_deterministic_products(unset)
    allow_deterministic_products(chosen)
    assert unset == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert chosen == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
