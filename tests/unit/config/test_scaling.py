"""Shards, replicas and messages in 8 bits that cannot be."""

import pytest

from bllpipe.config import load_config
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
