"""Engine ``streams``: all blocks in one process on one device, a stream each and one a lane, in a wavefront.

In tick w block k does round w - k. So the blocks work side by side on rounds that need nothing of each other, and the
device decides how they share it:

  tick      0      1      2      3      4
  block 0   t0     t1     t2     t3     t4      block 0 sends alpha t1 while block 1 still reads t0: two slots an edge
  block 1          t0     t1     t2     t3
  block 2                 t0     t1     t2      a column is a block and its lane
  block 3                        t0     t1

What a round needs of other streams, and waits for by an event (at a lag of 1):

  block k - 1                 forward t --alpha--+
                                                 v
  block k     ... update t-1 | forward t ------- stats t | loss, backward, update t | forward t+1 ...
                                  ^ before the loss  |
                    target t -----+                  +--stats--> lane k: absorb t, target t+1, beside the backward of t

The lag is fixed, so these are all dependencies that there are, beside one: a slot is filled again only when it has been
read. The host queues column by column, the rearmost first, and so has queued every reading of a slot before it queues
the next filling. It waits for the device nowhere but where a line of metrics or a checkpoint is written.

With ``gpu.capture`` most ticks are one launch: engines/streams_graph.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import TypeVar

import torch

from bllpipe.config import Config
from bllpipe.distributed.cuda_streams import OpenStreams, RingWires, Streams, streams_on
from bllpipe.engines import Options
from bllpipe.engines.in_process import run_together
from bllpipe.engines.job import Job
from bllpipe.engines.ports import ring_wires
from bllpipe.engines.streams_graph import Columns, StreamActor, Tick, WavefrontGraph
from bllpipe.learn.cuda_graphs import Graphs, graphs_of_ticks
from bllpipe.training.worker import Worker

Entry = TypeVar("Entry")
OpenGraphs = Callable[[Config, torch.device], Graphs | None]


def run(
    config: Config, options: Options, open_streams: OpenStreams = streams_on, open_graphs: OpenGraphs = graphs_of_ticks
) -> int:
    """Trains ``config`` in this thread, on the streams of its device."""
    return run_together(config, options, partial(in_wavefront, open_graphs), partial(ring_wires, open_streams))


def ticks(columns: Sequence[Iterator[Entry]]) -> Iterator[list[tuple[int, Entry]]]:
    """What there is to do in every tick of a wavefront, in this order: entries, each with the number of its column."""
    for tick in count():
        numbers = reversed(range(min(tick + 1, len(columns))))
        found = [(number, entry) for number in numbers for entry in islice(columns[number], 1)]
        if not found:
            return
        yield found


def in_wavefront(open_graphs: OpenGraphs, job: Job, parts: list[Worker], wires: RingWires) -> None:
    """Queues every round of every column, tick by tick; ticks that are one graph in one launch."""
    columns = places(job, parts, wires.streams)
    graphs = open_graphs(job.config, wires.device)
    whole = None if graphs is None else WavefrontGraph(job, columns, wires, graphs)
    for tick in ticks([job.steps(block.actor.name) for block in columns.blocks]):
        if whole is None or not whole.run_round(tick):
            one_by_one(columns, tick)
    wires.streams.synchronize()


def one_by_one(columns: Columns, tick: Tick) -> None:
    """Queues the rounds of a tick. A lane goes before its block, which needs its target."""
    blocks, lanes = columns
    for number, entry in tick:
        if entry.phase == "save":  # the last lane writes what all lanes have
            lanes[number].wait_for(lanes[:number])
        lanes[number].run_round(entry)
        blocks[number].run_round(entry)


def places(job: Job, parts: list[Worker], streams: Streams) -> Columns:
    """All blocks and all lanes, on streams behind everything that was queued to build them."""
    *block_parts, feedback = parts
    places = [(part, part.actors[0]) for part in block_parts] + [(feedback, lane) for lane in feedback.actors]
    found = [StreamActor(part, actor, streams.open(actor.name)) for part, actor in places]
    built = streams.current().record()
    for place in found:
        place.stream.wait(built)
    return Columns(found[: len(block_parts)], found[len(block_parts) :])
