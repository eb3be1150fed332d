"""Whether what blocks draw at random is seeded: where it is not, a warning says why."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from bllpipe.config import Config
from bllpipe.config.schema import SYNCHRONOUS
from bllpipe.data.base import ImageSet, MemoryImages
from bllpipe.distributed.torchrun import is_lead
from bllpipe.learn.block import Block
from bllpipe.learn.draws import NOT_SEEDED, Draws
from bllpipe.models.registry import stochastic_modules
from bllpipe.utils.console import warn


def make_draws(block: Block, config: Config, images: ImageSet | None, ahead: bool) -> Draws:
    """The random numbers of ``block``. If it is the first one, it reads ``images``, in a thread if ``ahead``."""
    device = block.learner.device
    if why_not_seeded(config, device):
        return NOT_SEEDED
    found = True if stochastic_modules({"segment": block.segment, "local": block.local}) else None
    in_thread = ahead or device.type == "cuda"
    if images is not None and config.data.user_data and in_thread and not isinstance(images, MemoryImages):
        found = bool(found)  # the items of a script may draw from the same generator: its state shows nothing
    return Draws(config.seed, block.segment.last_unit, device, found)


def warn_of_draws(modules: Mapping[str, nn.Module], owner: str, config: Config, device: torch.device) -> None:
    """A warning names the user-defined modules of ``owner`` in which a layer draws random numbers that are not
    seeded."""
    why = why_not_seeded(config, device)
    if why and (names := stochastic_modules(modules)) and is_lead():
        warn(
            f"{', '.join(names)} of {owner} draws random numbers in training, {why}: another engine, or a run that "
            f"resumes from a checkpoint, ends in other bits"
        )


def why_not_seeded(config: Config, device: torch.device) -> str:
    """Why what blocks draw at random depends on more than seed, block, step and shard; empty if it does not."""
    if config.engine == "threads":
        return "and all threads of a process draw from one generator"
    if config.engine in SYNCHRONOUS:
        return f"in the order in which engine {config.engine} computes"
    if device.type == "cuda" and (config.gpu.capture or config.gpu.compile):  # nor may a seed be set in a capture
        return "in an order of their own in captured and compiled steps"
    return ""
