"""What the ranks of a run that goes on take from its checkpoint. What starts fresh, and what nobody takes, is named.

Tensors are found by the names of the whole network's units, whichever rank wrote them, so another cut or another engine
finds what it needs. A new end of a block has a head, a feedback lane and optimiser state that no checkpoint holds yet.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from bllpipe.engines.job import Job
from bllpipe.errors import CheckpointError
from bllpipe.learn.saved import dtype_and_shape, is_of_network
from bllpipe.run.notices import warn
from bllpipe.run.rank import Actor

MOST_NAMED = 6
ANOTHER_NETWORK = "it is of another network; give the keys of model and data their old values, or start a new run"


def take_up(job: Job, rank: int, actors: Sequence[Actor]) -> None:
    """Gives the actors of a rank what the checkpoint has of them, and says what it has not."""
    if job.checkpoint is None:
        return
    found, place = job.checkpoint.mapped(), job.checkpoint.path.name
    taken, fresh = set[str](), set[str]()
    for loop, recorder in ((actor.loop, actor.recorder) for actor in actors):
        taken |= recorder.load(found)
        check_whole(loop.weights(), found, place)
        fits = fitting({**loop.weights(), **loop.state()}, found, place)
        loop.load(fits, job.start)
        own = loop.state().keys()  # now, with what waits for a lane
        taken, fresh = taken | (own & fits.keys()), fresh | (own - fits.keys())
    if fresh:
        role = job.topology.role(rank)
        warn(f"rank {rank} ({role}): starts fresh, as {place} holds nothing that fits: {in_groups(fresh)}")
    job.store.set(f"taken/{rank}", json.dumps(sorted(taken)))


def say_untaken(job: Job) -> None:
    """Names what the checkpoint holds and no rank has taken. One rank does so, when all take up theirs."""
    if job.checkpoint is None:
        return
    ranks = range(job.topology.world_size)
    taken = {name for rank in ranks for name in json.loads(job.store.get(f"taken/{rank}"))}
    left = [name for name in job.checkpoint.names() if name not in taken]
    if left:
        warn(f"nobody takes from {job.checkpoint.path.name}: {in_groups(left)}")


def check_whole(weights: Iterable[str], found: Iterable[str], place: str) -> None:
    """Raises CheckpointError unless all of ``weights`` that are the network's own are among ``found``."""
    absent = sorted(filter(is_of_network, set(weights) - set(found)))
    if absent:
        raise CheckpointError(f"{place} holds nothing for {in_groups(absent)}, which this run needs: {ANOTHER_NETWORK}")


def fitting(own: Mapping[str, Tensor], found: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """``found`` without what has another shape or format than our own tensor of that name; for a part of the network
    itself that is a CheckpointError."""
    shared = own.keys() & found.keys()
    misfits = {name for name in shared if dtype_and_shape(own[name]) != dtype_and_shape(found[name])}
    for name in sorted(misfits):
        if name.startswith("model."):
            held, needed = dtype_and_shape(found[name]), dtype_and_shape(own[name])
            raise CheckpointError(f"{place} holds {name} as {held}, but this run needs {needed}: {ANOTHER_NETWORK}")
    return {name: value for name, value in found.items() if name not in misfits}


def in_groups(names: Iterable[str]) -> str:
    """``heads.layer1.1 (2), feedback.layer1.1 (2)``: names by the part of the network that they belong to."""
    groups = Counter(_group(name) for name in sorted(names))
    shown = [f"{group} ({number})" for group, number in list(groups.items())[:MOST_NAMED]]
    left = len(groups) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def _group(name: str) -> str:
    """The first three words, four with ``optimizer`` in front: as far as the name of a unit goes."""
    return ".".join(name.split(".")[: 4 if name.startswith("optimizer.") else 3])
