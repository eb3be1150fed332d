"""The jobs that the throughput benchmark compares: which engine, on how many ranks, with which settings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Any

from bllpipe.config import load_config
from bllpipe.errors import ConfigError
from bllpipe.models.partition import Link, UnitCost
from bllpipe.tools.planning.predict import SCHEDULES, PredictionInputs, predict_local, predict_pipeline

ONE_STAGE = ("gpipe", "1f1b", "deepspeed")
TWO_STAGES = ("interleaved", "zbv", "dualpipev")  # a rank
WHOLE = ("ddp", "single")  # without a cut
ENGINES = ("bll", *ONE_STAGE, *TWO_STAGES, *WHOLE)
EMULATED_BATCH = 32
FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Work:
    """What all cases of a comparison have in common: emulated devices, of which the second may be ``slow`` times slower
    and all may ``jitter``, or real ones."""

    kind: str
    ranks: int
    slow: float = 1.0
    jitter: float = 0.0

    @property
    def is_emulated(self) -> bool:
        return self.kind == "emulated"

    def __str__(self) -> str:
        slow = f" slow={self.slow:g}" if self.slow != 1 else ""
        return f"p={self.ranks}{slow}" + (f" jitter={self.jitter:g}" if self.jitter else "")


@dataclass(frozen=True)
class Plan:
    """The prediction of ``bllpipe plan`` for a real network on some ranks: the last units of all blocks but the last,
    by the number of blocks and microbatches (None for local learning); and images/s by engine and microbatches."""

    cuts: Mapping[tuple[int, int | None], list[str]]
    rates: Mapping[tuple[str, int | None], float]

    @classmethod
    def of(cls, predictions: Sequence[Mapping[str, Any]], ranks: int) -> Plan:
        """From the predictions that ``bllpipe plan --json`` has written."""
        cuts = {(p["num_blocks"], p["microbatches"]): p["cut"] for p in predictions if p["engine"] in ("bll", "gpipe")}
        rates = {
            (p["engine"], p["microbatches"]): p["images_per_second"] for p in predictions if p["num_blocks"] == ranks
        }
        return cls(cuts, rates)


@dataclass(frozen=True)
class Case:
    """One job; ``limit`` and ``predicted`` in images/s, None where they have to be found first."""

    name: str
    engine: str
    work: Work
    microbatches: int | None
    settings: list[str]
    limit: float | None = None
    predicted: float | None = None


def cases(options: argparse.Namespace, plans: Mapping[int, Plan] = MappingProxyType({})) -> list[Case]:
    """For every kind of work BLL with every ring depth, and every other engine with every number of microbatches that
    it can deal with. ``plans`` holds, by ranks, the cuts of real work."""
    works = [Work(options.work, *each) for each in product(options.blocks, options.slow, options.jitter)]
    found = [
        _on_devices(case, options, plans.get(work.ranks))
        for work in works
        for engine in options.engines
        for case in _of_engine(options, work, engine)
    ]
    return [case for case in found if _is_possible(case)]


def _of_engine(options: argparse.Namespace, work: Work, engine: str) -> Iterator[Case]:
    """The cases of one engine, without the devices' settings."""
    if engine == "bll":
        for ring in options.rings:
            name = f"bll {work}" + (f" ring={ring}" if len(options.rings) > 1 else "")
            yield Case(name, engine, work, None, [f"backend.ring={ring}", f"backend.in_flight={ring}"])
    elif engine in WHOLE:
        yield Case(f"{engine} {work}", engine, work, None, ["method=bp", f"engine={engine}"])
    else:
        for number in options.microbatches:
            own = ["method=bp", f"engine={engine}", f"pipeline.microbatches={number}"]
            yield Case(f"{engine} {work} m={number}", engine, work, number, own)


def _on_devices(case: Case, options: argparse.Namespace, plan: Plan | None) -> Case:
    case = _emulated(case, options.milliseconds / 1e3) if case.work.is_emulated else _real(case, plan)
    return replace(case, settings=[*case.settings, *options.overrides])


def _is_possible(case: Case) -> bool:
    """Whether the launcher would take it: some schedules need more microbatches than others."""
    try:
        load_config(None, case.settings)
    except ConfigError:
        return False
    return True


def rank_seconds(work: Work, seconds: float) -> list[float]:
    """T_k of every rank: the second one may be slower."""
    return [seconds * (work.slow if rank == 1 else 1.0) for rank in range(work.ranks)]


def stage_seconds(engine: str, per_rank: Sequence[float]) -> list[float]:
    """T of every stage in the order of the network: of two stages a rank each has half of its time.

    ``interleaved`` puts stages r and r + p on rank r, ``zbv`` and ``dualpipev`` r and 2p - 1 - r.
    """
    halves = [seconds / 2 for seconds in per_rank]
    if engine == "interleaved":
        return [*halves, *halves]
    return [*halves, *reversed(halves)] if engine in TWO_STAGES else list(per_rank)


# Images and messages are small: what is measured is the engine.
EMULATED = [
    "model.name=benchmarks.emulated:stages",
    "data.name=synthetic",
    "data.image_size=8",
    f"data.batch_size={EMULATED_BATCH}",
    "data.augment.crop_padding=0",
    "data.augment.rotation=0",
    "optimizer.lr=1e-9",  # the weights of such a network must not change its outputs
    "device=cpu",
    "log.plain_seconds=60",
]


def _emulated(case: Case, seconds: float) -> Case:
    """The case with its stages' times, its limit, and what bllpipe plan makes of the same times."""
    work, per_rank = case.work, rank_seconds(case.work, seconds)
    stages = stage_seconds(case.engine, per_rank)
    args = {
        "forward": [T * FORWARD_SHARE for T in stages],
        "backward": [T * (1 - FORWARD_SHARE) for T in stages],
        "batch_size": EMULATED_BATCH,
        "jitter": work.jitter,
    }
    settings = [*EMULATED, *case.settings, f"model.args={json.dumps(args)}", f"blocks={len(stages)}"]
    if not seconds:
        return replace(case, settings=settings)
    predicted = None if work.jitter else predicted_rate(case.engine, case.microbatches, per_rank)
    return replace(case, settings=settings, limit=EMULATED_BATCH / max(per_rank), predicted=predicted)


def predicted_rate(
    engine: str, microbatches: int | None, per_rank: Sequence[float], overhead: float = 0.0
) -> float | None:
    """Images/s of devices that take ``per_rank`` seconds per batch; None for schedules that cannot be simulated."""
    units = [_unit(T * FORWARD_SHARE, T * (1 - FORWARD_SHARE)) for T in per_rank]
    setting = PredictionInputs(units, EMULATED_BATCH, Link(), overhead)
    if engine == "bll":
        found = predict_local(setting, len(units))
    elif engine in SCHEDULES and microbatches:
        found = predict_pipeline(setting, engine, len(units), microbatches)
    else:
        return None
    return found.images_per_second if found else None


def _unit(forward: float, backward: float) -> UnitCost:
    return UnitCost(forward, backward, backward, backward / 2, update=0.0, head=0.0, parameters=1)


# A ResNet that two cores can train, on images like CIFAR's. --set may change any of it.
REAL = [
    "model.name=resnet34",
    "model.width=32",
    "data.name=synthetic",
    "data.image_size=32",
    "data.batch_size=64",
    "data.synthetic_images=2048",
    "data.augment.crop_padding=4",
    "data.augment.flip=true",
    "data.augment.rotation=0",
    "objective.head_features=1024",
    "log.plain_seconds=60",
]


def real_settings(work: str) -> list[str]:
    """What all real jobs have in common."""
    return [*REAL, f"device={'cuda' if work == 'gpu' else 'cpu'}"]


def _real(case: Case, plan: Plan | None) -> Case:
    """The case with the cut that suits its engine best, as ``plan`` has measured it, or with equal numbers of units."""
    ranks = case.work.ranks
    stages = 2 * ranks if case.engine in TWO_STAGES else ranks
    settings = [*real_settings(case.work.kind), *case.settings]
    if plan is None or case.engine in WHOLE:
        predicted = plan.rates.get((case.engine, None)) if plan else None
        return replace(case, settings=[*settings, f"blocks={stages}"], predicted=predicted)
    cut = plan.cuts[stages, case.microbatches]
    predicted = plan.rates.get((case.engine, case.microbatches))
    return replace(case, settings=[*settings, f"blocks=[{','.join(cut)}]"], predicted=predicted)
