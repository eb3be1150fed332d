"""Which rank holds which replica of which block, where the config leaves that open: ``replicas: auto`` and
``placement: auto``.

Rank 0 decides by counted operations and bytes (models/allocation.py), before the ranks choose their devices, and the
others read its decision in the store. What it decides stands in the config of the run from then on: a resume on another
number of ranks keeps the shards of the run, on which its results depend.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from bllpipe.checkpoint.reader import checkpoints_at, newest_first, open_checkpoint
from bllpipe.checkpoint.resume import choose_directory, num_shards_of
from bllpipe.config import Config
from bllpipe.config.scaling import check_shards
from bllpipe.data.catalog import DataSpec
from bllpipe.data.registry import data_spec
from bllpipe.distributed.message_format import Field, alpha_fields, stats_fields, target_fields, wire_dtype
from bllpipe.distributed.process_group import World
from bllpipe.engines import Options, topology
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.learn.balanced_cut import CountedUnit, count_units, with_balanced_cut
from bllpipe.messages import Store
from bllpipe.models.allocation import BlockCounts, best_order, replicas_and_shards
from bllpipe.models.partition import bounds, local_seconds
from bllpipe.topology import feedback_ranks_among, num_feedback_ranks
from bllpipe.training.run_directory import posted_directory
from bllpipe.utils.console import print_line, size_text, warn
from bllpipe.utils.tensors import torch_defaults


def agree_seats(config: Config, options: Options, world: World) -> Config:
    """``config`` with numbers in place of ``auto``, the same in all ranks.

    Raises ConfigError in rank 0 for a number of ranks that cannot be shared out, and for a network that cannot be
    counted.
    """
    environment, store = world.environment, world.store
    if not environment.on_one_machine:
        store.set(f"node/{environment.rank}", str(environment.node))
    if environment.rank == 0:
        ranks = range(environment.world_size)
        decision = Decision(config, len(ranks))
        if decision.is_open and not environment.on_one_machine:
            decision.nodes = [int(store.get(f"node/{rank}")) for rank in ranks]
        if config.replicas == "auto" and config.shards is None:
            decision.shards = shards_of_run(config, options, world.job_store, world.attempt)
        found = decision.made()
        store.set("seats", json.dumps(_open_keys(found)))
        if options.output not in ("json", "quiet"):
            for line in decision.lines:
                print_line(line)
        return found
    return _with(config, json.loads(store.get("seats"))) if is_open(config) else config


def in_one_process(config: Config, options: Options, store: Store) -> Config:
    """The same for an engine of one process, which has no ranks to share out: all shards of the run, if it resumes."""
    if config.replicas != "auto":
        return config
    return replace(config, replicas=1, shards=config.shards or shards_of_run(config, options, store, attempt=0))


def is_open(config: Config) -> bool:
    """Whether it depends on the number of ranks, or on their nodes, who holds what."""
    if config.engine != "ranks":
        return False
    return config.replicas == "auto" or (config.placement == "auto" and max(config.block_replicas) > 1)


def _open_keys(config: Config) -> dict[str, Any]:
    keys = {name: getattr(config, name) for name in ("replicas", "shards", "placement")}
    return {**keys, "feedback.ranks": config.feedback.ranks}


def _with(config: Config, found: dict[str, Any]) -> Config:
    ranks = found.pop("feedback.ranks")
    return replace(config, **found, feedback=replace(config.feedback, ranks=ranks))


def shards_of_run(config: Config, options: Options, job_store: Store, attempt: int) -> int | None:
    """The number of shards of the run that is resumed; None for a new one, or if its checkpoints cannot be read."""
    posted = posted_directory(job_store) if attempt > 0 else None
    if posted is None and options.resume not in ("auto", "never"):
        paths = checkpoints_at(Path(options.resume))
    elif posted is None and options.resume == "never":
        return None
    else:
        paths = newest_first((posted or choose_directory(config, options.resume, options.run_dir)) / "checkpoints")
    for path in paths:
        try:
            return num_shards_of(open_checkpoint(path, sizes_only=True))
        except CheckpointError:  # the ranks name it when they resume
            continue
    return None


class Decision:
    """Who holds what on ``num_ranks`` ranks. ``nodes`` has the node of each, or nothing if all are on one; ``shards``
    are those of the run that is resumed. ``lines`` say what was decided."""

    def __init__(self, config: Config, num_ranks: int, spec: DataSpec | None = None) -> None:
        self.config, self.num_ranks, self.is_open = config, num_ranks, is_open(config)
        self.nodes: Sequence[int] = ()
        self.shards: int | None = None
        self.lines: list[str] = []
        self._spec = spec

    def made(self) -> Config:
        """The config with numbers in place of ``auto``. Raises ConfigError."""
        config = self.config
        if not self.is_open:
            return config
        if config.replicas == "auto":
            config = self._with_replicas(config)
        if config.placement == "auto":
            config = self._with_order(config)
        return config

    def _with_replicas(self, config: Config) -> Config:
        feedback_ranks = config.feedback.ranks or feedback_ranks_among(self.num_ranks, config.num_blocks)
        num_blocks_ranks = self.num_ranks - feedback_ranks
        operations = [each.operations for each in self._counts]
        wanted = config.shards or self.shards
        replicas, shards = replicas_and_shards(operations, num_blocks_ranks, config.data.batch_size, wanted)
        if num_feedback_ranks(num_blocks_ranks, config.num_blocks) != feedback_ranks:
            config = replace(config, feedback=replace(config.feedback, ranks=feedback_ranks))
        config = replace(config, replicas=list(replicas), shards=shards)
        check_shards(config)
        self.lines.append(
            f"replicas {list(replicas)} for {self.num_ranks} ranks, and {shards} shard{'s' if shards > 1 else ''} a "
            f"batch, on which the results depend"
        )
        return config

    def _with_order(self, config: Config) -> Config:
        if len(set(self.nodes)) < 2 or max(config.block_replicas) == 1:
            return replace(config, placement="block")
        try:
            order, least, most = best_order(topology(config), self._counts, self.nodes)
        except ConfigError as error:  # of a network that cannot be counted: the order changes no result
            warn(str(error))
            return replace(config, placement="block")
        sizes = size_text(round(least)), size_text(round(most))
        self.lines.append(f"placement {order}: {sizes[0]} a step between nodes, the other order {sizes[1]}")
        return replace(config, placement=order)

    @cached_property
    def _counts(self) -> list[BlockCounts]:
        return count_blocks(self.config, self._spec or data_spec(self.config))


@torch_defaults()
def count_blocks(config: Config, spec: DataSpec) -> list[BlockCounts]:
    """Operations and bytes of all blocks. Raises ConfigError for a network that cannot be counted."""
    config = with_balanced_cut(config, spec.image_shape, spec.num_classes)
    auto, use = ("replicas", "replicas=2") if config.replicas == "auto" else ("placement", "placement=block")
    units = count_units(config, spec.image_shape, spec.num_classes, (f"{auto} is auto", f"use --set {use}"))
    costs = [unit.cost for unit in units.values()]
    return [
        _block(config, spec, list(units.values())[first:end], local_seconds(costs, first, end))
        for first, end in bounds(list(units), config.cuts)  # type: ignore[arg-type]  # ``balanced`` is cut above
    ]


def _block(config: Config, spec: DataSpec, units: Sequence[CountedUnit], operations: float) -> BlockCounts:
    batch, last = config.data.batch_size, units[-1]
    message = last.message or spec.num_classes  # the last block's is that of the class scores
    return BlockCounts(
        operations,
        alpha=_bytes(alpha_fields(last.shape, wire_dtype(config)), batch),
        target=_bytes(target_fields(message), batch),
        stats=_bytes(stats_fields(spec.num_classes, message), batch),
        gradient=4 * (sum(unit.trained for unit in units) + last.head_trained),
    )


def _bytes(fields: Sequence[Field], size: int) -> int:
    return sum(prod(field.full_shape(size)) * field.dtype.itemsize for field in fields)
