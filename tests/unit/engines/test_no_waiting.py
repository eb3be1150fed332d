"""A step asks its device for nothing: on a GPU the host would have to wait for the answer.

Checked on a CPU, with the books as a GPU has them: losses are looked at where a line is written. On a GPU the
same is checked by torch itself (tests/gpu).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bllpipe.engines import build
from bllpipe.learn.optimizer import Learner
from bllpipe.messages import Round
from bllpipe.training.instrument import guard
from bllpipe.training.worker import Actor
from tests.support import jobs
from tests.support.tape import ASKS_THE_DEVICE

ASKING_METHODS = ("cpu", "tolist", "numpy", "item", "__bool__", "__float__", "__int__", "__index__", "nonzero")
LINE = 9  # steps to a line
SMALL = (
    "model.name=tests.support.networks.engines:eight",
    "data.name=synthetic",
    "data.synthetic_images=64",
    "data.image_size=8",
    "data.batch_size=16",
    "data.augment.flip=true",
    "blocks=2",
    f"steps={LINE}",
    f"log.every_steps={LINE}",  # with tests after four and eight steps
)


class Asked:
    """What was asked of the device in ``round``; None while nobody trains."""

    def __init__(self) -> None:
        self.round: Round | None = None
        self.found: list[tuple[int, str]] = []

    def note(self, name: str) -> None:
        if self.round is not None:
            self.found.append((self.round.step, name))


class Operations(TorchDispatchMode):
    def __init__(self, asked: Asked) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.asked = asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func._schema.name in ASKS_THE_DEVICE:
            self.asked.note(func._schema.name)
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Some of what asks a GPU is no operation of a CPU."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.asked = asked

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ASKING_METHODS:
            self.asked.note(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found, carry_out = Asked(), Actor.run_round

    def noted(actor: Actor, entry: Round) -> None:
        found.round = entry if entry.phase == "train" else None
        carry_out(actor, entry)
        found.round = None

    monkeypatch.setattr(Actor, "run_round", noted)
    monkeypatch.setattr(build, "guard", lambda actor, at_lines: guard(actor, at_lines=True))
    return found


def asked_in(asked: Asked, folder: Path, *settings: str) -> list[tuple[int, str]]:
    with Operations(asked), Methods(asked):
        jobs.in_this_process(folder, *SMALL, *settings)
    return asked.found


@pytest.mark.parametrize("engine", ["sequential", "streams"])
@pytest.mark.parametrize(
    "settings",
    [
        ("method=bll",),
        ("method=predsim",),
        ("method=dgl", "optimizer.clip_norm=1.0", "optimizer.name=adamw"),
        ("feedback.update=sgd", "objective.family=gaussian_learned", "objective.keep_weight=0.1"),
        ("objective.family=categorical", "data.augment.rotation=0", "precision.compute=bf16"),
    ],
    ids=" ".join,
)
def test_only_the_step_that_writes_a_line_asks(
    asked: Asked, tmp_path: Path, engine: str, settings: tuple[str, ...]
) -> None:
    found = asked_in(asked, tmp_path, f"engine={engine}", *settings)
    assert [each for each in found if each[0] < LINE - 1] == []
    assert {step for step, _ in found} == {LINE - 1}, "the one that does is seen"


def test_a_line_asks_behind_its_update(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, before = Learner.apply, list[int]()

    def noted(learner: Learner) -> None:
        before.append(len(asked.found))
        apply(learner)

    monkeypatch.setattr(Learner, "apply", noted)
    found = asked_in(asked, tmp_path, "engine=sequential")
    assert before == [0] * (2 * LINE - 1) + [len(found) // 2], "the second block's line comes behind that of the first"


@pytest.mark.parametrize("method", ["bp", "fa", "usf", "dfa"])
def test_nor_does_what_learns_end_to_end(asked: Asked, tmp_path: Path, method: str) -> None:
    found = asked_in(asked, tmp_path, "engine=single", f"method={method}")
    assert {step for step, _ in found} == {LINE - 1}


@pytest.mark.parametrize("question", [torch.Tensor.item, float, bool, torch.Tensor.tolist, torch.Tensor.cpu])
def test_a_question_is_seen(question: Any) -> None:
    asked = Asked()
    asked.round = Round("train", 3)
    with Operations(asked), Methods(asked):
        question(torch.ones(()))
    assert {step for step, _ in asked.found} == {3}
