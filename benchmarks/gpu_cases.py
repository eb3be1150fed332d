"""The runs that the GPU benchmark compares: which network, in which batches, trained how."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

# From what is to be beaten to what beats it. A CPU knows nothing of gpu.*: there some of them are the same.
VARIANTS = {
    "bp eager": ("method=bp", "engine=single"),
    "bp compiled": ("method=bp", "engine=single", "gpu.compile=true"),
    "bp captured": ("method=bp", "engine=single", "gpu.capture=true"),
    "bll sequential": ("method=bll", "engine=sequential"),
    "bll captured": ("method=bll", "engine=sequential", "gpu.capture=true"),
    "bll streams": ("method=bll", "engine=streams", "gpu.capture=blocks"),
    "bll one graph": ("method=bll", "engine=streams", "gpu.capture=true"),
    "bll one graph compiled": ("method=bll", "engine=streams", "gpu.capture=true", "gpu.compile=true"),
}
MODELS, BATCHES = ("resnet50", "resnet18"), (128, 64, 256, 512, 1024)  # the first of each matter most
COMPILED_BATCHES = (128, 1024)  # the compiler takes a minute a network and batch

FULL = (
    "model.width=64",
    "blocks=4",
    "data.name=synthetic",
    "data.image_size=32",
    "data.synthetic_images=4096",
    "data.augment.crop_padding=4",
    "data.augment.flip=true",
    "data.augment.rotation=0",
    "precision.compute=bf16",
    "evaluate.every_epochs=0",
    "checkpoint.every_steps=0",
    "log.plain_seconds=3600",
)
SMALL = ("model.width=2", "data.synthetic_images=64", "data.image_size=8")  # a rehearsal


@dataclass(frozen=True)
class Case:
    """One run: ``laps`` stretches of ``lap_steps`` steps are timed after as many that are not."""

    variant: str
    model: str
    batch: int
    settings: tuple[str, ...] = field(compare=False)
    lap_steps: int
    laps: int

    @property
    def name(self) -> str:
        return f"{self.model} B={self.batch} {self.variant}"

    @property
    def steps(self) -> int:
        return self.lap_steps * (WARM_UP_LAPS + self.laps)


WARM_UP_LAPS = 2  # graphs are captured in the first, kernels are chosen there


def cases(options: argparse.Namespace) -> list[Case]:
    """The cases that were asked for, the most telling ones first."""
    # a line of metrics is no part of the one graph, in as many ticks as there are blocks
    lap_steps, laps = (1, 2) if options.quick else (20, 3)
    chosen = product(options.batches, options.models, options.variants)
    return [
        Case(variant, model, batch, tuple(_settings(options, variant, model, batch, lap_steps)), lap_steps, laps)
        for batch, model, variant in chosen
        if "compiled" not in variant or batch in COMPILED_BATCHES or options.quick
    ]


def _settings(options: argparse.Namespace, variant: str, model: str, batch: int, lap_steps: int) -> Iterator[str]:
    yield from FULL
    yield from SMALL if options.quick else ()
    yield from VARIANTS[variant]
    yield f"model.name={model}"
    yield f"data.batch_size={batch}"
    yield f"device={options.device}"
    yield f"log.every_steps={lap_steps}"
    yield from options.overrides
