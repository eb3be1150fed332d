"""Which device each rank computes on, and which placements cannot work."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.topology import Topology
from bllpipe.wire.environment import RankEnvironment

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Machine:
    """What there is to compute on, beside CPUs."""

    gpus: int

    @classmethod
    def found(cls) -> Machine:
        """This one."""
        return cls(torch.cuda.device_count() if torch.cuda.is_available() else 0)

    def gpu(self, number: int) -> torch.device:
        """The GPUs in turn."""
        return torch.device("cuda", number % self.gpus)


def one_device(config: Config, machine: Machine) -> torch.device:
    """The device that all blocks of a single process share."""
    return machine.gpu(0) if _use_gpus(config, machine) else CPU


def rank_device(config: Config, topology: Topology, environment: RankEnvironment, machine: Machine) -> torch.device:
    """The device of this rank. Blocks take the GPUs of their machine in turn; the feedback takes one of its own if
    there is one left, else the CPU."""
    if environment.rank == topology.feedback_rank:
        return _feedback_device(config, topology, environment, machine)
    return machine.gpu(environment.local_rank) if _use_gpus(config, machine) else CPU


def distinct_gpus(config: Config, topology: Topology, environment: RankEnvironment, machine: Machine) -> bool:
    """Whether no two blocks of this machine share a GPU, so that NCCL can carry activations between them."""
    return _use_gpus(config, machine) and machine.gpus >= _blocks_here(topology, environment)


def check_wires(config: Config, topology: Topology, environment: RankEnvironment, machine: Machine) -> None:
    """Raises ConfigError for a kind of message that shall go over NCCL, but has an end without a GPU of its own."""
    blocks = _blocks_here(topology, environment)
    if blocks and config.backend.alpha == "nccl" and not distinct_gpus(config, topology, environment, machine):
        raise ConfigError(
            f"backend.alpha is nccl, which takes one rank a GPU, but {blocks} blocks find {_gpus(machine)} on this "
            f"machine; use --set backend.alpha=gloo"
        )
    for kind in ("target", "stats"):
        if getattr(config.backend, kind) == "nccl" and not _feedback_has_gpu(config, topology, environment, machine):
            raise ConfigError(
                f"backend.{kind} is nccl, but the feedback rank has no GPU of its own: {blocks} blocks find "
                f"{_gpus(machine)} on this machine; use --set backend.{kind}=gloo"
            )


def sharing(config: Config, topology: Topology, environment: RankEnvironment, machine: Machine) -> str:
    """What to know when blocks share a GPU; empty if none do."""
    if not _use_gpus(config, machine) or distinct_gpus(config, topology, environment, machine):
        return ""
    return (
        f"{_blocks_here(topology, environment)} blocks share {_gpus(machine)}: their messages go through the memory of "
        f"the CPU, and what they take is no measure of several GPUs; faster on one: --set engine=streams"
    )


def _blocks_here(topology: Topology, environment: RankEnvironment) -> int:
    first = environment.rank - environment.local_rank
    return sum(rank in topology.block_ranks for rank in range(first, first + environment.local_world_size))


def _feedback_has_gpu(config: Config, topology: Topology, environment: RankEnvironment, machine: Machine) -> bool:
    """Whether the feedback rank is on a GPU where no block is, as far as this machine can tell."""
    on_gpu = config.feedback.device != "cpu" and _use_gpus(config, machine)
    return on_gpu and machine.gpus > topology.num_blocks if environment.on_one_machine else on_gpu


def _feedback_device(
    config: Config, topology: Topology, environment: RankEnvironment, machine: Machine
) -> torch.device:
    choice, spare = config.feedback.device, machine.gpus > environment.local_rank
    if choice == "cuda" and not machine.gpus:
        raise ConfigError("feedback.device is cuda, but there is no GPU; use --set feedback.device=cpu")
    if choice == "cuda" and not spare and distinct_gpus(config, topology, environment, machine):
        raise ConfigError(
            f"feedback.device is cuda, but the blocks take {_gpus(machine)}, all there are on this machine; "
            f"use --set feedback.device=cpu, which costs little"
        )
    if choice == "cuda" or (choice == "auto" and spare and config.device != "cpu"):
        return machine.gpu(environment.local_rank)
    return CPU


def _gpus(machine: Machine) -> str:
    return "1 GPU" if machine.gpus == 1 else f"{machine.gpus} GPUs"


def _use_gpus(config: Config, machine: Machine) -> bool:
    if config.device == "cuda" and not machine.gpus:
        raise ConfigError("device is cuda, but there is no GPU; use --set device=cpu")
    return config.device != "cpu" and machine.gpus > 0
