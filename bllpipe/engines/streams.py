"""Engine ``streams``: all blocks in one process on one device, a stream each and one a lane, in a wavefront.

In step w of the wavefront block k runs round w - k. So the blocks run concurrently, in rounds that do not depend on
each other, and the device schedules their kernels:

  step      0      1      2      3      4
  block 0   t0     t1     t2     t3     t4      block 0 sends alpha t1 while block 1 still reads t0: two slots an edge
  block 1          t0     t1     t2     t3
  block 2                 t0     t1     t2      a column is a block and its lane
  block 3                        t0     t1

The dependencies of a round on other streams, each an event (at a lag of 1):

  block k - 1                 forward t --alpha--+
                                                 v
  block k     ... update t-1 | forward t ------- stats t | loss, backward, update t | forward t+1 ...
                                  ^ before the loss  |
                    target t -----+                  +--stats--> lane k: absorb t, target t+1, during the backward of t

The lag is fixed, so there is only one more dependency: a slot is written again only after it was read. The host queues
column by column, the last one first, so it queues every read of a slot before the next write. It waits for the device
only where a line of metrics or a checkpoint is written.

With ``gpu.capture`` most of these steps are one launch: engines/streams_graph.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import TypeVar

import torch

from bllpipe.config import Config
from bllpipe.distributed.cuda_streams import OpenStreams, RingLinks, Streams, streams_on
from bllpipe.engines import Options
from bllpipe.engines.in_process import run_in_process
from bllpipe.engines.job import Job
from bllpipe.engines.ports import ring_links
from bllpipe.engines.streams_graph import Columns, StreamActor, WavefrontGraph, WavefrontStep
from bllpipe.learn.cuda_graphs import Graphs, wavefront_graphs
from bllpipe.training.worker import Worker

Entry = TypeVar("Entry")
OpenGraphs = Callable[[Config, torch.device], Graphs | None]


def run(
    config: Config, options: Options, open_streams: OpenStreams = streams_on, open_graphs: OpenGraphs = wavefront_graphs
) -> int:
    """Trains ``config`` in this thread, on the streams of its device."""
    return run_in_process(config, options, partial(in_wavefront, open_graphs), partial(ring_links, open_streams))


def wavefront(columns: Sequence[Iterator[Entry]]) -> Iterator[list[tuple[int, Entry]]]:
    """The entries of every step of a wavefront, each with the number of its column, in the order to queue them."""
    for step in count():
        numbers = reversed(range(min(step + 1, len(columns))))
        found = [(number, entry) for number in numbers for entry in islice(columns[number], 1)]
        if not found:
            return
        yield found


def in_wavefront(open_graphs: OpenGraphs, job: Job, workers: list[Worker], links: RingLinks) -> None:
    """Queues every round of every column, step by step; a step that is one graph takes one launch."""
    columns = make_columns(job, workers, links.streams)
    graphs = open_graphs(job.config, links.device)
    graph = None if graphs is None else WavefrontGraph(job, columns, links, graphs)
    for wave in wavefront([job.steps(block.actor.name) for block in columns.blocks]):
        if graph is None or not graph.run_round(wave):
            queue_rounds(columns, wave)
    links.streams.synchronize()


def queue_rounds(columns: Columns, wave: WavefrontStep) -> None:
    """Queues the rounds of a wavefront step. A lane goes before its block, which needs its target."""
    blocks, lanes = columns
    for number, entry in wave:
        if entry.phase == "save":  # the last lane writes the state of all lanes
            lanes[number].wait_for(lanes[:number])
        lanes[number].run_round(entry)
        blocks[number].run_round(entry)


def make_columns(job: Job, workers: list[Worker], streams: Streams) -> Columns:
    """All blocks and all lanes, on streams that wait for everything that was queued to build them."""
    *block_workers, feedback = workers
    actors = [(worker, worker.actors[0]) for worker in block_workers] + [(feedback, lane) for lane in feedback.actors]
    found = [StreamActor(worker, actor, streams.open(actor.name)) for worker, actor in actors]
    built = streams.current().record()
    for each in found:
        each.stream.wait(built)
    return Columns(found[: len(block_workers)], found[len(block_workers) :])
