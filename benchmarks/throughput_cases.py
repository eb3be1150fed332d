"""The jobs that the throughput benchmark compares: which engine, on how many ranks, with which settings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ONE_STAGE = ("gpipe", "1f1b")
TWO_STAGES = ("interleaved", "zbv", "dualpipev")  # a rank
ENGINES = ("bll", *ONE_STAGE, *TWO_STAGES, "ddp")
EMULATED_BATCH = 32
FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Case:
    """One job; ``limit`` in images/s, None where it has to be measured first. ``ranks`` are without the feedback."""

    name: str
    engine: str
    ranks: int
    microbatches: int | None
    settings: list[str]
    limit: float | None

    @property
    def is_bll(self) -> bool:
        return self.engine == "bll"


def cases(options: argparse.Namespace, ranks: int) -> Iterator[Case]:
    """BLL with every ring depth, and every other engine with every number of microbatches."""
    for engine in options.engines:
        if engine == "bll":
            for ring in options.rings:
                name = f"bll p={ranks}" + (f" ring={ring}" if len(options.rings) > 1 else "")
                yield _case(options, name, engine, ranks, None, [f"backend.ring={ring}"])
        elif engine == "ddp":
            yield _case(options, f"ddp p={ranks}", engine, ranks, None, ["method=bp", "engine=ddp"])
        else:
            for number in options.microbatches:
                settings = ["method=bp", f"engine={engine}", f"pipeline.microbatches={number}"]
                yield _case(options, f"{engine} p={ranks} m={number}", engine, ranks, number, settings)


def _case(
    options: argparse.Namespace, name: str, engine: str, ranks: int, microbatches: int | None, settings: list[str]
) -> Case:
    work = _emulated(options, engine, ranks) if options.work == "emulated" else _real(options, engine, ranks)
    limit = EMULATED_BATCH / max(rank_seconds(options, ranks)) if options.work == "emulated" else options.limit
    return Case(name, engine, ranks, microbatches, [*work, *settings, *options.overrides], limit)


def rank_seconds(options: argparse.Namespace, ranks: int) -> list[float]:
    """T_k of every rank: the second one may be slower."""
    seconds = options.milliseconds / 1e3
    return [seconds * (options.slow if rank == 1 else 1.0) for rank in range(ranks)]


def stage_seconds(engine: str, per_rank: Sequence[float]) -> list[float]:
    """T of every stage in the order of the network: of two stages a rank each has half of its time.

    ``interleaved`` puts stages r and r + p on rank r, ``zbv`` and ``dualpipev`` r and 2p - 1 - r.
    """
    halves = [seconds / 2 for seconds in per_rank]
    if engine == "interleaved":
        return [*halves, *halves]
    return [*halves, *reversed(halves)] if engine in TWO_STAGES else list(per_rank)


def _emulated(options: argparse.Namespace, engine: str, ranks: int) -> list[str]:
    """Images and messages are small: what is measured is the engine."""
    seconds = stage_seconds(engine, rank_seconds(options, ranks))
    args = {
        "forward": [T * FORWARD_SHARE for T in seconds],
        "backward": [T * (1 - FORWARD_SHARE) for T in seconds],
        "batch_size": EMULATED_BATCH,
        "jitter": options.jitter,
    }
    return [
        "model.name=benchmarks.emulated:stages",
        f"model.args={json.dumps(args)}",
        f"blocks={len(seconds)}",
        "data.name=synthetic",
        "data.image_size=8",
        f"data.batch_size={EMULATED_BATCH}",
        "data.augment.crop_padding=0",
        "data.augment.rotation=0",
        "optimizer.lr=1e-9",  # what such a network learns must not matter
        "device=cpu",
        "log.plain_seconds=60",
    ]


def _real(options: argparse.Namespace, engine: str, ranks: int) -> list[str]:
    """A ResNet-18 of width 32 on images like CIFAR's; its cut is the same for every engine with a stage a rank."""
    can_cut = options.cuts and engine in ("bll", *ONE_STAGE)
    blocks = f"[{','.join(options.cuts)}]" if can_cut else str(2 * ranks if engine in TWO_STAGES else ranks)
    return [
        "model.name=resnet18",
        "model.width=32",
        f"blocks={blocks}",
        "data.name=synthetic",
        "data.image_size=32",
        "data.batch_size=64",
        "data.synthetic_images=2048",
        "data.augment.crop_padding=4",
        "data.augment.rotation=0",
        f"device={'cuda' if options.work == 'gpu' else 'cpu'}",
        "log.plain_seconds=60",
    ]
