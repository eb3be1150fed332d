"""Running several actors at once, a thread each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue

import torch

from bllpipe.engines.job import Job
from bllpipe.run.rank import Actor, RankPart


def follow(job: Job, part: RankPart, actor: Actor) -> None:
    """All rounds of one actor, in order."""
    for entry in job.steps(actor.name):
        part.carry_out(actor, entry)


def follow_all(
    job: Job, parts: Iterable[RankPart], on_error: Callable[[BaseException], None], patience: float = 0.0
) -> None:
    """Every actor of ``parts`` in a thread of its own. The first error is raised after ``on_error`` has seen it; the
    other threads have ``patience`` seconds to end, and are left to themselves then."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(part: RankPart, actor: Actor) -> None:
        torch.set_num_threads(job.config.cpu_threads)  # OpenMP counts threads per thread
        try:
            follow(job, part, actor)
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    actors = [(part, actor) for part in parts for actor in part.actors]
    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in actors]
    for thread in threads:
        thread.start()
    for _ in actors:
        error = ended.get()
        if error is not None:
            on_error(error)
            deadline = time.monotonic() + patience
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            raise error
