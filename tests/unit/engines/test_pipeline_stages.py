"""Stages and replicas without processes: who holds what, what a round does, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bllpipe import launch
from bllpipe.config import Config, load_config
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.engines import topology
from bllpipe.engines.pipeline_stages import StageLink, StageLoop, StageModule, TimedSchedule
from bllpipe.engines.synchronous import StageTrainer, own_device
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Outcome
from bllpipe.messages import Alpha, Round, Target
from bllpipe.models.units import Segment, units_from_modules

CLASSES, BATCH = 3, 8


def config(*settings: str) -> Config:
    return load_config(None, ["method=bp", "schedule.name=constant", "optimizer.lr=0.1", *settings])


@pytest.mark.parametrize(
    ("engine", "blocks", "roles", "scoring"),
    [
        ("gpipe", "3", ["stage 0", "stage 1", "stage 2"], 2),
        ("1f1b", "[2, 4]", ["stage 0", "stage 1", "stage 2"], 2),
        ("interleaved", "4", ["stages 0+2", "stages 1+3"], 1),
        ("zbv", "6", ["stages 0+5", "stages 1+4", "stages 2+3"], 0),
        ("dualpipev", "4", ["stages 0+3", "stages 1+2"], 0),
        ("deepspeed", "[2, 4]", ["stage 0", "stage 1", "stage 2"], 2),
        ("ddp", "3", ["replica 0", "replica 1", "replica 2"], 0),
    ],
)
def test_who_holds_what(engine: str, blocks: str, roles: list[str], scoring: int) -> None:
    layout = topology(config(f"engine={engine}", f"blocks={blocks}", "pipeline.microbatches=6", "data.batch_size=48"))
    assert [layout.role(rank) for rank in range(layout.world_size)] == roles
    assert layout.scoring_rank == scoring and layout.edges() == ()
    if engine != "ddp":
        stages = sorted(stage for rank in layout.block_ranks for stage in layout.stages_of(rank))
        assert stages == list(range(layout.num_stages))
        assert layout.rank_of(layout.num_stages - 1) == scoring and layout.rank_of(0) == 0


@pytest.mark.parametrize(
    ("engine", "blocks", "found", "message"),
    [
        ("1f1b", 4, 3, "4 stages need 4 ranks, but torchrun started 3; use --nproc_per_node=4, or --set blocks=3"),
        (
            "zbv",
            4,
            3,
            "4 stages, two a rank, need 2 ranks, but torchrun started 3; use --nproc_per_node=2, or --set blocks=6",
        ),
        ("ddp", 4, 2, "4 replicas need 4 ranks, but torchrun started 2; use --nproc_per_node=4, or --set blocks=2"),
    ],
)
def test_a_wrong_world_size(
    engine: str,
    blocks: int,
    found: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        topology(config(f"engine={engine}", f"blocks={blocks}")).check_world_size(found)
    variables = {"RANK": "0", "WORLD_SIZE": str(found), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(found)}
    for key, value in {**variables, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    words = [f"engine={engine}", "method=bp", f"blocks={blocks}"]
    assert launch.main([word for setting in words for word in ("--set", setting)]) == 2
    assert message in capsys.readouterr().err


def test_ranks_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    environment = RankEnvironment(1, 2, 1, 2, "localhost", 1, True)
    settings = config("engine=1f1b", "blocks=2")
    with pytest.raises(ConfigError, match="engine 1f1b needs a GPU a rank, but 2 ranks find 1 .* --set device=cpu"):
        own_device(settings, topology(settings), environment)
    alone = config("engine=1f1b", "blocks=2", "device=cpu")
    assert own_device(alone, topology(alone), environment).type == "cpu"


def segments(*cuts: list[nn.Module]) -> list[Segment]:
    """Consecutive parts of one network."""
    modules = [module for part in cuts for module in part]
    units = units_from_modules({str(number): module for number, module in enumerate(modules)})
    parts, first = [], 0
    for part in cuts:
        parts.append(Segment(units[first : first + len(part)], seed=0))
        first += len(part)
    return parts


def two_stages() -> list[Segment]:
    torch.manual_seed(0)
    return segments([nn.Linear(5, 4), nn.BatchNorm1d(4)], [nn.ReLU(), nn.Linear(4, CLASSES)])


def share_of(parts: list[Segment], settings: Config) -> StageTrainer:
    return StageTrainer(parts, settings, total_steps=10, add_up=lambda square: square)


def test_a_stage_without_parameters_is_refused() -> None:
    parts = segments([nn.Linear(5, 4)], [nn.ReLU()])
    with pytest.raises(ConfigError, match="the stage that ends with 1 has no parameters; cut somewhere else"):
        share_of(parts, config("engine=single"))


def test_names_are_those_of_the_whole_network_and_state_comes_back() -> None:
    share, other = (share_of(two_stages(), config("engine=single")) for _ in range(2))
    assert {"model.0.weight", "model.1.running_mean", "model.3.bias"} < share.learner.weights().keys()
    share.loss(share.segments[1](share.segments[0](torch.randn(BATCH, 5))), torch.arange(BATCH) % CLASSES).backward()
    assert share.step(0) == pytest.approx(0.1)
    assert other.learner.load(share.learner.state()) == []
    assert all(torch.equal(value, other.learner.state()[name]) for name, value in share.learner.state().items())
    assert other.learner.load({}) == sorted(other.learner.weights())
    with torch.no_grad():  # weights are the live ones
        share.learner.weights()["model.0.weight"].zero_()
    assert not share.segments[0].get_parameter("0.weight").any()


def test_the_norm_that_is_clipped_is_that_of_all_ranks() -> None:
    alone = share_of(two_stages(), config("engine=single", "optimizer.clip_norm=0.5"))
    more = StageTrainer(alone.segments, alone.config, total_steps=10, add_up=lambda square: square + 16.0)
    for share, norm in ((alone, 3.0), (more, 5.0)):
        for parameter in share.learner.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        share.learner.parameters["model.0.weight"].grad[0, 0] = 3.0  # type: ignore[index]  # just set
        share.step(0)
        assert share.learner.parameters["model.0.weight"].grad[0, 0] == pytest.approx(0.5 * 3 / norm, rel=1e-4)  # type: ignore[index]


class Here:
    """Both stages in one process, a microbatch after the other: a schedule without ranks."""

    def __init__(self, modules: list[StageModule], share: StageTrainer, parts: int) -> None:
        self.modules, self.share, self.parts = modules, share, parts
        self.trained: list[bool] = []

    def step(self, *images: Tensor, target: Tensor | None = None, losses: list[Tensor] | None = None) -> Any:
        assert target is not None and losses is not None
        scores = []
        self.trained.append(self.share.segments[0].training)
        for part, labels in zip(images[0].chunk(self.parts), target.chunk(self.parts), strict=True):
            scores.append(self.modules[1](self.modules[0](part)))
            losses.append(self.share.loss(scores[-1], labels))
            (losses[-1] / self.parts).backward()
        return torch.cat(scores).detach()


class Given:
    """A receiver of what it was made with."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)

    def recv(self) -> Any:
        return self.messages.pop(0)


def batch(size: int) -> tuple[Alpha, Target]:
    entry = Round("train", 0, size=size)
    torch.manual_seed(size)
    label_B = torch.arange(size) % CLASSES
    return Alpha(entry, torch.randn(size, 5)), Target(entry, torch.zeros(size, 3), torch.zeros(size), label_B)


def make_loop(settings: Config, *sizes: int) -> tuple[StageLoop, Here]:
    share = share_of(two_stages(), settings)
    modules = [StageModule(part, share.learner.autocast(), torch.float32) for part in share.segments]
    schedule = Here(modules, share, 2)
    images, labels = zip(*map(batch, sizes), strict=True)
    hops = [StageLink(module, None, None) for module in modules]
    return StageLoop(share, schedule, hops, Given(*images), Given(*labels)), schedule


def test_a_training_round_is_a_step_on_the_mean_loss() -> None:
    loop, schedule = make_loop(config("engine=single"), BATCH)
    before = {name: value.clone() for name, value in loop.weights().items()}
    outcome = loop.run(Round("train", 0, size=BATCH))
    assert outcome is not None and schedule.trained == [True]
    assert outcome.lr == pytest.approx(0.1) and outcome.terms["pred"] > 0
    assert all(not torch.equal(value, before[name]) for name, value in loop.weights().items() if "weight" in name)
    assert loop.run(Round("score", 1)) is None and loop.run(Round("save", 1)) is None


def test_a_test_round_takes_any_size_and_changes_nothing() -> None:
    loop, _ = make_loop(config("engine=single"), 5)
    before = {name: value.clone() for name, value in loop.weights().items()}
    (images, target), (first, second) = batch(5), loop.trainer.segments
    outcome = loop.run(Round("evaluate", 0, size=5))
    assert outcome is not None
    assert all(torch.equal(value, before[name]) for name, value in loop.weights().items())
    scores_BK = second.eval()(first.eval()(images.alpha_BCHW))
    assert outcome.correct == (scores_BK.argmax(dim=1) == target.label_B).sum()
    torch.testing.assert_close(outcome.terms["pred"], loop.trainer.loss(scores_BK, target.label_B).detach())


def test_a_test_batch_hops_from_rank_to_rank() -> None:
    whole, _ = make_loop(config("engine=single"), 5)
    expected = whole.run(Round("evaluate", 0, size=5))
    (images, labels), wire = batch(5), list[Tensor]()

    def receive(size: int) -> Tensor:
        assert len(wire[0]) == size
        return wire.pop()

    parts = two_stages()
    outcomes: list[Outcome | None] = []
    for part, hop, source, target in (
        (parts[0], (None, wire.append), Given(images), None),
        (parts[1], (receive, None), None, Given(labels)),
    ):
        share = share_of([part], config("engine=single"))
        module = StageModule(part, share.learner.autocast(), torch.float32)
        loop = StageLoop(share, Here([module], share, 1), [StageLink(module, *hop)], source, target)
        outcomes.append(loop.run(Round("evaluate", 0, size=5)))
    assert outcomes[0] is None and expected is not None and outcomes[1] is not None
    assert torch.equal(outcomes[1].terms["pred"], expected.terms["pred"])


@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
def test_what_a_stage_sends_has_the_format_of_the_wire(wire: torch.dtype) -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    (segment,) = segments([nn.Linear(4, 4), Turned()])
    share = share_of([segment], config("engine=single", "precision.compute=bf16"))
    sent = StageModule(segment, share.learner.autocast(), wire)(torch.ones(2, 3, 4, dtype=wire))
    assert sent.dtype == wire and sent.is_contiguous() and sent.shape == (2, 4, 3)


def test_the_gradient_that_goes_back_is_contiguous() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    (segment,) = segments([Turned(), nn.Linear(3, 3)])
    share = share_of([segment], config("engine=single"))
    x = torch.ones(2, 3, 4, requires_grad=True)
    sent = StageModule(segment, share.learner.autocast(), torch.float32)(x)
    (gradient,) = torch.autograd.grad(sent.sum(), x)
    assert gradient.is_contiguous() and gradient.shape == x.shape


def test_maps_lie_with_channels_last_inside_a_stage_and_contiguous_between_two() -> None:
    seen, x = list[Tensor](), torch.randn(2, 3, 4, 4, requires_grad=True)

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.register_hook(seen.append)
            seen.append(x)
            return x * 2

    share = share_of(segments([nn.BatchNorm2d(3), Seen()]), config("engine=single", "channels_last=true"))
    (segment,) = share.segments
    sent = StageModule(segment, share.learner.autocast(), torch.float32, share.channels_last)(x)
    (gradient,) = torch.autograd.grad(sent.square().sum(), x)
    assert sent.is_contiguous() and gradient.is_contiguous() and len(seen) == 2
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)
    torch.testing.assert_close(gradient, torch.autograd.grad(segment(x).square().sum(), x)[0])


def test_what_is_not_computed_in_a_step_is_waited() -> None:
    class Stage:
        def forward_one_chunk(self, seconds: float) -> None:
            spend(seconds)

        def backward_one_chunk(self) -> None: ...

    class Slow:
        def step(self, *images: Tensor, target: Tensor | None = None, losses: list[Tensor] | None = None) -> str:
            stage.forward_one_chunk(0.06)
            spend(0.03)
            return "scores"

    stage = Stage()
    timed = TimedSchedule(Slow(), [stage])
    assert timed.step() == "scores"
    assert 0.03 <= timed.meter.waited < 0.06


def spend(seconds: float) -> None:
    import threading

    threading.Event().wait(seconds)
