"""Running a rank through its rounds, with a thread for each of several actors, and ending well: the last checkpoint is
whole, the summary is written, and one table is printed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from bllpipe.config import Config
from bllpipe.engines import Output
from bllpipe.engines.build import report_unused
from bllpipe.engines.job import Job
from bllpipe.training.run_directory import gather_reports, outcome, post_report, summarise, table
from bllpipe.training.worker import Actor, Worker
from bllpipe.utils.console import say, warn
from bllpipe.utils.files import read_record
from bllpipe.utils.process import freeze_garbage, keep_freed_memory
from bllpipe.utils.tensors import derived_seed
from bllpipe.utils.torch_state import seed_all


def displays(job: Job) -> ExitStack:
    """The displays of all callbacks, for the one process that prints."""
    with ExitStack() as stack:
        for callback in job.callbacks:
            stack.enter_context(callback.display(job))
        return stack.pop_all()


def prepare_process(config: Config, rank: int) -> None:
    """What every process that computes does first."""
    torch.set_num_threads(config.cpu_threads)
    seed_all(derived_seed(config.seed, "process", rank))
    keep_freed_memory()


def train(job: Job, part: Worker, behind_rounds: Callable[[], None] = lambda: None) -> None:
    """The rounds of this rank; the first rank also prints. ``behind_rounds`` is done before any wait for the others."""
    freeze_garbage()
    started = time.perf_counter()
    if part.rank == 0:
        report_unused(job)
        with displays(job):
            run_rounds(job, part)
    else:
        run_rounds(job, part)
    behind_rounds()
    post_worker_report(job, part)
    if part.rank == 0:
        finish(job, started)


def run_rounds(job: Job, part: Worker) -> None:
    """A single actor runs in the main thread, several (the lanes) in a thread each."""
    if len(part.actors) == 1:
        run_actor(job, part, part.actors[0])
    else:
        run_actors(job, [part], on_error=lambda error: None)


def post_worker_report(job: Job, part: Worker) -> None:
    """Posts a rank's report, once the last checkpoint is committed."""
    if part.last_saved is not None:
        part.checkpoints.wait_committed(part.last_saved)
    post_report(job.store, part.rank, part.report())
    for callback in job.callbacks:
        callback.on_end(part)


def finish(job: Job, started: float) -> None:
    """Gathers all reports, prints the table, writes summary.json and status.json."""
    reports = gather_reports(job.store, job.topology.world_size)
    seconds, stopped = time.perf_counter() - started, job.ending.stopped
    done = stopped.step if stopped else job.plan.last_step
    summary = summarise(job.config, job.topology.tested_ranks, reports, replace(job.plan, last_step=done), seconds)
    try:
        _write(job, summary, done)  # before anything is said: a terminal may block
    finally:
        say(_ending(job.output, summary, job.directory.path))  # even if it cannot be written


def _write(job: Job, summary: Mapping[str, Any], done: int) -> None:
    """The files of the end; then scripts in the other ranks may read them."""
    stopped = job.ending.stopped
    job.directory.write_summary(summary)
    if done == job.plan.total_steps and (stopped is None or stopped.tested):
        job.directory.write_status("completed", step=done)
    else:
        reason = job.ending.reason if stopped else f"stop_at={job.config.stop_at}"
        job.directory.write_status("preempted", step=done, reason=reason)
    job.store.set("concluded", "yes")


def _ending(output: Output, summary: Mapping[str, Any], directory: Path) -> str:
    """The summary as ``output`` wants it."""
    if output == "json":
        return json.dumps({"summary": summary, "directory": str(directory)})
    return outcome(summary) if output == "quiet" else f"{table(summary)}\nrun directory {directory}"


def is_complete(job: Job) -> bool:
    """Whether the run that is to go on has ended already; its files are left as they are."""
    return job.start >= job.plan.last_step and job.tested


def report_complete(job: Job) -> None:
    """Says how a run that has ended can be made longer. Programs get the end that they wait for: its summary."""
    words = (
        f"{job.directory.path} is complete: step {job.start} of {job.plan.last_step}; "
        f"for another run leave out --resume; {_how_to_go_on(job)}"
    )
    if job.output == "json":
        warn(words)
        summary, _ = read_record(job.directory.path / "summary.json")
        say(_ending("json", summary, job.directory.path))
    else:
        say(words)


def _how_to_go_on(job: Job) -> str:
    if job.plan.last_step < job.plan.total_steps:
        return "to train on, raise stop_at or leave it out"
    key = "epochs" if job.config.steps is None else "steps"
    return f"to train longer, raise {key} and add --accept {key}"


def run_actor(job: Job, part: Worker, actor: Actor) -> None:
    """All rounds of one actor, in order."""
    for entry in job.steps(actor.name):
        part.run_round(actor, entry)


def run_actors(
    job: Job, parts: Iterable[Worker], on_error: Callable[[BaseException], None], patience: float = 0.0
) -> None:
    """Every actor of ``parts`` in a thread of its own. The first error is raised after ``on_error`` has seen it; the
    other threads have ``patience`` seconds to end, and are left to themselves then."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(part: Worker, actor: Actor) -> None:
        torch.set_num_threads(job.config.cpu_threads)  # OpenMP counts threads per thread
        try:
            run_actor(job, part, actor)
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
