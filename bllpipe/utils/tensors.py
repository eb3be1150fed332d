"""Tensors: named random streams, digests, strict copies from checkpoints, a check for NaN and Inf. And torch's global
state, which a script may have changed before a run: autocast, gradient and inference mode, default dtype and device,
precision and kernels, threads, random streams.

The result of a run depends on its configuration alone. ``torch_defaults`` therefore sets all state that can change its
bits to the value of a fresh process, and restores it after the run. ``torch.autograd.set_detect_anomaly`` is left as it
is, as it changes no bit.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from bllpipe.errors import CheckpointError, ConfigError, NonFiniteError
from bllpipe.utils.slices import own_part, slice_of

REPORT_DELAY_SECONDS, MAX_REPORT_DELAYS = 0.5, 8
ADVICE = "lower optimizer.lr, set optimizer.clip_norm, or check the images"


def part_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the tensors in the order of their names: name, dtype, shape, and the bytes of the values.

    Name, dtype and shape are one line of JSON, so that no name can be mistaken for the bytes of another tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = plain(tensors[name])
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_sha256(part_digests: Sequence[str]) -> str:
    """SHA-256 (hex) over the digests of all parts, in the order given."""
    return hashlib.sha256("\n".join(part_digests).encode()).hexdigest()


def plain(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor of the values: no autograd, no lazy conjugation."""
    return tensor.detach().to("cpu").contiguous().resolve_conj().resolve_neg()


def span(tensor: Tensor) -> int:
    """How many values lie in memory from its first to its last one: more than it has if there are gaps, fewer if its
    values share memory."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return sum((size - 1) * stride for size, stride in steps) + 1 if tensor.numel() else 0


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` of a run with ``seed``; the same on all machines."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A new CPU generator for the stream called ``names``, for example ``stream(0, "order", epoch)``."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))


@torch.no_grad()
def restore(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copies the tensors that ``own`` and ``saved`` have in common into ``own``: of a sliced one, its slice.

    Raises CheckpointError, and copies nothing, unless the shapes and dtypes of all of them are equal.
    """
    shared = [name for name in own if name in saved]
    for name in shared:
        check_same(name, own[name], saved[name])
    for name in shared:
        own_part(own[name]).copy_(slice_of(saved[name], own[name]))


def check_same(name: str, expected: Tensor, found: Tensor) -> None:
    """Raises CheckpointError, naming the tensor, unless ``found`` has the shape and dtype of ``expected``."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        raise CheckpointError(
            f"the checkpoint holds {name} as {dtype_and_shape(found)}, but this run needs {dtype_and_shape(expected)}; "
            f"use the config and the data of the checkpoint, or a checkpoint of this network"
        )


def is_of_network(name: str) -> bool:
    """Whether a checkpoint's tensor of that name belongs to the network: not to a head or a feedback network, and not
    to the random backward weights of feedback alignment."""
    return name.startswith("model.") and not name.endswith(".feedback_weight")


def dtype_and_shape(tensor: Tensor) -> str:
    """dtype and shape, such as float32[10, 64]."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def require_finite(tensors: Mapping[str, Tensor], rank: int, role: str, when: str, received: Container[str]) -> None:
    """Raises NonFiniteError for the first tensor that holds NaN or Inf.

    ``received`` names the tensors that come from another rank. That rank finds the error too: a delay lets it report
    first, so that the message names where the NaN arose.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            if name in received:
                threading.Event().wait(REPORT_DELAY_SECONDS * min(rank, MAX_REPORT_DELAYS))
            place = f"rank {rank} ({role}), {when}"
            raise NonFiniteError(f"{place}: {describe(name, tensor)}; {ADVICE}")


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor as float32, unless it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def is_finite(tensor: Tensor) -> bool:
    """Whether no value that this process holds is NaN or Inf; always true for integers."""
    tensor = own_part(tensor)
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def describe(name: str, tensor: Tensor) -> str:
    """How many values are NaN or Inf; the value itself of a single one."""
    tensor = own_part(tensor)
    if tensor.numel() == 1:
        return f"{name} is {float(tensor.detach()):g}"
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{name} has {nan:,} NaN and {inf:,} Inf among its {tensor.numel():,} values"


DEVICE_TYPES = ("cpu", "cuda")


@dataclass(frozen=True)
class Switch:
    """A setting of this thread or process; ``default`` is its value in a fresh process."""

    read: Callable[[], Any]
    write: Callable[[Any], Any]
    default: Any


def _attribute(owner: Any, name: str, default: Any) -> Switch:
    return Switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), default)


def _autocast(device_type: str) -> Switch:
    return Switch(
        lambda: torch.is_autocast_enabled(device_type),
        lambda value: torch.set_autocast_enabled(device_type, value),
        False,
    )


def _flushes_denormals() -> bool:
    """torch has no function for it: half of the smallest normal number is 0 if denormals are flushed."""
    return sys.float_info.min / 2 == 0


def _matmul_precision() -> str:
    """``mixed`` if a script has set ``fp32_precision``, torch's newer interface, which has its own switches below."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "mixed"


def _set_matmul_precision(precision: str) -> None:
    if "mixed" not in (precision, _matmul_precision()):
        torch.set_float32_matmul_precision(precision)


def _switches() -> list[Switch]:
    """Ordered so that general switches come before those that inherit from them."""
    backends: Any = torch.backends  # whose attributes torch does not declare
    future: Any = torch.__future__
    precisions = [
        (backends, "none"),
        (backends.cudnn, "none"),
        (backends.cuda.matmul, "none"),
        (backends.cudnn.conv, "tf32"),
        (backends.cudnn.rnn, "tf32"),
        (backends.mkldnn, "none"),
        (backends.mkldnn.matmul, "none"),
        (backends.mkldnn.conv, "none"),
        (backends.mkldnn.rnn, "none"),
    ]
    return [
        *map(_autocast, DEVICE_TYPES),
        Switch(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled, True),
        Switch(torch.is_grad_enabled, torch.set_grad_enabled, True),
        Switch(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        Switch(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0),
        Switch(_matmul_precision, _set_matmul_precision, "highest"),
        *(_attribute(owner, "fp32_precision", default) for owner, default in precisions),
        Switch(
            future.get_overwrite_module_params_on_conversion, future.set_overwrite_module_params_on_conversion, False
        ),
        Switch(future.get_swap_module_params_on_conversion, future.set_swap_module_params_on_conversion, False),
        Switch(_flushes_denormals, torch.set_flush_denormal, False),
        _attribute(backends.mkldnn, "enabled", backends.mkldnn.is_available()),
        _attribute(backends.mkldnn, "deterministic", False),
        _attribute(backends.cudnn, "enabled", True),
        _attribute(backends.cudnn, "benchmark", False),
        _attribute(backends.cudnn, "deterministic", False),
        Switch(backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled, True),
        Switch(backends.cuda.flash_sdp_enabled, backends.cuda.enable_flash_sdp, True),
        Switch(backends.cuda.mem_efficient_sdp_enabled, backends.cuda.enable_mem_efficient_sdp, True),
        Switch(backends.cuda.math_sdp_enabled, backends.cuda.enable_math_sdp, True),
        Switch(backends.cuda.cudnn_sdp_enabled, backends.cuda.enable_cudnn_sdp, True),
    ]


@contextmanager
def torch_defaults() -> Iterator[None]:
    """A context in which torch's state is that of a fresh process; restores the previous state at its end.
    Modes that see torch's calls, such as FlopCounterMode, stay on."""
    with ExitStack() as stack:
        stack.enter_context(_outside_saved_tensors_hooks())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_outside_autocast())
        stack.enter_context(_outside_parametrize_cache())
        stack.enter_context(random_states_restored())
        stack.enter_context(_switched(Switch(torch.get_num_threads, torch.set_num_threads, torch.get_num_threads())))
        for switch in _switches():
            stack.enter_context(_switched(switch))
        yield


@contextmanager
def _switched(switch: Switch) -> Iterator[None]:
    """Writes a switch only if its value differs: some switches, once written, no longer inherit from others."""
    before = switch.read()
    if before != switch.default:
        switch.write(switch.default)
    try:
        yield
    finally:
        if switch.read() != before:
            switch.write(before)


@contextmanager
def _outside_autocast() -> Iterator[None]:
    """Sets the nesting depth of autocast to 0: torch caches casts of weights until the outermost region ends, so a
    run's autocast inside a script's would compute every step with the weights of the first one."""
    depth = torch.autocast_increment_nesting() - 1  # type: ignore[no-untyped-call]
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()  # type: ignore[no-untyped-call]
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()  # the run has changed weights that the cache may hold
        for _ in range(depth):
            torch.autocast_increment_nesting()  # type: ignore[no-untyped-call]


def require_values() -> None:
    """Raises ConfigError where tensors have no values of their own: in FakeTensorMode, and in a function that
    torch.func transforms."""
    states: Any = torch._C
    transform = states._functorch.peek_interpreter_stack()
    if transform is not None or states._get_dispatch_mode(states._TorchDispatchModeKey.FAKE) is not None:
        where = "FakeTensorMode" if transform is None else "a function that torch.func transforms"
        raise ConfigError(f"expected tensors with values, but this is inside of {where}; call it outside")


@contextmanager
def _outside_saved_tensors_hooks() -> Iterator[None]:
    """``torch.autograd.graph.saved_tensors_hooks`` may change what a backward pass reads; where they are forbidden,
    ``model.recompute`` could not use its own."""
    hooks: Any = torch._C._autograd  # their state has no public name
    reason, taken = hooks._saved_tensors_hooks_get_disabled_error_message(), []
    hooks._saved_tensors_hooks_enable()
    while (top := hooks._top_saved_tensors_default_hooks(True)) is not None:
        taken.append(top)
        hooks._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pair in reversed(taken):
            hooks._push_saved_tensors_default_hooks(*pair)
        if reason is not None:
            hooks._saved_tensors_hooks_disable(reason)


@contextmanager
def _outside_parametrize_cache() -> Iterator[None]:
    """``torch.nn.utils.parametrize.cached`` caches computed weights until its context ends."""
    cache: Any = parametrize  # its state has no public name
    depth, cache._cache_enabled, cache._cache = cache._cache_enabled, 0, {}
    try:
        yield
    finally:
        cache._cache_enabled, cache._cache = depth, {}


@contextmanager
def random_states_restored() -> Iterator[None]:
    """Restores the states of the global random generators at its end."""
    plain, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)


def seed_all(seed: int) -> None:
    """Seeds the global random generators, from which dropout and the transforms of a data set draw."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
