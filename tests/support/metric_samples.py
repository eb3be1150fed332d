"""A rank in the middle of its work, made by hand: books, ports and checkpoints are real, there is only no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bllpipe.learn.block import Outcome
from bllpipe.messages import Alpha, Message, Round
from bllpipe.tools.monitoring.metrics import Source
from bllpipe.training.metrics_logger import MetricsLogger
from bllpipe.training.run_directory import RunDirectory
from bllpipe.training.timing import Stopwatch, TimedReceiver, TimedSender
from bllpipe.training.worker import Actor, Worker

SIZE = 10
BYTES = 100  # of a message


class Wire:
    """The near end of an edge, with messages that nobody has taken yet."""

    def __init__(self, queued: int = 0) -> None:
        self.queued = queued

    def send(self, message: Message) -> None:
        """Takes it."""

    def recv(self) -> str:
        return "message"


class Loop:
    """Receives, sends, and has losses made up by hand."""

    def __init__(self, receiver: TimedReceiver[Any], sender: TimedSender[Any]) -> None:
        self.receiver, self.sender = receiver, sender
        self.norm = 3.0

    def run(self, entry: Round) -> Outcome | None:
        if not entry.has_messages:
            return None
        self.receiver.recv()
        self.sender.send(Alpha(entry, torch.empty(0)))
        terms = {"kl": torch.tensor(0.25), "pred": torch.tensor(1.5)}
        return Outcome(terms, torch.tensor(SIZE // 2), 0.125, self._watch)

    def _watch(self) -> dict[str, torch.Tensor]:
        return {"alignment": torch.tensor(0.5), "gradient_norm": torch.tensor(self.norm)}


def make_actor(folder: Path, log_every: int = 2, name: str = "block 1") -> Actor:
    """An actor that has done nothing yet."""
    receiver = TimedReceiver[Any](Wire(queued=2), "alpha 0->1")
    sender = TimedSender[Any](Wire(queued=1), "alpha 1->2", lambda size, phase: BYTES)
    watch = Stopwatch([receiver, sender], steady_from=0)
    store: Any = dist.HashStore()
    recorder = MetricsLogger({"rank": 1, "role": name, "actor": name}, RunDirectory(folder), store, watch, log_every)
    loop: Any = Loop(receiver, sender)
    return Actor(loop, watch, recorder)


def make_source(folder: Path, rank: int = 1, start: int = 0, **changes: Any) -> Source:
    """A rank that has done nothing yet of the run in ``folder``."""
    folder.mkdir(exist_ok=True)
    writer: Any = None
    worker = Worker(rank, f"block {rank}", [make_actor(folder)], writer, {})
    settings = {"method": "bll", "engine": "ranks", "model": "resnet18", "data": "digits"}
    versions = {"version": "0.1.0", "torch": "2.14.1", "python": "3.11.7"}
    source = Source(worker, folder.name, "0-abc", 0, start, 100, 20, settings, versions)
    return replace(source, **changes)


def work(source: Source, *entries: Round) -> None:
    """Has the only actor carry out ``entries``."""
    for entry in entries:
        source.worker.actors[0].run_round(entry)


def train(step: int) -> Round:
    return Round("train", step, epoch=step // 4, size=SIZE)
