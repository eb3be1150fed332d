"""Shards, replicas, sharding and recomputation that are impossible."""

from __future__ import annotations

from math import lcm

from bllpipe.config.schema import PIPELINES, SYNCHRONOUS, Config
from bllpipe.errors import ConfigError


def check_shards(config: Config) -> None:
    """Raises ConfigError for replicas that do not fit the blocks, and for shards that an engine or a loss has not."""
    _check_block_replicas(config)
    _check_sharding(config)
    _check_recompute(config)
    number = config.num_shards
    if number == 1:
        return
    found = f"shards is {number}" + (", the largest number of replicas," if config.shards is None else ",")
    if config.engine in SYNCHRONOUS:
        other = "pipeline.microbatches" if config.engine in PIPELINES else "blocks, which are its replicas"
        raise ConfigError(f"{found} but engine {config.engine} divides batches by {other}; use --set shards=1")
    if config.engine == "streams" or config.gpu.capture:
        key = "engine is streams" if config.engine == "streams" else "gpu.capture is on"
        raise ConfigError(
            f"{found} but {key}, which was never tried on a GPU with several shards; use --set shards=1, or --set "
            + ("engine=sequential" if config.engine == "streams" else "gpu.capture=false")
        )
    check_divisible(config, number, "shards")
    if config.norm == "sync" and (part := _batch_wide(config)):
        raise ConfigError(
            f"norm is sync, which has the results of one shard, but {part} depends on which images are in a shard; "
            f"use --set norm=shard"
        )


def _check_block_replicas(config: Config) -> None:
    replicas = config.block_replicas
    if len(replicas) != config.num_blocks:
        raise ConfigError(
            f"replicas is {config.replicas}, but there are {config.num_blocks} blocks; use one number for each, or one "
            f"for all: --set replicas={max(replicas, default=1)}"
        )
    if min(replicas) < 1:
        raise ConfigError(f"replicas is {config.replicas}; expected at least 1 for every block")
    if (config.replicas == "auto" or max(replicas) > 1) and (config.engine in SYNCHRONOUS or config.is_end_to_end):
        other = "; for replicas of the whole network use --set engine=ddp --set method=bp, with their number as blocks"
        raise ConfigError(
            f"replicas is {config.replicas}, but engine {config.engine} has no replicas of blocks; use --set replicas=1"
            f"{other if config.engine == 'single' else ''}"
        )
    if max(replicas) > config.num_shards:
        raise ConfigError(
            f"replicas is {config.replicas}, but the number of shards of a batch is {config.num_shards}, and every "
            f"replica needs one; use --set shards={max(replicas)} or more, which changes the results, or fewer replicas"
        )


def _check_sharding(config: Config) -> None:
    if config.sharding == "none":
        return
    if config.engine != "ranks" or config.replicas == "auto" or max(config.block_replicas) == 1:
        key = f"replicas is {config.replicas}" if config.engine == "ranks" else f"engine is {config.engine}"
        raise ConfigError(
            f"sharding is fsdp, which slices blocks over their replicas, but {key}; use --set engine=ranks --set "
            f"replicas=2, or a number for each block, or --set sharding=none"
        )
    if config.reduce != "native":
        raise ConfigError(
            f"sharding is fsdp, whose sums are in the order of the backend, but reduce is {config.reduce}; use --set "
            f"reduce=native"
        )
    if config.device == "cuda" or config.channels_last is True:
        key = "device is cuda" if config.device == "cuda" else "channels_last is true"
        raise ConfigError(
            f"sharding is fsdp, which was tried on CPUs with contiguous weights alone, but {key}; use --set device=cpu "
            f"--set channels_last=false, or --set sharding=none"
        )
    if any(config.num_shards % number for number in config.block_replicas):
        least = lcm(*config.block_replicas)
        raise ConfigError(
            f"sharding is fsdp, for which all replicas of a block need equally many shards, but replicas is "
            f"{config.replicas} and the number of shards {config.num_shards}; use --set shards={least}, which changes "
            f"the results"
        )


def _check_recompute(config: Config) -> None:
    if config.model.recompute == "none":
        return
    reasons = {
        "threads": "whose threads draw from one generator, so that a second pass would draw other numbers",
        "streams": "which was never tried with it on a GPU",
        **dict.fromkeys(PIPELINES, "whose schedule divides the backward pass"),
    }
    key, reason = f"engine is {config.engine}", reasons.get(config.engine)
    if config.gpu.capture or config.gpu.compile:
        key = "gpu.capture is on" if config.gpu.capture else "gpu.compile is on"
        reason = "which was never tried with it on a GPU"
    if reason:
        raise ConfigError(f"model.recompute is units, but {key}, {reason}; use --set model.recompute=none")


def _batch_wide(config: Config) -> str | None:
    """A part of the loss that is no mean over images, or of messages, so that it depends on the shards."""
    if config.method == "predsim":
        return "method predsim, which compares all images of a shard,"
    if config.method == "bll" and config.objective.normalize == "batch":
        return "objective.normalize=batch"
    if config.method == "bll" and config.objective.family == "gaussian_learned":
        return "objective.family=gaussian_learned, whose variance is that of a shard,"
    if config.objective.contrast_weight:
        return "objective.contrast_weight, which compares the images of a shard,"
    if config.objective.keep_weight:
        return "objective.keep_weight, which divides by the variance of a shard,"
    return "precision.wire=int8, whose scales are those of a shard," if config.precision.wire == "int8" else None


def check_divisible(config: Config, parts: int, kind: str) -> None:
    """Raises ConfigError unless a batch has ``parts`` equal parts."""
    size = config.data.batch_size
    if size % parts:
        raise ConfigError(
            f"data.batch_size is {size}, which {parts} {kind} cannot divide equally; "
            f"use --set data.batch_size={-(-size // parts) * parts}"
        )
