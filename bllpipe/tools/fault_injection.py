"""Faults on purpose: a rank kills itself, stops, sleeps or corrupts a number at a chosen point of a chosen step.

    BLLPIPE_FAULT="rank=2,step=7,point=update,action=kill" BLLPIPE_ALLOW_FAULTS=1 python -m bllpipe.launch

Several are separated by semicolons. ``attempt`` (default 0) is the restart in which it happens, ``seconds`` (default
3600) how long ``sleep`` and ``hold`` last; ``step`` may be left out for every step. Only the methods that a fault asks
for are wrapped, so that neither the loops nor the mathematics know of it; without the variable none is wrapped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from bllpipe.checkpoint import writer as checkpoint
from bllpipe.engines import Callback
from bllpipe.engines.job import Job, JobStore
from bllpipe.errors import ConfigError
from bllpipe.training.instrument import wrap_method
from bllpipe.training.worker import Actor, Worker
from bllpipe.utils.console import print_line

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "int": signal.SIGINT}
# By point: part of the loop, method, and whether the fault comes before it. A loop has some of them.
BEFORE, AFTER = True, False
STEPS: dict[str, list[tuple[str, str, bool]]] = {
    "waiting": [("inputs", "recv", BEFORE), ("stats", "recv", BEFORE), ("images", "recv", BEFORE)],
    "forward": [("block", "forward", AFTER), ("feedback", "table", BEFORE)],
    "sent": [("alphas", "send", AFTER), ("targets", "send", AFTER)],
    "sum": [("replicas", "total", BEFORE)],
    "update": [("block", "step_optimizer", BEFORE), ("feedback", "absorb", BEFORE), ("trainer", "step", BEFORE)],
    "updated": [("block", "outcome", AFTER), ("feedback", "absorb", AFTER), ("trainer", "step", AFTER)],
    "evaluate": [("block", "infer", BEFORE), ("trainer", "outcome", BEFORE)],
}
Point = Literal[
    "waiting",  # before a rank waits for its input
    "forward",  # alpha is computed, and not sent
    "sent",  # alpha, or the target of a feedback loop, is sent
    "sum",  # before the gradients are added up over the replicas of a block
    "update",  # the gradients are computed, the weights are not updated
    "updated",  # the step is done
    "evaluate",  # in a test batch
    "save",  # a checkpoint is due, nothing of it is written
    "tensors",  # half of the tensor file is written
    "facts",  # the tensor file is written, the metadata are not
    "manifest",  # all files are written, the manifest is not (in the last rank)
    "rename",  # the manifest is written, the directory is not renamed (in the last rank)
    "committed",  # it is renamed, older checkpoints are not yet removed (in the last rank)
    "summary",  # the last checkpoint is written, the summary is not
    "input",  # nan and inf only: the input of the block
    "alpha",  # its output
    "beta",  # its target
    "loss",  # the terms of its loss
    "gradient",  # the gradient of its first parameter
    "weights",  # its first parameter, after the update
]
Action = Literal["kill", "stop", "sleep", "hold", "term", "int", "raise", "nan", "inf"]
CORRUPTED: tuple[Point, ...] = ("input", "alpha", "beta", "loss", "gradient", "weights")
FORM = "BLLPIPE_FAULT is rank=R,step=T,point=POINT,action=ACTION[,attempt=N][,seconds=S]"


class FaultInjection(Callback):
    """Injects ``faults`` into the workers of their ranks."""

    wraps_steps = True

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = faults

    def on_start(self, job: Job, store: JobStore, worker: Worker) -> None:
        for fault in self._faults:
            if (fault.rank, fault.attempt) == (worker.rank, job.restarts):
                inject(worker, fault)


def inject(worker: Worker, fault: Fault) -> None:
    """Wraps the methods of the worker, or registers at the points of its checkpoints, as the fault asks."""
    if fault.point in STEPS:
        for actor in worker.actors:
            _inject_into_step(actor, fault)
    elif fault.corrupts:
        for actor in worker.actors:
            _corrupt(actor, fault)
    elif fault.point == "summary":
        wrap_method(worker, "report", before=partial(trigger, fault))
    else:
        worker.checkpoints.on(cast(checkpoint.Point, fault.point), partial(_trigger_in_checkpoint, fault))


def _inject_into_step(actor: Actor, fault: Fault) -> None:
    def before(*arguments: Any, **named: Any) -> None:
        if fault.is_due_in(actor):
            trigger(fault)

    def after(result: Any, *arguments: Any, **named: Any) -> Any:
        before()
        return result

    for name, method, comes_before in STEPS[fault.point]:
        target = getattr(actor.loop, name, None)
        if hasattr(target, method):
            wrap_method(target, method, before=before if comes_before else None, after=None if comes_before else after)


def _trigger_in_checkpoint(fault: Fault, step: int, path: Path) -> None:
    if fault.is_due(step) and fault.point == "tensors":
        whole = path.read_bytes()
        os.truncate(path, len(whole) // 2)
        trigger(fault)
        path.write_bytes(whole)  # a rank that was only delayed writes the rest
    elif fault.is_due(step):
        trigger(fault)


def _corrupt(actor: Actor, fault: Fault) -> None:
    """Puts NaN or Inf where the fault says; feedback loops have none of these points."""
    loop: Any = actor.loop
    value = float(fault.action)
    block = getattr(loop, "block", None)
    if block is None:
        return

    def corrupted(tensor: Tensor, *arguments: Any) -> Tensor:
        if not fault.is_due_in(actor):
            return tensor
        poison = torch.zeros_like(tensor)
        poison.view(-1)[0] = value
        return tensor + poison

    def corrupt_in_place(tensor: Tensor | None) -> None:
        if fault.is_due_in(actor) and tensor is not None:
            tensor.data.view(-1)[0] = value

    def first_parameter() -> Tensor:
        parameter: Tensor = next(iter(block.learner.parameters.values()))
        return parameter

    def corrupted_terms(result: tuple[dict[str, Tensor], Tensor, Tensor], *arguments: Any) -> tuple[Any, ...]:
        terms, *others = result
        return {name: corrupted(term) for name, term in terms.items()}, *others

    def corrupt_weights(lr: float, *arguments: Any) -> float:
        corrupt_in_place(first_parameter())
        return lr

    match fault.point:
        case "input":
            wrap_method(loop.inputs, "recv", after=lambda got: replace(got, alpha_BCHW=corrupted(got.alpha_BCHW)))
        case "alpha":
            wrap_method(block, "forward", after=corrupted)
        case "beta":
            wrap_method(loop.targets, "recv", after=lambda got: replace(got, beta_BC=corrupted(got.beta_BC)))
        case "loss":
            wrap_method(block.local, "forward", after=corrupted_terms)
        case "gradient":
            wrap_method(block, "step_optimizer", before=lambda step: corrupt_in_place(first_parameter().grad))
        case "weights":
            wrap_method(block, "step_optimizer", after=corrupt_weights)


def trigger(fault: Fault) -> None:
    """Prints the fault, and does what it says."""
    print_line(f"\nfault on purpose: {fault.action} rank {fault.rank} at {fault.point}", sys.stderr)
    if fault.action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault.action])
    elif fault.action == "sleep":
        threading.Event().wait(fault.seconds)
    elif fault.action == "hold":
        ctypes.PyDLL(None).usleep(int(fault.seconds * 1e6))  # PyDLL keeps the interpreter's lock
    else:
        raise RuntimeError(f"a fault on purpose: {fault}")


@dataclass(frozen=True)
class Fault:
    """One fault; ``step`` None means every step."""

    rank: int
    point: Point
    action: Action
    step: int | None = None
    attempt: int = 0
    seconds: float = 3600.0

    def is_due(self, step: int) -> bool:
        return self.step is None or self.step == step

    def is_due_in(self, actor: Actor) -> bool:
        """Whether it is due in the round that ``actor`` carries out: of training, or of a test for ``evaluate``."""
        phase = "evaluate" if self.point == "evaluate" else "train"
        return actor.entry is not None and actor.entry.phase == phase and self.is_due(actor.entry.step)

    @property
    def corrupts(self) -> bool:
        return self.action in ("nan", "inf")


def parse_faults(text: str) -> list[Fault]:
    """The faults in ``text``; raises ConfigError for anything else."""
    return [_parse(part) for part in text.split(";") if part.strip()]


def _parse(text: str) -> Fault:
    values = dict(item.strip().partition("=")[::2] for item in text.split(","))
    unknown = values.keys() - {field.name for field in fields(Fault)}
    if unknown or not {"rank", "point", "action"} <= values.keys():
        raise ConfigError(f"the fault {text!r} is not understood; {FORM}")
    numbers = {name: _number(name, value) for name, value in values.items() if name not in ("point", "action")}
    point, action = _one_of(values["point"], get_args(Point)), _one_of(values["action"], get_args(Action))
    fault = Fault(point=point, action=action, **numbers)
    if fault.corrupts != (fault.point in CORRUPTED):
        raise ConfigError(
            f"the fault {text!r} is not possible: nan and inf go with the points {', '.join(CORRUPTED)} alone"
        )
    return fault


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"the fault's {name} is {value!r}; expected a whole number; {FORM}") from None


def _one_of(value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        near = get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"the fault's {value!r} is not known; {hint}")
    return value
