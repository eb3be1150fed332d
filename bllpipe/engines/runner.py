"""Runs the rounds of a rank, with a thread for each of several actors, and ends a run in order: the last checkpoint is
valid, the summary is written, and one table is printed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from bllpipe.config import Config
from bllpipe.engines import Output
from bllpipe.engines.build import report_unused
from bllpipe.engines.job import Job, JobStore
from bllpipe.training.run_directory import outcome, summarise, table
from bllpipe.training.worker import Actor, Worker
from bllpipe.utils.console import print_line, warn
from bllpipe.utils.files import read_record
from bllpipe.utils.process import freeze_garbage, keep_freed_memory, return_freed_memory
from bllpipe.utils.tensors import derived_seed, random_states_restored, seed_all


def displays(job: Job, store: JobStore) -> ExitStack:
    """The displays of all callbacks, for the one process that prints."""
    with ExitStack() as stack:
        with random_states_restored():  # rich draws from Python's random numbers when it is imported
            for callback in job.callbacks:
                stack.enter_context(callback.display(job, store))
        return stack.pop_all()


def prepare_process(config: Config, rank: int) -> None:
    """Sets threads, seeds and the allocator of a process, before it computes."""
    torch.set_num_threads(config.cpu_threads)
    seed_all(derived_seed(config.seed, "process", rank))
    if config.sharding == "none" and config.model.recompute == "none":
        keep_freed_memory()
    else:
        return_freed_memory()


def train(job: Job, store: JobStore, worker: Worker, after_rounds: Callable[[], None] = lambda: None) -> None:
    """Runs this rank; the first rank also prints. ``after_rounds`` is called before any wait for the other ranks."""
    freeze_garbage()
    started = time.perf_counter()
    if worker.rank == 0:
        report_unused(job, store)
    with displays(job, store) if worker.rank == 0 else nullcontext():
        if len(worker.actors) == 1:
            run_actor(job, worker, worker.actors[0])
        else:  # the lanes of the feedback
            run_actors(job, [worker], on_error=lambda error: None)
    after_rounds()
    post_worker_report(job, store, worker)
    if worker.rank == 0:
        finish(job, store, started)


def post_worker_report(job: Job, store: JobStore, worker: Worker) -> None:
    """Posts a rank's report, once the last checkpoint is committed."""
    if worker.last_saved is not None:
        worker.checkpoints.wait_committed(worker.last_saved)
    store.post("report", worker.rank, worker.report())
    for callback in job.callbacks:
        callback.on_end(worker)


def finish(job: Job, store: JobStore, started: float) -> None:
    """Gathers all reports, prints the table, writes summary.json and status.json; then scripts in the other ranks may
    read them."""
    reports = store.gather("report", job.topology.world_size)
    seconds, stopped = time.perf_counter() - started, job.stop.stopped
    done = stopped.step if stopped else job.schedule.last_step
    schedule = replace(job.schedule, last_step=done)
    summary = summarise(job.config, job.topology, reports, schedule, seconds)
    try:  # before anything is printed: a terminal may block
        job.directory.write_summary(summary)
        if done == schedule.total_steps and (stopped is None or stopped.tested):
            job.directory.write_status("completed", step=done)
        else:
            reason = job.stop.reason if stopped else f"stop_at={job.config.stop_at}"
            job.directory.write_status("preempted", step=done, reason=reason)
        store.set("concluded", "yes")
    finally:
        print_line(_summary_text(job.output, summary, job.directory.path))  # even if it cannot be written
    for callback in job.callbacks:
        callback.on_summary(job.directory.path)


def _summary_text(output: Output, summary: Mapping[str, Any], directory: Path) -> str:
    """The summary in the form of ``output``."""
    if output == "json":
        return json.dumps({"summary": summary, "directory": str(directory)})
    return outcome(summary) if output == "quiet" else f"{table(summary)}\nrun directory {directory}"


def is_complete(job: Job) -> bool:
    """Whether the run that is resumed has ended already; its files are not changed."""
    return job.start >= job.schedule.last_step and job.tested


def report_complete(job: Job) -> None:
    """Prints how a run that has ended can be made longer. With --output json the last line is its summary."""
    key = "epochs" if job.config.steps is None else "steps"
    longer = f"to train longer, raise {key} and add --accept {key}"
    if job.schedule.last_step < job.schedule.total_steps:
        longer = "to train on, raise stop_at or leave it out"
    text = (
        f"{job.directory.path} is complete: step {job.start} of {job.schedule.last_step}; "
        f"for another run leave out --resume; {longer}"
    )
    if job.output == "json":
        warn(text)
        summary, _ = read_record(job.directory.path / "summary.json")
        print_line(_summary_text("json", summary, job.directory.path))
    else:
        print_line(text)


def run_actor(job: Job, worker: Worker, actor: Actor) -> None:
    """All rounds of one actor, in order."""
    for entry in job.steps(actor.name):
        worker.run_round(actor, entry)


def run_actors(
    job: Job, workers: Iterable[Worker], on_error: Callable[[BaseException], None], patience: float = 0.0
) -> None:
    """Runs every actor of ``workers`` in a thread of its own. Raises the first error after a call of ``on_error`` and
    at most ``patience`` seconds in which the other threads may end; they are daemons."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(worker: Worker, actor: Actor) -> None:
        torch.set_num_threads(job.config.cpu_threads)  # OpenMP counts threads per thread
        try:
            run_actor(job, worker, actor)
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    actors = [(worker, actor) for worker in workers for actor in worker.actors]
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
