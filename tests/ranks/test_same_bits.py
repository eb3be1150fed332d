"""The promise that all else stands on: one after another, in threads, in a wavefront or as ranks, the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import jobs

IMAGES = ("data.name=synthetic", "data.synthetic_images=256", "data.image_size=8")
STEPS = 6  # more than one epoch of batches of 64: evaluations and a checkpoint lie in between


LAST = "channels_last=true"
BF16 = ("precision.compute=bf16", "precision.wire=bf16")


@pytest.fixture(scope="module", params=[(4,), (2,), (4, LAST), (2, LAST, *BF16)], ids=str)
def digests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """state_sha256 of every engine for the same job."""
    blocks, *more = request.param
    folder = tmp_path_factory.mktemp(f"blocks-{blocks}")
    length = ("data.batch_size=64", f"steps={STEPS}", "evaluate.every_epochs=1")
    settings = (*jobs.RESNET, *IMAGES, *length, f"blocks={blocks}", *more)
    found = {
        engine: jobs.in_this_process(folder / engine, f"engine={engine}", *settings)["state_sha256"]
        for engine in ("sequential", "threads", "streams")
    }
    jobs.succeed(jobs.ranks(blocks + 1, jobs.words(folder / "ranks", *settings)))
    summary = jobs.summary(folder / "ranks")
    assert summary["world_size"] == blocks + 1
    assert summary["steps"] == STEPS
    assert all(0 < busy < 1.05 for busy in summary["busy"])
    return {**found, "ranks": summary["state_sha256"]}


@pytest.mark.ranks
def test_all_local_engines_give_the_same_bits(digests: dict[str, str]) -> None:
    assert digests["threads"] == digests["sequential"]
    assert digests["streams"] == digests["sequential"]
    assert digests["ranks"] == digests["sequential"]


RESNET18 = ("model.name=resnet18", "model.width=4")
VARIATIONS = [
    ("precision.wire=bf16", "precision.compute=bf16"),
    ("optimizer.name=adamw", "optimizer.lr=0.002", "optimizer.clip_norm=1.0"),
    ("feedback.update=sgd", "feedback.layers=2", "feedback.lag=3"),
    ("feedback.update=fixed", "objective.head=conv", "objective.label_smoothing=0.1"),
    ("blocks=8", "objective.head=mlp", "backend.ring=1", "backend.in_flight=1"),
    ("blocks=1",),
    (
        *RESNET18,
        "objective.head=auglocal",
        "objective.message=cells",
        "objective.contrast_weight=0.1",
        "objective.keep_weight=0.1",
    ),
    (*RESNET18, "blocks=[layer1.1, layer4.0]", "data.augment.flip=true", "data.augment.rotation=10"),
]


@pytest.mark.parametrize("more", [(), BF16], ids=["fp32", "bf16"])
def test_maps_with_channels_last_are_the_same_whether_they_come_so_or_are_laid_out_here(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    """In a wavefront they come as they lie, otherwise as messages do. Behind six of eight blocks they have 2 x 2
    positions or one: of one position strides say little, and kernels are chosen by strides."""
    settings = (*jobs.RESNET, *IMAGES, "steps=4", "blocks=8", "objective.head=conv", *more)
    digests = {
        jobs.in_this_process(tmp_path / engine, f"engine={engine}", *settings, LAST)["state_sha256"]
        for engine in ("sequential", "threads", "streams")
    }
    assert len(digests) == 1
    plain = jobs.in_this_process(tmp_path / "plain", "engine=sequential", *settings)["state_sha256"]
    assert plain not in digests, "or the key does nothing"


@pytest.mark.parametrize("variation", VARIATIONS, ids=" ".join)
def test_threads_equal_sequential_in_every_setting(tmp_path: Path, variation: tuple[str, ...]) -> None:
    digests = {
        jobs.in_this_process(tmp_path / engine, f"engine={engine}", *jobs.SMALL, *IMAGES, "steps=8", *variation)[
            "state_sha256"
        ]
        for engine in ("sequential", "threads")
    }
    assert len(digests) == 1


@pytest.mark.ranks
def test_messages_of_heads_have_the_same_bits_in_every_engine(tmp_path: Path) -> None:
    """The feedback rank has no heads, and computes how large their embeddings are; weights change over the run."""
    weights = ("objective.kl_final_fraction=0", "objective.kl_block_factor=0.5", "objective.kl_scale=both")
    heads = ("objective.head=auglocal", "objective.head_units=1", "objective.message=embedding")
    settings = (*jobs.RESNET, *IMAGES, "blocks=3", "steps=12", "evaluate.every_epochs=1", *heads, *weights)
    digests = {
        jobs.in_this_process(tmp_path / engine, f"engine={engine}", *settings)["state_sha256"]
        for engine in ("sequential", "threads", "streams")
    }
    jobs.succeed(jobs.ranks(4, jobs.words(tmp_path / "ranks", *settings)))
    assert digests == {jobs.summary(tmp_path / "ranks")["state_sha256"]}


@pytest.mark.ranks
def test_messages_in_flight_change_no_bit(tmp_path: Path) -> None:
    """With a lag of 4, as for a slow link, a block and its feedback may be four steps apart, and two shards double the
    number of messages."""
    settings = (*jobs.SMALL, "blocks=2", "steps=10", "feedback.lag=4", "shards=2", "precision.wire=int8")
    expected = jobs.in_this_process(tmp_path / "sequential", "engine=sequential", *settings)["state_sha256"]
    for ring, in_flight in ((1, 1), (2, 4), (4, 2)):
        folder, depth = tmp_path / f"{ring}-{in_flight}", (f"backend.ring={ring}", f"backend.in_flight={in_flight}")
        jobs.succeed(jobs.ranks(3, jobs.words(folder, *settings, *depth)))
        assert jobs.summary(folder)["state_sha256"] == expected, depth


@pytest.mark.ranks
def test_messages_in_flight_change_no_bit_at_a_lag_of_one(tmp_path: Path) -> None:
    settings = (*jobs.SMALL, "blocks=2", "steps=10", "precision.wire=bf16")
    expected = jobs.in_this_process(tmp_path / "sequential", "engine=sequential", *settings)["state_sha256"]
    depth = ("backend.ring=4", "backend.in_flight=4")
    jobs.succeed(jobs.ranks(3, jobs.words(tmp_path / "ranks", *settings, *depth)))
    assert jobs.summary(tmp_path / "ranks")["state_sha256"] == expected


def test_another_seed_gives_other_bits(tmp_path: Path) -> None:
    digests = {
        jobs.in_this_process(
            tmp_path / str(seed), "engine=sequential", *jobs.RESNET, *IMAGES, "steps=3", f"seed={seed}"
        )["state_sha256"]
        for seed in (0, 1)
    }
    assert len(digests) == 2
