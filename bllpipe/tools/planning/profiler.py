"""Measuring the time and counting the memory of every unit of a network.

A unit is timed as a block of its own, with the arithmetic that a rank has. All units take turns in every repetition, so
that a slow phase of the machine slows all of them alike. Background processes compute at the same time, as the other
ranks of a run on the same machine will: cores that share a memory are slower together than alone.

Memory is counted, not measured, so that it is valid on every device; memory that the allocator leaves unused and
workspaces of convolutions are not included.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from threading import BrokenBarrierError
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bllpipe.config import Config
from bllpipe.data.catalog import DataSpec
from bllpipe.distributed.message_format import wire_dtype
from bllpipe.engines.devices import Machine, one_device
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Block, build_segments, make_block
from bllpipe.learn.memory_format import as_channels_last, autocast, uses_channels_last
from bllpipe.learn.optimizer import Optimizer
from bllpipe.messages import Round, Target
from bllpipe.models.registry import last_width, network_units
from bllpipe.models.units import Segment
from bllpipe.tools.planning.profile import Profile, Timing, UnitProfile, settings_of
from bllpipe.training.run_directory import environment
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.utils.process import end_with_parent, keep_freed_memory
from bllpipe.utils.tensors import stream

WARM_UP = 2
TIMEOUT = 300.0  # seconds until all background processes compute


class ProgressFn(Protocol):
    """Called with what is measured, and how many of how many parts are done, if that is known yet."""

    def __call__(self, what: str, done: int = 0, total: int | None = None) -> None: ...


def no_progress(what: str, done: int = 0, total: int | None = None) -> None:
    """Prints nothing."""


class UnitBenchmark:
    """One unit with its head, timed on batches of random numbers. Its weights do not change: the learning rate is 0."""

    def __init__(
        self,
        segment: Segment,
        x: Tensor,
        config: Config,
        num_classes: int,
        is_last: bool,
        last_width: int | None = None,
    ) -> None:
        x = as_channels_last(x) if uses_channels_last(config, x.device) else x
        self.segment, self.x = segment, x.detach()
        with torch.no_grad(), autocast(config, x.device):
            alpha = segment.train()(self.x.clone())
        frozen = replace(config, optimizer=replace(config.optimizer, lr=0.0))
        trained = dict(segment.named_parameters())
        if not trained:
            segment.register_parameter("unused", nn.Parameter(torch.empty(0, device=x.device)))  # Block requires one
        self.optimizer = Optimizer(trained, frozen.optimizer)
        shapes = tuple(x.shape[1:]), tuple(alpha.shape[1:])
        self.block = make_block(segment, *shapes, frozen, num_classes, 1, is_last, last_width)
        self.clip_norm, self.gradient = config.optimizer.clip_norm, torch.randn_like(alpha)
        self.target = random_target(len(x), self.block.message_size, num_classes, config.seed, x.device)
        self.alpha = alpha

    def sample(self) -> dict[str, float]:
        """Seconds of every part, measured once."""
        self.segment.zero_grad()
        leaf = self.x.clone().requires_grad_(self.x.is_floating_point())
        x, clock = leaf.clone(), Clock(self.x.device)  # a unit may begin in place
        alpha = self.block.forward(x)
        seconds = {"forward": clock.lap()}
        seconds["backward_of_input"] = self._back(alpha, clock, [leaf])
        seconds["backward"] = self._back(alpha, clock)
        clock.lap()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.optimizer.parameters.values(), self.clip_norm)
        self.optimizer.step(0.0)
        seconds["update"] = clock.lap()
        self.segment.zero_grad()
        alpha = self.block.forward(self.x.clone())
        seconds["backward_without_input"] = self._back(alpha, clock)
        # the end of a block: the statistics, the local loss and its backward pass down to alpha
        alpha = alpha.detach().requires_grad_()
        self.segment.zero_grad()
        clock.lap()
        self.block.stats(alpha, self.target.label_B)
        self.block.update(alpha, self.target, step=0)
        seconds["head"] = clock.lap()
        return seconds

    def _back(self, alpha: Tensor, clock: Clock, wanted: list[Tensor] | None = None) -> float:
        """Seconds of the backward pass to the inputs in ``wanted``, or to all leaves."""
        clock.lap()
        if alpha.requires_grad:
            torch.autograd.backward([alpha], [self.gradient], retain_graph=wanted is not None, inputs=wanted)
        return clock.lap()


class Clock:
    """A stopwatch that synchronizes with the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._last = self._last, self._now()
        return self._last - before

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def measure(
    config: Config, spec: DataSpec, repetitions: int, say: ProgressFn, background: int = 0, parts: Sequence[int] = ()
) -> Profile:
    """Measures the profile of ``config``'s network on this machine for batches of its size, and for each number of
    images in ``parts``, while ``background`` other processes compute. ``say`` is called with the progress.

    Sets the number of threads and the allocator of this process to those of a rank. Raises ConfigError if the data are
    too few for the batch size or the warm-up.
    """
    schedule = RunSchedule.of(config, spec.num_train, spec.num_test)
    compute_as_a_rank(config)
    device = present_device(config)
    sizes = [config.data.batch_size, *parts]
    benchmarks = {size: dict(build_benchmarks(config, spec, device, size, say)) for size in sizes}
    turns = [(size, name, benchmark) for size in sizes for name, benchmark in benchmarks[size].items()]
    samples: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    rounds = WARM_UP + repetitions
    for done, (repetition, (size, name, benchmark)) in enumerate(product(range(rounds), turns)):
        say(f"repetition {repetition + 1} of {rounds}, {size} images, {name}", done, rounds * len(turns))
        samples[size, name].append(benchmark.sample())
    whole, *rest = [
        tuple(
            _unit_profile(name, benchmark, samples[size, name][WARM_UP:], config)
            for name, benchmark in benchmarks[size].items()
        )
        for size in sizes
    ]
    return Profile(
        whole,
        settings_of(config),
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        WARM_UP,
        repetitions,
        schedule.steps_per_epoch,
        environment(),
        background,
        dict(zip(parts, rest, strict=True)),
    )


def compute_as_a_rank(config: Config) -> None:
    """Sets threads and allocator to those of a rank."""
    torch.set_num_threads(config.cpu_threads)
    keep_freed_memory()


def present_device(config: Config) -> torch.device:
    """The device of a block of ``config`` on this machine; ConfigError if it has none."""
    machine = Machine.found()
    if config.device == "cuda" and not machine.gpus:
        raise ConfigError("device is cuda, but there is no GPU; use --set device=cpu, or --profile with a file of one")
    return one_device(config, machine)


def random_target(batch: int, channels: int, num_classes: int, seed: int, device: torch.device) -> Target:
    """A random feedback message with labels."""
    draws = stream(seed, "plan")
    label_B = torch.randint(0, num_classes, (batch,), generator=draws)
    beta_BC, known_B = torch.randn(batch, channels, generator=draws), torch.ones(batch)
    return Target(Round("train", 0), beta_BC.to(device), known_B.to(device), label_B.to(device))


def build_benchmarks(
    config: Config, spec: DataSpec, device: torch.device, batch: int, say: ProgressFn = no_progress
) -> Iterator[tuple[str, UnitBenchmark]]:
    """A benchmark for every unit, whose input is the output of the unit before it; the first takes random images.

    Raises ConfigError for a unit after which no block can end.
    """
    units = network_units(config.model, spec.image_shape, spec.num_classes, config.seed)
    x = torch.randn(batch, *spec.image_shape, generator=stream(config.seed, "plan images")).to(device)
    segments = build_segments([[unit] for unit in units], config, spec.image_shape, device)
    for unit, (segment, _, _) in zip(units, segments, strict=True):
        say(f"building {unit.name} for {batch} images")
        benchmark = UnitBenchmark(segment, x, config, spec.num_classes, unit is units[-1], last_width(config, units))
        yield unit.name, benchmark
        x = benchmark.alpha


def _unit_profile(name: str, benchmark: UnitBenchmark, samples: list[dict[str, float]], config: Config) -> UnitProfile:
    timings = {part: Timing.of([sample[part] for sample in samples]) for part in samples[0]}
    return UnitProfile(
        name,
        **timings,
        parameters=sum(parameter.numel() for parameter in benchmark.segment.parameters()),
        output_bytes=benchmark.alpha.numel() * wire_dtype(config).itemsize,
        memory_bytes=unit_bytes(benchmark.block, benchmark.optimizer, benchmark.x),
        head_memory_bytes=head_bytes(benchmark.block, benchmark.optimizer, benchmark.alpha, benchmark.target),
    )


def unit_bytes(block: Block, optimizer: Optimizer, x: Tensor) -> int:
    """Parameters, buffers, gradients, the optimiser's state, what backward keeps and the output, but not the input
    ``x``: that is the output of the unit before."""
    x = x.clone()
    weights = list(block.segment.state_dict(keep_vars=True).values())
    kept = kept_bytes(lambda: [block.forward(x)], [*weights, x])
    return kept + sum(storages(weights).values()) + training_bytes(optimizer)


def head_bytes(block: Block, of_unit: Optimizer, alpha: Tensor, target: Target) -> int:
    """The same for head and objective of ``block``; ``of_unit`` is the optimiser of its unit."""
    alpha = alpha.detach().clone().requires_grad_()
    modules = [part for part in (block.head, block.objective) if isinstance(part, nn.Module)]
    weights = [value for part in modules for value in part.state_dict(keep_vars=True).values()]

    def update() -> list[Tensor]:
        block.update(alpha, target, step=0)
        return []

    kept = kept_bytes(update, [*weights, alpha]) + alpha.nbytes  # the gradient of alpha exists at the same time
    own = training_bytes(block.learner.optimizer) - training_bytes(of_unit)
    return kept + sum(storages(weights).values()) + own


def training_bytes(optimizer: Optimizer) -> int:
    """Gradients and the optimiser's state."""
    return sum(value.nbytes for value in (*optimizer.parameters.values(), *optimizer.state.values()))


def kept_bytes(forward: Callable[[], Iterable[Tensor]], known: Iterable[Tensor]) -> int:
    """Bytes of the memory that ``forward`` keeps for its backward pass, and of the tensors that it returns, without the
    memory of ``known`` tensors."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        kept.extend(forward())
    outside = storages(known)
    return sum(size for name, size in storages(kept).items() if name not in outside)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by storage, as views share one. Meta tensors have no address, so the key is torch's own identity."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in found}


@contextmanager
def background_load(config: Config, spec: DataSpec, number: int) -> Iterator[None]:
    """Runs ``number`` processes that train the units of ``config``'s network in turn until the context ends."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, half of them
    started = context.Barrier(number + 1)
    processes = [context.Process(target=_compute, args=(config, spec, started), daemon=True) for _ in range(number)]
    try:
        for process in processes:
            process.start()
        started.wait(TIMEOUT)
        yield
    except BrokenBarrierError:
        raise ConfigError(
            f"--beside {number}: not all of these processes began to compute within {TIMEOUT:g} s; use fewer of them"
        ) from None
    finally:
        for process in processes:
            process.kill()
            process.join()


def _compute(config: Config, spec: DataSpec, started: Any) -> None:
    parent = os.getppid()
    end_with_parent(parent)
    compute_as_a_rank(config)
    benchmarks = [
        benchmark for _, benchmark in build_benchmarks(config, spec, present_device(config), config.data.batch_size)
    ]
    started.wait(TIMEOUT)
    while parent == os.getppid():  # for a kernel without parent-death signals
        for benchmark in benchmarks:
            benchmark.sample()
