"""Figures of ranks that hold blocks, of the feedback, and of the edges between them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bllpipe.check.counted import SHAPES_ONLY, batch_of, kept_bytes, num_parameters, rank_memory, target_of
from bllpipe.check.figures import EdgeFigures, Memory, RankFigures, TensorFigures
from bllpipe.engines.edges import layout_of
from bllpipe.engines.job import Job, build_segment, input_shape, shape_of, unit_names, width_for_heads
from bllpipe.learn.block import Block, make_block
from bllpipe.learn.channels import num_channels
from bllpipe.learn.families import FAMILIES
from bllpipe.learn.feedback import Feedback, make_feedback
from bllpipe.wire.layout import LIMIT, Layout

COUNTED = 2  # images: normalisations refuse one with a single position


def block_figures(job: Job, rank: int) -> RankFigures:
    """The rank of a block; those before it have been counted."""
    segment = build_segment(job, rank, SHAPES_ONLY)
    shapes, is_last = (input_shape(job, rank), shape_of(job, rank)), rank == job.topology.num_blocks - 1
    sizes = job.spec.num_classes, job.plan.total_steps
    block = make_block(segment, *shapes, job.config, *sizes, is_last, width_for_heads(job))
    activations = kept_bytes(block.learner, lambda: _there(job, block, *shapes))
    memory = rank_memory(block.learner, activations, _buffers(job, rank))
    parameters, of_head = (num_parameters(part.values()) for part in (block.learner.weights(), block.head.state_dict()))
    return RankFigures(rank, job.topology.role(rank), parameters, memory, of_head, *_operations(block, shapes[0]))


@torch.no_grad()
def _operations(block: Block, given: tuple[int, ...]) -> tuple[int, int]:
    """Of one image on its way forth: through block and head, and through the head alone."""
    x = batch_of(COUNTED, given)
    with FlopCounterMode(display=False) as of_block:
        alpha = block.forward(x)
    with FlopCounterMode(display=False) as of_head:
        block.head(alpha)
    whole, head = of_block.get_total_flops() // COUNTED, of_head.get_total_flops() // COUNTED
    return whole + head, head


def _there(job: Job, block: Block, given: tuple[int, ...], made: tuple[int, ...]) -> Iterator[Tensor]:
    """One batch as far as the losses. The gradient of alpha comes into being when most else is there too."""
    size = job.config.data.batch_size
    x = batch_of(size, given)
    alpha = block.forward(x)
    terms, scores_BK, _ = block.losses(alpha, target_of(size, num_channels(made)))
    yield from (x, alpha, scores_BK, torch.empty_like(alpha), *terms.values())


def feedback_figures(job: Job) -> RankFigures:
    """The feedback rank: all lanes."""
    lanes = [_lane(job, block, name) for block, name in enumerate(unit_names(job))]
    state = [value for lane in lanes for value in lane.state().values()]
    rank = job.topology.feedback_rank
    memory = Memory(sum(value.nbytes for value in state), 0, 0, 0, _buffers(job, rank))
    return RankFigures(rank, job.topology.role(rank), num_parameters(state), memory)


def _lane(job: Job, block: int, name: str) -> Feedback:
    config, channels = job.config, num_channels(shape_of(job, block))
    family = FAMILIES[config.objective.family]
    return make_feedback(config.feedback, job.spec.num_classes, channels, config.seed, name, SHAPES_ONLY, family)


def wire_figures(job: Job) -> Iterator[EdgeFigures]:
    """Every edge has one message a training step."""
    size = job.config.data.batch_size
    for edge in job.topology.edges():
        layout = layout_of(job, edge)
        tensors = tuple(_tensor(dtype, shape) for dtype, shape in layout.shapes(size, "train"))
        num_bytes, more = layout.message_bytes(size, "train"), layout.message_bytes(size, LIMIT)
        yield EdgeFigures(edge.kind, edge.src, edge.dst, tensors, num_bytes, 1, num_bytes, more - num_bytes)


def _tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> TensorFigures:
    return TensorFigures(str(dtype).removeprefix("torch."), shape)


def _buffers(job: Job, rank: int) -> int:
    """What a rank keeps of messages: a ring where they come in and, to another process, those on their way."""
    layouts = [layout_of(job, edge) for edge in job.topology.edges() if rank in (edge.src, edge.dst)]
    return sum(_num_kept(job, rank, layout) * layout.message_bytes(layout.max_batch, LIMIT) for layout in layouts)


def _num_kept(job: Job, rank: int, layout: Layout) -> int:
    if layout.edge.dst == rank:
        return layout.ring
    return job.config.backend.in_flight if job.config.engine == "ranks" else 0
