"""Which device each rank computes on."""

from __future__ import annotations

import torch

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.topology import Topology
from bllpipe.wire.environment import RankEnvironment

CPU = torch.device("cpu")


def one_device(config: Config) -> torch.device:
    """The device that all blocks of a single process share."""
    return torch.device("cuda", 0) if _use_gpus(config) else CPU


def rank_device(config: Config, topology: Topology, environment: RankEnvironment) -> torch.device:
    """The device of this rank. Blocks take the GPUs of their machine in turn; the feedback takes one of its own if
    there is one left, else the CPU."""
    if environment.rank == topology.feedback_rank:
        return _feedback_device(config, environment)
    if not _use_gpus(config):
        return CPU
    return torch.device("cuda", environment.local_rank % torch.cuda.device_count())


def distinct_gpus(config: Config, topology: Topology, environment: RankEnvironment) -> bool:
    """Whether no two blocks of this machine share a GPU, so that NCCL can carry activations between them."""
    blocks_here = environment.local_world_size
    if environment.on_one_machine:
        blocks_here = topology.num_blocks
    return _use_gpus(config) and torch.cuda.device_count() >= blocks_here


def _feedback_device(config: Config, environment: RankEnvironment) -> torch.device:
    choice = config.feedback.device
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError("feedback.device is cuda, but there is no GPU; use --set feedback.device=cpu")
    spare = torch.cuda.device_count() > environment.local_rank and config.device != "cpu"
    if choice == "cuda" or (choice == "auto" and spare):
        return torch.device("cuda", environment.local_rank % torch.cuda.device_count())
    return CPU


def _use_gpus(config: Config) -> bool:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but there is no GPU; use --set device=cpu")
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
