"""Whatever a script has switched on around a run: the run has the same bits, and the switch is as it was."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import bllpipe
from bllpipe import launch
from bllpipe.utils.tensors import torch_defaults
from tests.support.networks.api import DATA, seeded_network

BACKENDS: Any = torch.backends
Around = AbstractContextManager[Any]


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield
    os.chdir(before)


class Unsettled(nn.Module):
    """Depends on every switch: a convolution, attention, a product, numbers that are tiny, and random ones."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 8, 3, padding=1)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x.unsqueeze(1)).transpose(1, 2)
        drawn = float(np.random.rand()) + random.random() if self.training else 1.0
        made = self.attention(x).mean(dim=1) * torch.tensor(drawn)
        return made * (1 + 1e30 * torch.full((8,), 1e-40))  # type: ignore[no-any-return]  # tensors are untyped here


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(Unsettled(), nn.Sequential(weight_norm(nn.Linear(8, 16)), nn.ReLU()), nn.Linear(16, 3))


def trained(model: nn.Sequential, precision: str = "fp32") -> str:
    settings = {"data.batch_size": 32, "precision.compute": precision}
    return bllpipe.train(model, DATA, blocks=[1, 2], epochs=2, settings=settings).state_sha256


@contextmanager
def turned(write: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    write(value)
    try:
        yield
    finally:
        write(back)


def attribute(owner: Any, name: str, value: Any, back: Any) -> tuple[Callable[[], Any], Callable[[], Around]]:
    return lambda: getattr(owner, name), lambda: turned(lambda to: setattr(owner, name, to), value, back)


def function(
    read: Callable[[], Any], write: Callable[[Any], Any], value: Any, back: Any
) -> tuple[Callable[[], Any], Callable[[], Around]]:
    return read, lambda: turned(write, value, back)


CUDA = BACKENDS.cuda
FUTURE: Any = torch.__future__
HOOKS: Any = torch.autograd.graph


def in_half(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.dtype == torch.float32 else tensor


def saved() -> Any:
    hooks: Any = torch._C._autograd
    return hooks._top_saved_tensors_default_hooks(True), hooks._saved_tensors_hooks_get_disabled_error_message()


AROUND: dict[str, tuple[Callable[[], Any], Callable[[], Around]]] = {
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda: torch.autocast("cpu", torch.bfloat16)),
    "autocast without cache": (
        torch.is_autocast_cache_enabled,
        lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    ),
    "no_grad": (torch.is_grad_enabled, torch.no_grad),
    "inference_mode": (torch.is_inference_mode_enabled, torch.inference_mode),
    "default dtype": function(torch.get_default_dtype, torch.set_default_dtype, torch.float64, torch.float32),
    "default device": (torch.get_default_device, lambda: torch.device("meta")),
    "set_default_device": function(torch.get_default_device, torch.set_default_device, "meta", None),
    "deterministic": function(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 2, 0),
    "anomaly": (torch.is_anomaly_enabled, torch.autograd.detect_anomaly),
    "matmul precision": function(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium", "highest"
    ),
    "precision of all": attribute(BACKENDS, "fp32_precision", "tf32", "none"),
    "precision of oneDNN": attribute(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16", "none"),
    "weights that are computed": (lambda: vars(parametrize)["_cache_enabled"], parametrize.cached),
    "oneDNN": attribute(BACKENDS.mkldnn, "enabled", False, True),
    "denormals": function(lambda: sys.float_info.min / 2 == 0, torch.set_flush_denormal, True, False),
    "threads": function(torch.get_num_threads, torch.set_num_threads, 2, 1),
    "attention": (CUDA.flash_sdp_enabled, lambda: nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH)),
    "fast path": function(BACKENDS.mha.get_fastpath_enabled, BACKENDS.mha.set_fastpath_enabled, False, True),
    "saved in half": (saved, lambda: HOOKS.saved_tensors_hooks(in_half, Tensor.float)),
    "no hooks of saved tensors": (saved, lambda: HOOKS.disable_saved_tensors_hooks("no hooks")),
    "parameters are replaced": function(
        FUTURE.get_overwrite_module_params_on_conversion, FUTURE.set_overwrite_module_params_on_conversion, True, False
    ),
    "parameters are swapped": function(
        FUTURE.get_swap_module_params_on_conversion, FUTURE.set_swap_module_params_on_conversion, True, False
    ),
    "torch's random numbers": function(torch.initial_seed, torch.manual_seed, 7, 0),
    "NumPy's random numbers": function(lambda: np.random.get_state()[1].tolist(), np.random.seed, 7, 0),  # type: ignore[index,union-attr]  # a tuple
    "Python's random numbers": function(random.getstate, random.seed, 7, 0),
}


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    return {precision: trained(network(), precision) for precision in ("fp32", "bf16")}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", AROUND)
def test_a_run_has_the_same_bits_and_leaves_the_switch_as_it_was(name: str, plain: dict[str, str]) -> None:
    read, around = AROUND[name]
    model = network()
    parameters = list(model.parameters())
    with around():
        before = read()
        assert trained(model) == plain["fp32"]
        assert read() == before
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


def test_recomputing_where_hooks_of_saved_tensors_are_forbidden() -> None:
    settings = {"data.batch_size": 32, "model.recompute": "units"}
    around: list[Around] = [torch.enable_grad(), HOOKS.disable_saved_tensors_hooks("no hooks")]
    digests = set()
    for each in around:
        with each:
            digests.add(bllpipe.train(seeded_network(), DATA, blocks=2, epochs=1, settings=settings).state_sha256)
    assert len(digests) == 1
    with HOOKS.disable_saved_tensors_hooks("no hooks"), torch_defaults(), HOOKS.save_on_cpu():
        pass


def test_where_tensors_have_no_values_a_run_is_refused() -> None:
    model = network()
    with (
        FakeTensorMode(),
        pytest.raises(bllpipe.ConfigError, match="this is inside of FakeTensorMode; call it outside"),
    ):
        trained(model)

    def inside(x: Tensor) -> Tensor:
        with pytest.raises(
            bllpipe.ConfigError, match="inside of a function that torch.func transforms; call it outside"
        ):
            trained(model)
        return x

    torch.func.grad(inside)(torch.ones(()))


def test_a_run_in_bf16_inside_of_another_autocast_learns(plain: dict[str, str]) -> None:
    """torch keeps the casts of weights until the outermost region ends, so they would be those of the first step."""
    model = network()
    with torch.autocast("cpu", torch.float16):
        assert trained(model, "bf16") == plain["bf16"]
        assert torch.get_autocast_dtype("cpu") == torch.float16


def test_a_script_sees_the_weights_that_a_run_has_changed() -> None:
    model, x = network().eval(), DATA[0][0][:4]
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        bllpipe.train(model, DATA, blocks=[1, 2], epochs=2, settings={"data.batch_size": 32})
        assert not torch.equal(model.eval()(x), before)


def test_random_numbers_of_the_script_go_on_where_they_were() -> None:
    drawn, model = [], network()
    for trains in (False, True):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        if trains:
            trained(model)
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))
    assert drawn[0] == drawn[1]


def test_the_command_line_in_a_process_with_switches(tmp_path: Path) -> None:
    words = ["--set", "engine=sequential", "--set", "model.width=4", "--set", "steps=3"]
    digests = []
    switches: list[Around] = [torch.enable_grad(), torch.inference_mode(), torch.autocast("cpu")]
    for number, around in enumerate(switches):
        with around:
            assert launch.main([*words, "--run-dir", str(tmp_path / str(number))]) == 0
        digests.append(bllpipe.Run(tmp_path / str(number)).state_sha256)
    assert len(set(digests)) == 1


def test_a_plan_is_made_with_the_defaults_too() -> None:
    model = network()
    with torch.inference_mode():
        plan = bllpipe.make_plan(model, DATA, 2, settings={"data.batch_size": 32}, repetitions=2)
    assert len(plan.cut) == 1


def switching_network(in_channels: int, num_classes: int) -> list[nn.Module]:
    torch.set_default_dtype(torch.float64)
    return [nn.Linear(in_channels, 8).float(), nn.Linear(8, num_classes).float()]


def lazily(in_channels: int, num_classes: int) -> Iterator[nn.Module]:
    yield nn.Linear(in_channels, 8)
    yield nn.Linear(8, num_classes)


def test_a_function_that_turns_a_switch_turns_it_for_itself() -> None:
    settings = {"data.batch_size": 32, "model.name": f"{__name__}:switching_network"}
    assert bllpipe.train(None, DATA, blocks=2, epochs=1, settings=settings).accuracy > 0
    assert torch.get_default_dtype() == torch.float32


def test_a_generator_draws_its_weights_under_the_seed_of_the_run() -> None:
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        digests.add(bllpipe.train(lazily, DATA, blocks=2, epochs=1, settings={"data.batch_size": 32}).state_sha256)
    assert len(digests) == 1


def test_every_switch_is_put_back_behind_an_error() -> None:
    with torch.no_grad(), pytest.raises(bllpipe.ConfigError):
        bllpipe.train(3, DATA)  # type: ignore[arg-type]  # on purpose
    with torch.no_grad():
        with pytest.raises(ValueError, match="inside"), torch_defaults():
            assert torch.is_grad_enabled()
            raise ValueError("inside")
        assert not torch.is_grad_enabled()


def test_a_default_is_that_of_a_fresh_process() -> None:
    code = """
from bllpipe.utils.tensors import _switches
for number, switch in enumerate(_switches()):
    assert switch.read() == switch.default, (number, switch.read(), switch.default)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
