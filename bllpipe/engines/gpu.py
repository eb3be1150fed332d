"""What ``gpu.*`` asks for: how this process computes on its GPU, and how its blocks do. A CPU knows none of it."""

from __future__ import annotations

import torch

from bllpipe.config import Config
from bllpipe.engines.compiled import Backend, compile_part
from bllpipe.engines.precision import set_precision
from bllpipe.learn.block import Block
from bllpipe.learn.capture import CapturedStep, CudaGraphs, Graphs
from bllpipe.learn.pooling import pool_by_products
from bllpipe.wire.environment import allow_deterministic_products


def set_up(config: Config, device: torch.device) -> None:
    """Chooses the kernels of this process, before the first one runs."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)  # or graphs and pinned memory would be those of the first GPU
    set_precision(config.gpu.tf32)
    torch.backends.cudnn.benchmark = not config.gpu.deterministic  # shapes stay the same, so trying pays
    if config.gpu.deterministic:
        allow_deterministic_products()
        torch.backends.cudnn.deterministic = True
        # what a network of a user's own does may have no such kernel, which is warned of
        torch.use_deterministic_algorithms(True, warn_only=True)


def speed_up(block: Block, config: Config) -> Block:
    """The block, deterministic, compiled and captured as asked for."""
    device = block.learner.device
    if device.type != "cuda":
        return block
    if config.gpu.deterministic:
        pool_by_products(block.segment)
        pool_by_products(block.head)
    if config.gpu.compile:
        compile_parts(block)
    if config.gpu.capture:
        CapturedStep(block, CudaGraphs(device))
    return block


def graphs_of_ticks(config: Config, device: torch.device) -> Graphs | None:
    """Where the graphs of a whole wavefront come from; None where there shall be none."""
    return CudaGraphs(device) if device.type == "cuda" and config.gpu.capture is True else None


def compile_parts(block: Block, backend: Backend = "inductor") -> None:
    """Segment; statistics; head, objective and hits: a region each, for the shapes that come. Names of parameters stay
    as they are."""
    name = f"the block that ends with {block.segment.last_unit}"
    compile_part(block.segment, name, backend)
    compile_part(block.statistics, f"the statistics of {name}", backend)
    compile_part(block.local, f"the local loss of {name}", backend)
