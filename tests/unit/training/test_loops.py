"""What a block and a lane do in a round, in which order, with ports that are lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bllpipe.config import Config
from bllpipe.errors import CheckpointError
from bllpipe.learn.block import Block, make_block
from bllpipe.learn.distributions import channel_means, class_statistics
from bllpipe.learn.feedback import ClosedForm
from bllpipe.messages import Alpha, Round, Stats, Target
from bllpipe.models.partition import cut
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Segment
from bllpipe.training.loops import BlockLoop, FeedbackLoop

CLASSES, CHANNELS, SIZE = 10, 8, 4


class Given:
    """A receiver of prepared messages that notes when it was asked."""

    def __init__(self, name: str, messages: list[Any], events: list[str]) -> None:
        self.name, self.messages, self.events = name, iter(messages), events

    def recv(self) -> Any:
        self.events.append(f"recv {self.name}")
        return next(self.messages)


class Kept:
    """A sender that keeps what is sent, as it was then."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events, self.messages = name, events, list[Any]()

    def send(self, message: Any) -> None:
        self.events.append(f"send {self.name}")
        self.messages.append(message)


class Watched(Block):
    """A block that notes its updates."""

    events: list[str]

    def learn(self, *arguments: Any) -> Any:
        self.events.append("learn")
        return super().learn(*arguments)

    def step(self, *arguments: Any) -> Any:
        self.events.append("step")
        return super().step(*arguments)


def train(step: int) -> Round:
    return Round("train", step, size=SIZE)


def block(events: list[str]) -> Block:
    segment = Segment(cut(resnet_units("resnet18", CHANNELS, "cifar", 1, CLASSES), 4)[0], seed=0)
    made = make_block(segment, (1, 8, 8), (CHANNELS, 8, 8), Config(), CLASSES, total_steps=10, is_last=False)
    made.__class__, made.events = Watched, events  # type: ignore[attr-defined]  # Watched has them
    return made


def images(seed: int) -> Tensor:
    return torch.randn(SIZE, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def target(entry: Round) -> Target:
    return Target(entry, torch.ones(SIZE, CHANNELS), torch.ones(SIZE), torch.tensor([1, 2, 1, 0]))


def block_loop(entries: list[Round], events: list[str]) -> BlockLoop:
    return BlockLoop(
        block(events),
        inputs=Given("alpha", [Alpha(entry, images(entry.step)) for entry in entries], events),
        targets=Given("target", [target(entry) for entry in entries], events),
        alphas=Kept("alpha", events),
        stats=Kept("stats", events),
    )


def test_alpha_leaves_before_the_target_is_asked_for_and_everything_before_the_update() -> None:
    events: list[str] = []
    loop = block_loop([train(0)], events)
    loop.run(train(0))
    assert events == ["recv alpha", "send alpha", "recv target", "send stats", "learn", "step"]


def test_stats_are_those_of_the_alpha_that_was_sent() -> None:
    events: list[str] = []
    loop = block_loop([train(0)], events)
    loop.run(train(0))
    sent, stats = loop.alphas.messages[0], loop.stats.messages[0]  # type: ignore[attr-defined]  # a list in this test
    sums_KC, counts_K = class_statistics(channel_means(sent.alpha_BCHW), target(train(0)).label_B, CLASSES)
    assert torch.equal(stats.sums_KC, sums_KC)
    assert torch.equal(stats.counts_K, counts_K)
    assert counts_K.tolist() == [1, 2, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_test_batch_changes_nothing() -> None:
    entry, events = Round("evaluate", 0, size=SIZE), list[str]()
    loop = block_loop([entry], events)
    before = {name: value.clone() for name, value in loop.weights().items()}
    assert loop.run(entry) is not None
    assert events == ["recv alpha", "send alpha", "recv target"]
    assert all(torch.equal(before[name], value) for name, value in loop.weights().items())


@pytest.mark.parametrize("phase", ["score", "save"])
def test_other_rounds_need_no_messages(phase: Any) -> None:
    events: list[str] = []
    assert block_loop([], events).run(Round(phase, 0)) is None
    assert events == []


def statistics(step: int) -> Stats:
    """Class 0 has the mean ``step`` in step ``step``."""
    sums_KC, counts_K = torch.zeros(CLASSES, CHANNELS), torch.zeros(CLASSES)
    sums_KC[0], counts_K[0] = 2.0 * step, 2.0
    return Stats(train(step), sums_KC, counts_K)


def lane(lag: int, steps: range, events: list[str]) -> FeedbackLoop:
    def labels() -> Iterator[Tensor]:
        for _ in steps:
            yield torch.tensor([0, 0, 1, 0])

    feedback = ClosedForm(CLASSES, CHANNELS, decay=0.0, ridge=0.0)
    # without decay the target of step t is the class mean of step t - lag alone
    sent = [statistics(step) for step in steps]
    return FeedbackLoop(
        "layer1.1", feedback, labels(), targets=Kept("target", events), stats=Given("stats", sent, events), lag=lag
    )


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_a_target_rests_on_the_statistics_of_exactly_lag_steps_before(lag: int) -> None:
    loop = lane(lag, range(6), [])
    for step in range(6):
        loop.run(train(step))
    targets = loop.targets.messages  # type: ignore[attr-defined]  # a list in this test
    for step, message in enumerate(targets):
        expected = float(step - lag) if step >= lag else 0.0
        assert message.beta_BC[0].tolist() == [expected] * CHANNELS
        assert message.known_B.tolist() == ([1.0, 1.0, 0.0, 1.0] if step >= lag else [0.0] * 4), "class 1 is unseen"


def test_in_the_first_steps_a_lane_does_not_wait_for_statistics() -> None:
    events: list[str] = []
    loop = lane(2, range(4), events)
    for step in range(4):
        loop.run(train(step))
    assert events == [*["send target"] * 2, "recv stats", "send target", "recv stats", "send target"]


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_lane_goes_on_from_a_checkpoint_as_if_nothing_had_been(lag: int, stop: int) -> None:
    straight = lane(lag, range(8), [])
    for step in range(8):
        straight.run(train(step))
    first = lane(lag, range(8), [])
    for step in range(stop):
        first.run(train(step))
    first.run(Round("save", stop))
    state = {name: value.clone() for name, value in first.state().items()}
    assert sum(name.endswith(".sums") for name in state) == min(lag, stop), "what was under way is kept"
    second = lane(lag, range(8), [])
    second.stats = Given("stats", [statistics(step) for step in range(stop, 8)], [])
    second.load(state, stop)
    for step in range(stop, 8):
        second.run(train(step))
    expected = [message.beta_BC for message in straight.targets.messages[stop:]]  # type: ignore[attr-defined]  # a list
    found = [message.beta_BC for message in second.targets.messages]  # type: ignore[attr-defined]  # a list
    assert torch.equal(torch.stack(found), torch.stack(expected))


def go_on(state: dict[str, Tensor], lag: int, steps: range) -> FeedbackLoop:
    """A lane that goes on from ``state``; its block sends the statistics of ``steps`` and no others."""
    loop = lane(lag, steps, [])
    loop.load(state, steps.start)
    for step in steps:
        loop.run(train(step))
    return loop


def seen(loop: FeedbackLoop) -> list[float]:
    """Which step's statistics the targets rest on."""
    return [message.beta_BC[0, 0].item() for message in loop.targets.messages]  # type: ignore[attr-defined]  # a list


@pytest.mark.parametrize("lag", [1, 3])
def test_a_lane_that_is_new_in_a_resumed_run_waits_for_nothing_from_before_it(lag: int) -> None:
    """It once waited for the statistics of steps that its block never ran, and its block for its targets: for ever."""
    assert seen(go_on({}, lag, range(5, 12))) == [
        float(step - lag) if step - lag >= 5 else 0.0 for step in range(5, 12)
    ]


@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_new_lane_is_saved_with_what_waits_for_it(done: int) -> None:
    stop = 5 + done
    first = go_on({}, 3, range(5, stop))
    first.run(Round("save", stop))
    state = {name: value.clone() for name, value in first.state().items()}
    assert sum(name.endswith(".sums") for name in state) == min(3, done)
    assert seen(first) + seen(go_on(state, 3, range(stop, 12))) == seen(go_on({}, 3, range(5, 12)))


@pytest.mark.parametrize(("then", "now", "expected"), [(3, 1, [4.0, 5.0, 6.0, 7.0]), (1, 3, [3.0, 3.0, 4.0, 5.0])])
def test_a_lane_goes_on_with_another_lag(then: int, now: int, expected: list[float]) -> None:
    """A shorter one absorbs at once what waits too long; a longer one has seen too much already, and waits."""
    first = lane(then, range(5), [])
    for step in range(5):
        first.run(train(step))
    first.run(Round("save", 5))
    assert seen(go_on(first.state(), now, range(5, 9))) == expected


def test_a_lane_of_which_a_part_is_missing_is_a_new_one() -> None:
    first = lane(2, range(5), [])
    for step in range(5):
        first.run(train(step))
    first.run(Round("save", 5))
    state = first.state()
    del state["feedback.layer1.1.counts_K"]
    assert seen(go_on(state, 2, range(5, 9)))[2:] == [5.0, 6.0]


def saved_lane(lag: int = 1, steps: int = 3) -> dict[str, Tensor]:
    loop = lane(lag, range(steps), [])
    for step in range(steps):
        loop.run(train(step))
    loop.run(Round("save", steps))
    return {name: value.clone() for name, value in loop.state().items()}


def test_a_lane_keeps_its_own_copy_of_what_waits() -> None:
    state, loop = saved_lane(), lane(1, range(1), [])
    loop.load(state, 3)
    before = loop.state()["ahead.layer1.1.0.sums"].clone()
    state["ahead.layer1.1.0.sums"].zero_()
    assert torch.equal(loop.state()["ahead.layer1.1.0.sums"], before)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("feedback.layer1.1.sums_KC", (), r"feedback.layer1.1.sums_KC as float32\[\], but this run needs float32"),
        ("ahead.layer1.1.0.sums", (CLASSES, 1), r"ahead.layer1.1.0.sums as float32\[10, 1\], but this run needs"),
        ("ahead.layer1.1.0.counts", (1,), r"ahead.layer1.1.0.counts as float32\[1\], but this run needs float32\[10\]"),
    ],
)
def test_a_lane_takes_nothing_of_another_shape(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(CheckpointError, match=f"^the checkpoint holds {words}"):
        lane(1, range(1), []).load({**saved_lane(), name: torch.ones(shape)}, 3)


def test_half_of_what_waits_is_not_enough() -> None:
    state = saved_lane()
    del state["ahead.layer1.1.0.counts"]
    with pytest.raises(CheckpointError, match=r"holds ahead.layer1.1.0.sums, but not ahead.layer1.1.0.counts; name an"):
        lane(1, range(1), []).load(state, 3)
