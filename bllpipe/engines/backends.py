"""What carries each kind of message: chosen by all ranks together, as their machines may have different GPUs.

Every rank takes part in opening the group of every edge, so a rank that chose by what it sees itself might wait for
ever for one that sees something else.
"""

from __future__ import annotations

from bllpipe.config import Config
from bllpipe.engines.devices import Machine, distinct_gpus
from bllpipe.errors import ConfigError
from bllpipe.ports import Store
from bllpipe.run.notices import warn
from bllpipe.topology import Topology
from bllpipe.wire.environment import RankEnvironment
from bllpipe.wire.processes import chosen_backends


def agreed_backends(
    config: Config, topology: Topology, environment: RankEnvironment, machine: Machine, store: Store
) -> dict[str, str]:
    """The backend of every kind of message, the same in every rank: NCCL by itself only if no block of any machine
    shares a GPU or lacks one. Waits for all blocks to say what they have."""
    rank, blocks = environment.rank, list(topology.block_ranks)
    if rank in blocks:
        store.set(f"own gpu/{rank}", str(int(distinct_gpus(config, topology, environment, machine))))
    without = [block for block in blocks if not int(store.get(f"own gpu/{block}"))]
    if rank == 0 and config.backend.alpha == "auto" and 0 < len(without) < len(blocks):
        warn(
            f"the machines of ranks {', '.join(map(str, without))} have no GPU for each of their blocks: activations "
            f"go over gloo between all ranks; NCCL needs a GPU for every block"
        )
    return chosen_backends(config.backend, distinct_gpus=not without)


def compare_devices(rank: int, device: str, store: Store) -> None:
    """Raises ConfigError unless this rank computes on the same kind of ``device`` (cpu, cuda) as the first one, where
    all talk to all."""
    if rank == 0:
        store.set("device of the first", device)
    first = store.get("device of the first").decode()
    if first != device:
        raise ConfigError(
            f"rank 0 computes on {first}, this rank on {device}, and no backend carries messages between the two; "
            f"use --set device=cpu, or machines that all have GPUs"
        )
