"""Running several actors at once, a thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue

import torch

from bllpipe.engines.job import Job
from bllpipe.run.rank import Actor, RankPart


def follow(job: Job, part: RankPart, actor: Actor) -> None:
    """All rounds of one actor, in order."""
    for entry in job.steps(actor.name):
        part.carry_out(actor, entry)


def follow_all(job: Job, parts: Iterable[RankPart], on_error: Callable[[BaseException], None]) -> None:
    """Every actor of ``parts`` in a thread of its own. The first error is raised as soon as it happens, after
    ``on_error`` has seen it; the other threads are left to themselves."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(part: RankPart, actor: Actor) -> None:
        torch.set_num_threads(job.config.cpu_threads)  # OpenMP counts threads per thread
        try:
            follow(job, part, actor)
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    actors = [(part, actor) for part in parts for actor in part.actors]
    for pair in actors:
        threading.Thread(target=work, args=pair, daemon=True).start()
    for _ in actors:
        error = ended.get()
        if error is not None:
            on_error(error)
            raise error
