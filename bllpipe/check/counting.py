"""The figures of a run, counted on tensors that have shapes but no contents: nothing is computed, sent or read.

The network is built as its ranks would do it, by the same functions, each rank after the one before it, and then loses
its contents: to build it without any would cost the import of torch's compiler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from bllpipe.check.blocks import block_figures, feedback_figures, wire_figures
from bllpipe.check.figures import EdgeFigures, Figures, RankFigures
from bllpipe.check.synchronous import gradient_ring, hop_figures, replica_figures, stage_figures
from bllpipe.config import Config
from bllpipe.engines import topology
from bllpipe.engines.job import Job
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.plan.balanced import resolved
from bllpipe.ports import Store
from bllpipe.run.data.spec import DataSpec
from bllpipe.run.directory import RunDirectory
from bllpipe.run.itinerary import Plan


class Uncountable(Exception):
    """The network cannot be called without values; it may train all the same."""


def count(config: Config, spec: DataSpec) -> Figures:
    """The figures of ``config`` on data of ``spec``; activations as they are without autocast.

    Raises ConfigError for what no run of it could compute, and Uncountable for a network that looks at values.
    """
    config = resolved(config, spec.image_shape, spec.num_classes)
    config = replace(config, precision=replace(config.precision, compute="fp32"))  # autocast needs a real device
    job = _job_without_ranks(config, spec)
    with _explained(config):
        ranks = tuple(_ranks(job))
        edges = _EDGES.get(job.topology.placement, hop_figures)(job)
    return Figures(job.plan.total_steps, job.plan.steps_per_epoch, ranks, tuple(edges))


_EDGES: dict[str, Callable[[Job], Iterable[EdgeFigures]]] = {"block": wire_figures, "replica": gradient_ring}


def _job_without_ranks(config: Config, spec: DataSpec) -> Job:
    """What ranks would agree on, with a store that nobody else sees and a directory that is never written."""
    store: Store = dist.HashStore()  # type: ignore[assignment]  # satisfies the protocol
    plan = Plan.of(config, spec.num_train, spec.num_test)
    return Job(config, topology(config), store, RunDirectory(Path()), "", spec, plan, None)


def _ranks(job: Job) -> Iterator[RankFigures]:
    """Of every rank; stages come in their order along the network, as each needs the shapes before it."""
    match job.topology.placement:
        case "block":
            yield from (block_figures(job, rank) for rank in job.topology.block_ranks)
        case "replica":
            yield from replica_figures(job)
        case _:
            yield from stage_figures(job)
    if job.topology.has_feedback:
        yield feedback_figures(job)


@contextmanager
def _explained(config: Config) -> Iterator[None]:
    """Tells what no run could compute from what merely cannot be counted."""
    try:
        yield
    except Exception as error:  # whatever a user's module may raise
        cause = error.__cause__ if isinstance(error, BllpipeError) else error
        if _wants_values(cause):
            raise Uncountable(str(cause)) from error
        if isinstance(error, BllpipeError):
            raise
        raise ConfigError(
            f"model {config.model.name} cannot compute batches of {config.data.batch_size} images: {error}; "
            f"change the network, or --set data.batch_size"
        ) from error


def _wants_values(error: BaseException | None) -> bool:
    """Torch has no class of its own for what it says of tensors without contents."""
    told = r"\b(meta|autocast|scalarType)\b"
    return isinstance(error, RuntimeError) and re.search(told, str(error), re.IGNORECASE) is not None
