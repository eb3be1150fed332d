"""Measuring what every unit of a network costs on the device at hand.

A unit is timed as a block of its own, with the arithmetic that a rank has. All units take turns in every repetition, so
that a machine which is slower for a while is slower for all of them alike.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Protocol

import torch
from torch import Tensor, nn

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.learn.block import make_block
from bllpipe.learn.channels import num_channels
from bllpipe.learn.networks import last_width, network_units
from bllpipe.learn.optimizers import Optimizer
from bllpipe.learn.placing import as_channels_last, lies_channels_last, place
from bllpipe.learn.units import Segment
from bllpipe.plan.memory import head_bytes, unit_bytes
from bllpipe.plan.profile import Profile, Timing, UnitProfile, settings_of
from bllpipe.ports import Round, Target
from bllpipe.randomness import stream
from bllpipe.run.data.registry import load_images
from bllpipe.run.data.spec import PUBLISHED, DataSpec
from bllpipe.run.directory import environment
from bllpipe.run.memory import keep_freed_memory

WARM_UP = 2


class Say(Protocol):
    """Hears what is measured, and how many parts of how many are done, if that is known yet."""

    def __call__(self, what: str, done: int = 0, total: int | None = None) -> None: ...


def unheard(what: str, done: int = 0, total: int | None = None) -> None:
    """Nobody wants to know."""


class Probe:
    """One unit with its head, and batches of random numbers to time it with. Its weights do not move: the learning rate
    is 0."""

    def __init__(
        self,
        segment: Segment,
        x: Tensor,
        config: Config,
        num_classes: int,
        is_last: bool,
        last_width: int | None = None,
    ) -> None:
        x = as_channels_last(x) if lies_channels_last(config, x.device) else x
        self.segment, self.x = segment, x.detach()
        with torch.no_grad(), _autocast(config, x.device):
            alpha = segment.train()(self.x.clone())
        still = replace(config, optimizer=replace(config.optimizer, lr=0.0))
        trained = dict(segment.named_parameters())
        if not trained:
            segment.register_parameter("unused", nn.Parameter(torch.empty(0, device=x.device)))  # Block wants one
        self.optimizer = Optimizer(trained, still.optimizer)
        shapes = tuple(x.shape[1:]), tuple(alpha.shape[1:])
        self.block = make_block(segment, *shapes, still, num_classes, 1, is_last, last_width)
        self.clip_norm, self.gradient = config.optimizer.clip_norm, torch.randn_like(alpha)
        self.target = random_target(len(x), num_channels(shapes[1]), num_classes, config.seed, x.device)
        self.alpha = alpha

    def sample(self) -> dict[str, float]:
        """Seconds of every part, once."""
        self._forget()
        leaf = self.x.clone().requires_grad_(self.x.is_floating_point())
        x, clock = leaf.clone(), Clock(self.x.device)  # a unit may begin in place
        alpha = self.block.forward(x)
        seconds = {"forward": clock.lap()}
        seconds["backward_of_input"] = self._back(alpha, clock, [leaf])
        seconds["backward"] = self._back(alpha, clock)
        clock.lap()
        self._update()
        seconds["update"] = clock.lap()
        self._forget()
        alpha = self.block.forward(self.x.clone())
        seconds["backward_without_input"] = self._back(alpha, clock)
        seconds["head"] = self._end(alpha.detach().requires_grad_(), clock)
        return seconds

    def _back(self, alpha: Tensor, clock: Clock, wanted: list[Tensor] | None = None) -> float:
        """Of the gradients that are ``wanted``, or of all."""
        clock.lap()
        if alpha.requires_grad:
            torch.autograd.backward([alpha], [self.gradient], retain_graph=wanted is not None, inputs=wanted)
        return clock.lap()

    def _update(self) -> None:
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.optimizer.parameters.values(), self.clip_norm)
        self.optimizer.step(0.0)

    def _end(self, alpha: Tensor, clock: Clock) -> float:
        """What a block does whose last unit this is, on its way back as far as alpha."""
        self._forget()
        clock.lap()
        self.block.stats(alpha, self.target.label_B)
        self.block.update(alpha, self.target, step=0)
        return clock.lap()

    def _forget(self) -> None:
        for parameter in self.segment.parameters():
            parameter.grad = None


class Clock:
    """A stopwatch that waits for what the device has been told to do."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = self._now()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._last = self._last, self._now()
        return self._last - before

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def measure(
    config: Config, spec: DataSpec, repetitions: int, say: Say, beside: int = 0, parts: Sequence[int] = ()
) -> Profile:
    """The profile of ``config``'s network for batches of its size, and for parts of so many images, here and now;
    ``beside`` so many others that compute too. ``say`` hears how far it is.

    From now on this process computes as a rank does.
    """
    compute_as_a_rank(config)
    device = present_device(config)
    sizes = [config.data.batch_size, *parts]
    probes = {size: dict(build_probes(config, spec, device, size, say)) for size in sizes}
    turns = [(size, name, probe) for size in sizes for name, probe in probes[size].items()]
    samples: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    rounds = WARM_UP + repetitions
    for done, (repetition, (size, name, probe)) in enumerate(product(range(rounds), turns)):
        say(f"repetition {repetition + 1} of {rounds}, {size} images, {name}", done, rounds * len(turns))
        samples[size, name].append(probe.sample())
    whole, *rest = [
        tuple(_unit_profile(name, probe, samples[size, name][WARM_UP:], config) for name, probe in probes[size].items())
        for size in sizes
    ]
    steps = spec.num_train // config.data.batch_size
    return Profile(
        whole,
        settings_of(config),
        _named(device),
        WARM_UP,
        repetitions,
        steps,
        environment(),
        beside,
        dict(zip(parts, rest, strict=True)),
    )


def compute_as_a_rank(config: Config) -> None:
    """With as many threads, and memory that is kept."""
    torch.set_num_threads(config.cpu_threads)
    keep_freed_memory()


def data_spec(config: Config) -> DataSpec:
    """The sizes of ``config``'s data, without downloading any that are well known."""
    return PUBLISHED.get(config.data.name) or load_images(config.data, config.seed).spec


def present_device(config: Config) -> torch.device:
    """Where a block of ``config`` would compute on this machine."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but there is no GPU; use --set device=cpu, or --profile with a file of one")
    return torch.device("cuda", 0) if config.device != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def random_target(batch: int, channels: int, num_classes: int, seed: int, device: torch.device) -> Target:
    """A feedback message and labels as they might be."""
    draws = stream(seed, "plan")
    label_B = torch.randint(0, num_classes, (batch,), generator=draws)
    beta_BC, known_B = torch.randn(batch, channels, generator=draws), torch.ones(batch)
    return Target(Round("train", 0), beta_BC.to(device), known_B.to(device), label_B.to(device))


def build_probes(
    config: Config, spec: DataSpec, device: torch.device, batch: int, say: Say = unheard
) -> Iterator[tuple[str, Probe]]:
    """A probe for every unit, each given what the one before makes of a batch of random images."""
    units = network_units(config.model, spec.image_shape[0], spec.num_classes, config.seed)
    x = torch.randn(batch, *spec.image_shape, generator=stream(config.seed, "plan images")).to(device)
    for unit in units:
        say(f"building {unit.name} for {batch} images")
        segment = place(Segment([unit], config.seed), config, device)
        probe = Probe(segment, x, config, spec.num_classes, unit is units[-1], last_width(config, units))
        yield unit.name, probe
        x = probe.alpha


def _unit_profile(name: str, probe: Probe, samples: list[dict[str, float]], config: Config) -> UnitProfile:
    timings = {part: Timing.of([sample[part] for sample in samples]) for part in samples[0]}
    return UnitProfile(
        name,
        **timings,
        parameters=sum(parameter.numel() for parameter in probe.segment.parameters()),
        output_bytes=probe.alpha.numel() * (2 if config.precision.wire == "bf16" else 4),
        memory_bytes=unit_bytes(probe.block, probe.optimizer, probe.x),
        head_memory_bytes=head_bytes(probe.block, probe.optimizer, probe.alpha, probe.target),
    )


def _autocast(config: Config, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision.compute == "bf16")


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
