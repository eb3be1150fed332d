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
from bllpipe.run.notices import warn
from bllpipe.run.rank import Actor

MOST_NAMED = 6


def take_up(job: Job, rank: int, actors: Sequence[Actor]) -> None:
    """Gives the actors of a rank what the checkpoint has of them, and says what it has not."""
    if job.checkpoint is None:
        return
    found, place = job.checkpoint.mapped(), job.checkpoint.path.name
    taken, fresh = set[str](), set[str]()
    for loop, recorder in ((actor.loop, actor.recorder) for actor in actors):
        taken |= recorder.load(found)
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


def fitting(own: Mapping[str, Tensor], found: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """``found`` without what has another shape or format than our own tensor of that name; for a part of the network
    itself that is a CheckpointError."""
    misfits = {name for name in own.keys() & found.keys() if _form(own[name]) != _form(found[name])}
    for name in sorted(misfits):
        if name.startswith("model."):
            raise CheckpointError(
                f"{place} holds {name} as {_form(found[name])}, but this run needs {_form(own[name])}: it is of "
                f"another network; give the keys of model and data their old values, or start a new run"
            )
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


def _form(tensor: Tensor) -> str:
    """``float32[4, 3]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
