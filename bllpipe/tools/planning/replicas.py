"""The cut and the numbers of replicas for a number of ranks, so that the slowest block is fastest.

A batch is S equal shards. The largest share of a block's R replicas is ceil(S / R) of them, so a step takes it

    t(R) = (forward + backward + head) ceil(S / R) / S + update + sum,     sum: 2 (R - 1) messages of 1 / R gradients

and the pipeline takes the largest t of all blocks. The best cut and replicas follow by dynamic programming over units
and ranks, as in PipeDream (Narayanan et al. 2019): ``best[end, ranks]`` is the smallest largest t of the units before
``end`` on so many ranks. The feedback is left out, as in all predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from bllpipe.models.partition import local_seconds, memory_bytes
from bllpipe.tools.planning.predict import BYTES_OF_A_GRADIENT, Prediction, PredictionInputs
from bllpipe.tools.planning.profile import Profile, rate_text
from bllpipe.topology import feedback_ranks_among, num_feedback_ranks
from bllpipe.utils.console import table

ReplicatedCost = Callable[[int, int, int], float]  # of units first .. end - 1 in so many replicas; inf: impossible


@dataclass(frozen=True)
class ReplicaPlan:
    """A prediction of block-local learning with so many ``replicas`` of every block, and ``shards`` of a batch."""

    prediction: Prediction
    replicas: tuple[int, ...]
    shards: int

    @property
    def num_ranks(self) -> int:
        """With those of the feedback."""
        return sum(self.replicas) + num_feedback_ranks(sum(self.replicas), len(self.replicas))


def predict_replicas(inputs: PredictionInputs, cut: Sequence[int], replicas: Sequence[int], shards: int) -> ReplicaPlan:
    """Block-local learning in steady state, with these numbers of replicas."""
    cost = replicated_cost(inputs, shards)
    seconds = [cost(first, end, number) for (first, end), number in zip(inputs.blocks(cut), replicas, strict=True)]
    slowest = max(seconds)
    prediction = inputs.prediction("bll", cut, slowest, [each / slowest for each in seconds], microbatches=None)
    return ReplicaPlan(prediction, tuple(replicas), shards)


def best_replicas(
    inputs: PredictionInputs,
    num_ranks: int,
    shards: Sequence[int],
    num_blocks: int | None = None,
    memory_limit: float = inf,
) -> ReplicaPlan | None:
    """The fastest cut and replicas on at most ``num_ranks`` ranks, those of the feedback included; None if there is
    none. ``num_blocks`` is any number if left out. Of several numbers of ``shards`` the fastest one counts, and the
    smaller of two that are equally fast."""
    plans, of_blocks = [], num_ranks - feedback_ranks_among(num_ranks, num_blocks or len(inputs.units))
    for number in sorted(shards):
        cost = replicated_cost(inputs, number, memory_limit)
        found = best_layout(len(inputs.units), of_blocks, number, cost, num_blocks)
        if found is not None:
            plans.append(predict_replicas(inputs, *found, number))
    return min(plans, key=lambda plan: plan.prediction.step_seconds, default=None)


def replicated_cost(inputs: PredictionInputs, shards: int, memory_limit: float = inf) -> ReplicatedCost:
    """The seconds of a step on a replica with the largest share of ``shards``, with its messages and the sum of
    gradients. Infinite for blocks without parameters, and for those that would keep more than ``memory_limit`` bytes of
    a whole batch."""
    units, link = inputs.units_in(shards), inputs.link

    def cost(first: int, end: int, replicas: int) -> float:
        block = units[first:end]
        parameters = sum(unit.parameters for unit in block)
        if not parameters or memory_bytes(units, first, end) > memory_limit:
            return inf
        own = -(-shards // replicas)
        update = sum(unit.update for unit in block)
        computing = (local_seconds(units, first, end) - update) * own / shards + 2 * inputs.overhead * own + update
        ends = [units[first - 1]] * (first > 0) + [units[end - 1]] * (end < len(units))
        messages = [own * link.seconds(unit.output_bytes / shards) for unit in ends]
        rounds = 2 * (replicas - 1)
        total = rounds * link.seconds(BYTES_OF_A_GRADIENT * parameters / replicas) if rounds else 0.0
        return max([computing + total, *messages]) if link.overlaps else computing + total + sum(messages)

    return cost


def best_layout(
    num_units: int, num_ranks: int, most_replicas: int, cost: ReplicatedCost, num_blocks: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The cut and the replicas of every block with the smallest largest cost on at most ``num_ranks`` ranks, and among
    these one on the fewest ranks; None if every layout has an impossible block. Takes O(num_units^2 * num_ranks^2), and
    as much for every block if their number is given."""
    # by (units, blocks if their number is given, ranks): the largest cost, and the ends and replicas of the blocks
    best: list[dict[tuple[int, int], tuple[float, tuple[tuple[int, int], ...]]]] = [{} for _ in range(num_units + 1)]
    best[0][0, 0] = 0.0, ()
    for first in range(num_units):  # no layout leads back, so what is known before ``first`` is final
        for end, replicas, seconds in _blocks(first, num_units, min(most_replicas, num_ranks), cost):
            for (blocks, ranks), (before, layout) in best[first].items():
                key = blocks + (num_blocks is not None), ranks + replicas
                value = max(before, seconds)
                if key[0] <= (num_blocks or 0) and key[1] <= num_ranks and value < best[end].get(key, (inf,))[0]:
                    best[end][key] = value, (*layout, (end, replicas))
    complete = [
        (value, ranks, layout)
        for (blocks, ranks), (value, layout) in best[num_units].items()
        if num_blocks in (None, blocks)
    ]
    if not complete:
        return None
    _, _, layout = min(complete)
    return tuple(end for end, _ in layout[:-1]), tuple(replicas for _, replicas in layout)


def _blocks(first: int, num_units: int, most_replicas: int, cost: ReplicatedCost) -> Iterator[tuple[int, int, float]]:
    """The possible blocks that begin with unit ``first``: end, replicas, cost."""
    for end in range(first + 1, num_units + 1):
        for replicas in range(1, most_replicas + 1):
            if (seconds := cost(first, end, replicas)) < inf:
                yield end, replicas, seconds


def replica_text(profile: Profile, inputs: PredictionInputs, plan: ReplicaPlan) -> str:
    """A plan, block by block."""
    found, shards = plan.prediction, plan.shards
    rows = [
        [
            f"block {number}",
            f"{profile.names[first]} - {profile.names[end - 1]}",
            str(replicas),
            str(-(-shards // replicas)),
            f"{100 * busy:.1f} %",
        ]
        for number, ((first, end), replicas, busy) in enumerate(
            zip(inputs.blocks(found.cut), plan.replicas, found.busy, strict=True)
        )
    ]
    cut = f"'[{', '.join(profile.cut_names(found.cut))}]'" if found.cut else "1"
    return (
        f"{plan.num_ranks} ranks at {rate_text(inputs)}: --set blocks={cut} --set 'replicas={list(plan.replicas)}' "
        f"--set shards={shards}\n"
        + table(["", "units", "replicas", f"of {shards} shards", "busy"], rows)
        + f"\n{found.images_per_second:,.0f} images/s, {found.speed_up:.2f} times one device"
    )


def possible_shards(batch_size: int, num_ranks: int) -> list[int]:
    """The numbers of equal shards of at least 2 images, for the sake of batch normalisation, that so many ranks can
    have replicas for."""
    most = min(max(num_ranks - 1, 1), max(batch_size // 2, 1))
    return [number for number in range(1, most + 1) if batch_size % number == 0]
