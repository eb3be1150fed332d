"""Shards, replicas and messages in 8 bits that cannot be."""

import pytest

from bllpipe.config import load_config
from bllpipe.errors import ConfigError
from tests.unit.config.test_validation import refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["shards=3", "data.batch_size=32"],
            "data.batch_size is 32, which 3 shards cannot divide equally; use --set data.batch_size=33",
        ),
        (
            ["shards=2", "engine=streams"],
            "shards is 2, but engine is streams, which was never tried on a GPU with several shards; use "
            "--set shards=1, or --set engine=sequential",
        ),
        (
            ["shards=2", "gpu.capture=true"],
            "shards is 2, but gpu.capture is on, which was never tried on a GPU with several shards; use "
            "--set shards=1, or --set gpu.capture=false",
        ),
        (
            ["shards=2", "engine=ddp", "method=bp"],
            "shards is 2, but engine ddp divides batches by blocks, which are its replicas; use --set shards=1",
        ),
        (
            ["shards=2", "engine=gpipe", "method=bp"],
            "shards is 2, but engine gpipe divides batches by pipeline.microbatches; use --set shards=1",
        ),
    ],
)
def test_shards_that_cannot_be(settings: list[str], message: str) -> None:
    refused(settings, message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["method=bp", "engine=1f1b"],
            "precision.wire is int8, but stages of engine 1f1b send gradients too, which 8 bits do not hold; use --set "
            "precision.wire=bf16",
        ),
        (
            ["engine=streams"],
            "precision.wire is int8, but blocks of engine streams share the memory of one GPU, so messages need not be "
            "small; use --set precision.wire=bf16, or --set engine=sequential",
        ),
    ],
)
def test_messages_in_eight_bits_are_for_blocks_with_a_wire(settings: list[str], message: str) -> None:
    refused([*settings, "precision.wire=int8"], message)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("method=predsim", "method predsim, which compares all images of a shard,"),
        ("objective.normalize=batch", "objective.normalize=batch"),
        ("objective.family=gaussian_learned", "objective.family=gaussian_learned, whose variance is that of a shard,"),
        ("objective.contrast_weight=0.1", "objective.contrast_weight, which compares the images of a shard,"),
        ("objective.keep_weight=0.1", "objective.keep_weight, which divides by the variance of a shard,"),
        ("precision.wire=int8", "precision.wire=int8, whose scales are those of a shard,"),
    ],
)
def test_norm_sync_is_for_losses_that_are_means_over_images(setting: str, what: str) -> None:
    load_config(None, ["shards=2", setting])
    refused(
        ["shards=2", "norm=sync", setting],
        f"norm is sync, which has the results of one shard, but {what} depends on which images are in a shard; "
        f"use --set norm=shard",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["replicas=[2, 1]", "blocks=3"],
            "replicas is [2, 1], but there are 3 blocks; use one number for each, or one for all: --set replicas=2",
        ),
        (["replicas=[2, 0]", "blocks=2"], "replicas is [2, 0]; expected at least 1 for every block"),
        (
            ["replicas=3", "shards=2"],
            "replicas is 3, but the number of shards of a batch is 2, and every replica needs one; use --set "
            "shards=3 or more, which changes the results, or fewer replicas",
        ),
        (
            ["replicas=2", "engine=ddp", "method=bp"],
            "replicas is 2, but engine ddp has no replicas of blocks; use --set replicas=1",
        ),
        (
            ["replicas=2", "engine=single", "method=bp"],
            "replicas is 2, but engine single has no replicas of blocks; use --set replicas=1; for replicas of the "
            "whole network use --set engine=ddp --set method=bp, with their number as blocks",
        ),
        (
            ["replicas=5", "blocks=2"],
            "data.batch_size is 64, which 5 shards cannot divide equally; use --set data.batch_size=65",
        ),
    ],
)
def test_replicas_that_cannot_be(settings: list[str], message: str) -> None:
    refused(settings, message)


def test_the_default_number_of_shards_is_the_largest_number_of_replicas() -> None:
    config = load_config(None, ["replicas=[2, 1, 4, 1]"])
    assert config.num_shards == 4
    assert load_config(None, ["replicas=2", "shards=8"]).num_shards == 8


FSDP = ["sharding=fsdp", "replicas=2", "reduce=native"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["sharding=fsdp"],
            "sharding is fsdp, which slices blocks over their replicas, but replicas is 1; use --set engine=ranks "
            "--set replicas=2, or a number for each block, or --set sharding=none",
        ),
        (
            ["sharding=fsdp", "replicas=auto"],
            "sharding is fsdp, which slices blocks over their replicas, but replicas is auto; use --set engine=ranks "
            "--set replicas=2, or a number for each block, or --set sharding=none",
        ),
        (
            ["sharding=fsdp", "method=bp", "engine=ddp"],
            "sharding is fsdp, which slices blocks over their replicas, but engine is ddp; use --set engine=ranks "
            "--set replicas=2, or a number for each block, or --set sharding=none",
        ),
        (
            ["sharding=fsdp", "replicas=2"],
            "sharding is fsdp, whose sums are in the order of the backend, but reduce is ordered; use --set "
            "reduce=native",
        ),
        (
            [*FSDP, "device=cuda"],
            "sharding is fsdp, which was tried on CPUs with contiguous weights alone, but device is cuda; use --set "
            "device=cpu --set channels_last=false, or --set sharding=none",
        ),
        (
            [*FSDP, "channels_last=true"],
            "sharding is fsdp, which was tried on CPUs with contiguous weights alone, but channels_last is true; use "
            "--set device=cpu --set channels_last=false, or --set sharding=none",
        ),
        (
            [*FSDP, "blocks=2", "replicas=[2, 3]", "shards=4"],
            "sharding is fsdp, for which all replicas of a block need equally many shards, but replicas is [2, 3] and "
            "the number of shards 4; use --set shards=6, which changes the results",
        ),
    ],
)
def test_sharding_that_cannot_be(settings: list[str], message: str) -> None:
    refused(settings, message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["engine=threads"], "engine is threads, whose threads draw from one generator, so that a second pass would"),
        (["engine=streams"], "engine is streams, which was never tried with it on a GPU;"),
        (["engine=zbv", "method=bp"], "engine is zbv, whose schedule divides the backward pass;"),
        (["gpu.capture=true"], "gpu.capture is on, which was never tried with it on a GPU;"),
        (["gpu.compile=true"], "gpu.compile is on, which was never tried with it on a GPU;"),
    ],
)
def test_recomputation_that_cannot_be(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["model.recompute=units", *settings])
    assert str(caught.value).startswith(f"model.recompute is units, but {message}")
    assert str(caught.value).endswith("; use --set model.recompute=none")
