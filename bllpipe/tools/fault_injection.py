"""Faults on purpose: a rank kills itself, stops, sleeps or corrupts a number at a chosen point of a chosen step.

    BLLPIPE_FAULT="rank=2,step=7,point=update,action=kill" BLLPIPE_ALLOW_FAULTS=1 python -m bllpipe.launch

Several are separated by semicolons. ``attempt`` (default 0) is the restart in which it happens, ``seconds`` (default
3600) how long ``sleep`` and ``hold`` last; ``step`` may be left out for every step. Only the methods that a fault asks
for are wrapped, so that neither the loops nor the mathematics know of it; without the variable none is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from bllpipe.checkpoint.format import DirectoryName, tensor_file
from bllpipe.checkpoint.writer import separate
from bllpipe.errors import ConfigError
from bllpipe.training.worker import Actor, Worker
from bllpipe.utils.console import say

Call = Callable[..., Any]
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "int": signal.SIGINT}
# By point: part of the loop, method, and whether the fault comes before it. A loop has some of them.
BEFORE, AFTER = True, False
STEPS: dict[str, list[tuple[str, str, bool]]] = {
    "waiting": [("inputs", "recv", BEFORE), ("stats", "recv", BEFORE), ("images", "recv", BEFORE)],
    "forward": [("block", "forward", AFTER), ("feedback", "table", BEFORE)],
    "sent": [("alphas", "send", AFTER), ("targets", "send", AFTER)],
    "update": [("block", "step_optimizer", BEFORE), ("feedback", "absorb", BEFORE), ("share", "step", BEFORE)],
    "updated": [("block", "outcome", AFTER), ("feedback", "absorb", AFTER), ("share", "step", AFTER)],
    "evaluate": [("block", "infer", BEFORE), ("share", "outcome", BEFORE)],
}
Point = Literal[
    "waiting",  # before a rank waits for its input
    "forward",  # alpha is computed, and not sent
    "sent",  # alpha, or a lane's target, is on its way
    "update",  # the gradients are there, the weights are the old ones
    "updated",  # the step is done
    "evaluate",  # in a test batch
    "save",  # a checkpoint is due, nothing of it is written
    "tensors",  # half of the tensor file is written
    "facts",  # the tensor file is written, the facts are not
    "manifest",  # all files are written, the manifest is not (the rank that comes last)
    "rename",  # the manifest is written, the directory has not its name (the same rank)
    "committed",  # it has, and older checkpoints are not yet removed (the same rank)
    "summary",  # the last checkpoint is written, the summary is not
    "input",  # of nan and inf: what the block is given
    "alpha",  # what it makes of it
    "beta",  # what it is to aim at
    "loss",  # the first term of its loss
    "gradient",  # that of its first parameter
    "weights",  # its first parameter, behind the update
]
Action = Literal["kill", "stop", "sleep", "hold", "term", "int", "raise", "nan", "inf"]
SPOILED: tuple[Point, ...] = ("input", "alpha", "beta", "loss", "gradient", "weights")
FORM = "BLLPIPE_FAULT is rank=R,step=T,point=POINT,action=ACTION[,attempt=N][,seconds=S]"


def inject(part: Worker, faults: Sequence[Fault]) -> Worker:
    """The part, with those of ``faults`` that are about its rank."""
    for fault in faults:
        if fault.rank == part.rank:
            _arm(part, fault)
    return part


def _arm(part: Worker, fault: Fault) -> None:
    if fault.point in STEPS:
        for actor in part.actors:
            _arm_step(actor, fault)
    elif fault.spoils:
        for actor in part.actors:
            _spoil(actor, fault)
    else:
        _arm_checkpoint(part, fault)


def _arm_step(actor: Actor, fault: Fault) -> None:
    phase = "evaluate" if fault.point == "evaluate" else "train"

    def strike() -> None:
        if actor.entry is not None and actor.entry.phase == phase and fault.is_due(actor.entry.step):
            trigger(fault)

    for name, method, before in STEPS[fault.point]:
        target = getattr(actor.loop, name, None)
        if hasattr(target, method):
            _wrap(target, method, strike, before)


def _arm_checkpoint(part: Worker, fault: Fault) -> None:
    """Between the files of a checkpoint, and behind the last one."""
    writer: Any = part.checkpoints

    def strike(step: int, *more: Any) -> None:
        if fault.is_due(step):
            trigger(fault)

    match fault.point:
        case "save" | "tensors" | "facts":
            _wrap_with(writer, "write", partial(_half_way, fault, writer))
        case "manifest":
            _wrap_with(writer, "_commit", strike)
        case "rename":
            _wrap_with(writer, "_put_in_place", strike)
        case "committed":
            _wrap_with(writer, "_tidy", strike)
        case "summary":
            _wrap(part, "report", partial(trigger, fault), BEFORE)


def _half_way(fault: Fault, writer: Any, step: int, rank: int, tensors: dict[str, Tensor], facts: object) -> None:
    """Leaves what a writer leaves that is interrupted here."""
    if not fault.is_due(step):
        return
    if fault.point != "save":
        folder: Path = writer._directory / str(DirectoryName(step, "partial", writer._attempt))
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / tensor_file(rank)
        unfinished = file.with_name(f".{file.name}")
        save_file(separate(tensors), unfinished)
        if fault.point == "tensors":
            os.truncate(unfinished, unfinished.stat().st_size // 2)
        else:
            unfinished.replace(file)
    trigger(fault)


def _spoil(actor: Actor, fault: Fault) -> None:
    """Puts NaN or Inf where the fault says; lanes have none of these."""
    loop: Any = actor.loop
    value = float(fault.action)
    block = getattr(loop, "block", None)
    if block is None:
        return

    def due() -> bool:
        return actor.entry is not None and actor.entry.phase == "train" and fault.is_due(actor.entry.step)

    def spoiled(tensor: Tensor) -> Tensor:
        return tensor + _poison(tensor, value) if due() else tensor

    def first() -> Tensor:
        parameter: Tensor = next(iter(block.learner.parameters.values()))
        return parameter

    def into(tensor: Tensor | None) -> None:
        if due() and tensor is not None:
            tensor.data.view(-1)[0] = value

    match fault.point:
        case "input":
            _map(loop.inputs, "recv", lambda message: replace(message, alpha_BCHW=spoiled(message.alpha_BCHW)))
        case "alpha":
            _map(block, "forward", spoiled)
        case "beta":
            _map(loop.targets, "recv", lambda message: replace(message, beta_BC=spoiled(message.beta_BC)))
        case "loss":
            _map(block, "objective", lambda terms: {name: spoiled(term) for name, term in terms.items()})
        case "gradient":
            _wrap(block, "step_optimizer", lambda: into(first().grad), BEFORE)
        case "weights":
            _wrap(block, "step_optimizer", lambda: into(first()), AFTER)


def _poison(tensor: Tensor, value: float) -> Tensor:
    poison = torch.zeros_like(tensor)
    poison.view(-1)[0] = value
    return poison


def trigger(fault: Fault) -> None:
    """Says what it does, and does what the fault says."""
    say(f"\nfault on purpose: {fault.action} rank {fault.rank} at {fault.point}", sys.stderr)
    if fault.action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault.action])
    elif fault.action == "sleep":
        threading.Event().wait(fault.seconds)
    elif fault.action == "hold":
        ctypes.PyDLL(None).usleep(int(fault.seconds * 1e6))  # PyDLL keeps the interpreter's lock
    else:
        raise RuntimeError(f"a fault on purpose: {fault}")


def _wrap(target: Any, name: str, strike: Callable[[], None], before: bool) -> None:
    """Strikes before or after every call of the method."""
    method: Call = getattr(target, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if before:
            strike()
        result = method(*arguments, **named)
        if not before:
            strike()
        return result

    setattr(target, name, call)


def _wrap_with(target: Any, name: str, strike: Call) -> None:
    """Strikes before every call of the method, with its arguments."""
    method: Call = getattr(target, name)

    def call(*arguments: Any) -> Any:
        strike(*arguments)
        return method(*arguments)

    setattr(target, name, call)


def _map(target: Any, name: str, change: Call) -> None:
    """Changes what the method returns."""
    method: Call = getattr(target, name)
    setattr(target, name, lambda *arguments, **named: change(method(*arguments, **named)))


@dataclass(frozen=True)
class Fault:
    """One of them."""

    rank: int
    point: Point
    action: Action
    step: int | None = None
    attempt: int = 0
    seconds: float = 3600.0

    def is_due(self, step: int) -> bool:
        return self.step is None or self.step == step

    @property
    def spoils(self) -> bool:
        return self.action in ("nan", "inf")


def parse_faults(text: str) -> list[Fault]:
    """The faults in ``text``; raises ConfigError for anything else."""
    return [_parse(part) for part in text.split(";") if part.strip()]


def _parse(text: str) -> Fault:
    words = dict(word.strip().partition("=")[::2] for word in text.split(","))
    unknown = words.keys() - {field.name for field in fields(Fault)}
    if unknown or not {"rank", "point", "action"} <= words.keys():
        raise ConfigError(f"the fault {text!r} is not understood; {FORM}")
    fault = Fault(
        rank=_number(words, "rank", 0),
        point=_one_of(words["point"], get_args(Point)),
        action=_one_of(words["action"], get_args(Action)),
        step=_number(words, "step", 0) if "step" in words else None,
        attempt=_number(words, "attempt", 0),
        seconds=float(_number(words, "seconds", 3600)),
    )
    if fault.spoils != (fault.point in SPOILED):
        raise ConfigError(f"the fault {text!r} cannot be: nan and inf go with the points {', '.join(SPOILED)} alone")
    return fault


def _number(words: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(words.get(name, default))
    except ValueError:
        raise ConfigError(f"the fault's {name} is {words[name]!r}; needed is a whole number: {FORM}") from None


def _one_of(word: str, known: tuple[str, ...]) -> Any:
    if word not in known:
        near = get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"the fault's {word!r} is not known; {hint}")
    return word
