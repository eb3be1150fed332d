"""How many processes a run has, and whether they fit on nodes with so many GPUs each."""

from __future__ import annotations

from bllpipe.config import Config
from bllpipe.engines import topology
from bllpipe.errors import ConfigError
from bllpipe.launch import SPREAD


def num_ranks(config: Config) -> int:
    """The processes of the run; an engine of a single process has one, whatever it holds."""
    return topology(config).world_size if config.engine in SPREAD else 1


def ranks_of_nodes(num_ranks: int, num_nodes: int) -> list[int]:
    """The ranks of each node: equal shares, what is left over on the last nodes, where the feedback is."""
    share, left = divmod(num_ranks, num_nodes)
    return [share + (node >= num_nodes - left) for node in range(num_nodes)]


def check_fit(config: Config, num_nodes: int, gpus_per_node: int | None) -> None:
    """Raises ConfigError unless every node gets a rank, and every rank that computes on a GPU has one of its own.

    ``gpus_per_node`` is None when nobody knows. Nodes without GPUs have room for any number of ranks, and so have GPUs
    that ranks are to share, with gloo between them.
    """
    ranks, needed = num_ranks(config), _num_gpus(config)
    if num_nodes > ranks:
        raise ConfigError(f"{_count(ranks, 'rank')} cannot be spread over {num_nodes} nodes; use --nodes {ranks}")
    if gpus_per_node == 0:
        _refuse_to_do_without(config)
    elif gpus_per_node is not None and needed > num_nodes * gpus_per_node and not _may_share(config):
        raise _too_few(config, needed, num_nodes, gpus_per_node)


def _may_share(config: Config) -> bool:
    """Whether several ranks may be on one GPU, which NCCL refuses."""
    return config.engine == "ranks" and config.backend.alpha == "gloo"


def _num_gpus(config: Config) -> int:
    """How many GPUs the run takes. The feedback does without one unless it asks for it."""
    if config.device == "cpu":
        return 0
    waives = config.engine in SPREAD and topology(config).has_feedback and config.feedback.device != "cuda"
    return num_ranks(config) - waives


def _refuse_to_do_without(config: Config) -> None:
    for key, device in (("device", config.device), ("feedback.device", config.feedback.device)):
        if device == "cuda":
            raise ConfigError(f"{key} is cuda, but the nodes have no GPUs; use --gpus-per-node 4, or --set {key}=cpu")


def _too_few(config: Config, needed: int, num_nodes: int, gpus_per_node: int) -> ConfigError:
    layout, found = topology(config), num_nodes * gpus_per_node
    blocks = _count(layout.num_blocks, "block") if layout.placement == "block" else _count(needed, "rank")
    feedback = needed - layout.num_blocks
    also = " and the feedback, whose feedback.device is cuda," if feedback else ""
    fewer = found - feedback if layout.placement in ("block", "stage", "replica") else 0
    return ConfigError(
        f"{blocks}{also} need {needed} GPUs, but {_count(num_nodes, 'node')} with {_count(gpus_per_node, 'GPU')} each "
        f"have {found}; use --nodes {-(-needed // gpus_per_node)}"
        + (f", or --set blocks={fewer}" if fewer > 0 else "")
        + (", or --set backend.alpha=gloo to let ranks share GPUs" if config.engine == "ranks" else "")
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
