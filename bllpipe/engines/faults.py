"""Faults on purpose: a rank kills itself, stops, sleeps or spoils a number at a chosen point of a chosen step.

    BLLPIPE_FAULT="rank=2,step=7,point=update,action=kill" BLLPIPE_ALLOW_FAULTS=1 python -m bllpipe.launch

Several are separated by semicolons. ``attempt`` (default 0) is the restart in which it happens, ``seconds`` (default
3600) how long ``sleep`` and ``hold`` last; ``step`` may be left out for every step. Without the variable nothing is
wrapped and nothing is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from bllpipe.errors import ConfigError

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
