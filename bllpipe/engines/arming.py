"""Where faults on purpose take effect: methods of the instances at work are wrapped, and only those that a fault asks
for, so that neither the loops nor the mathematics know of it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bllpipe.engines.faults import Fault
from bllpipe.run.checkpoint.names import DirectoryName, tensor_file
from bllpipe.run.checkpoint.shard import separate
from bllpipe.run.rank import Actor, RankPart

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


def arm(part: RankPart, faults: Sequence[Fault]) -> RankPart:
    """The part, with those of ``faults`` that are about its rank."""
    for fault in faults:
        if fault.rank == part.rank:
            _arm(part, fault)
    return part


def _arm(part: RankPart, fault: Fault) -> None:
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
            act(fault)

    for name, method, before in STEPS[fault.point]:
        target = getattr(actor.loop, name, None)
        if hasattr(target, method):
            _wrap(target, method, strike, before)


def _arm_checkpoint(part: RankPart, fault: Fault) -> None:
    """Between the files of a checkpoint, and behind the last one."""
    writer: Any = part.checkpoints

    def strike(step: int, *more: Any) -> None:
        if fault.is_due(step):
            act(fault)

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
            _wrap(part, "report", partial(act, fault), BEFORE)


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
    act(fault)


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


def act(fault: Fault) -> None:
    """Says what it does, and does what the fault says."""
    print(f"\nfault on purpose: {fault.action} rank {fault.rank} at {fault.point}", file=sys.stderr, flush=True)
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
