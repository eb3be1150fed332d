"""The figures of a run for people. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from rich.filesize import decimal as size

from bllpipe.check.figures import EdgeFigures, Figures, RankFigures
from bllpipe.config import Config
from bllpipe.plan.table import table
from bllpipe.topology import Topology

RANK_HEADS = (
    "rank",
    "role",
    "parameters",
    "memory",
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "messages",
    "sent",
    "received",
)
LOCAL_HEADS = ("local head of", "parameters", "of the block's", "operations", "of the block's")
EDGE_HEADS = ("edge", "tensors", "a message", "a step")
NOTE = """\
Bytes sent and received are those of a training step. Memory is an estimate: counted, not measured; torch itself, the
data, and what convolutions borrow for a moment come on top."""
FULL = "Activations are counted in fp32; precision.compute bf16 keeps some of them in half as much."


def headline(config: Config, layout: Topology) -> str:
    """What is to be trained, in a line."""
    ranks = f"{layout.world_size} rank{'' if layout.world_size == 1 else 's'}"
    return (
        f"{config.method}/{config.engine}: {config.model.name} on {config.data.name}, batches of "
        f"{config.data.batch_size}, {ranks}"
    )


def figures_table(figures: Figures, config: Config) -> str:
    """Steps, ranks, local heads and edges."""
    lines = [f"{figures.steps:,} steps, {figures.steps_per_epoch:,} an epoch", ""]
    lines += [table(RANK_HEADS, [_rank_row(figures, each) for each in figures.ranks])]
    if heads := [_head_row(each) for each in figures.ranks if each.head_parameters]:
        lines += ["", table(LOCAL_HEADS, heads)]
    if figures.edges:
        lines += ["", table(EDGE_HEADS, [_edge_row(edge) for edge in figures.edges])]
    notes = [NOTE, *_ensemble(figures), *([FULL] if config.precision.compute == "bf16" else [])]
    return "\n".join([*lines, "", *notes])


def _ensemble(figures: Figures) -> Iterator[str]:
    """What tests send more."""
    if more := max((edge.ensemble_bytes for edge in figures.edges), default=0):
        yield (
            f"With evaluate.ensemble an alpha message of a test batch has {size(more)} more: the sums of the class\n"
            f"probabilities of all heads so far."
        )


def layout_lines(layout: Topology) -> Iterator[str]:
    """Ranks and edges alone."""
    yield "# ranks: " + ", ".join(f"{rank} {layout.role(rank)}" for rank in range(layout.world_size))
    yield "# edges: " + ", ".join(str(edge) for edge in layout.edges())


def _rank_row(figures: Figures, each: RankFigures) -> list[str]:
    memory = each.memory
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.messages)
    carried = (figures.sent(each.rank), figures.received(each.rank))
    return [
        str(each.rank),
        each.role,
        f"{each.parameters:,}",
        *(size(number) for number in (memory.total, *parts, *carried)),
    ]


def _head_row(each: RankFigures) -> list[str]:
    """Shares of the block with its head; operations of one image's forward pass."""
    return [
        each.role,
        f"{each.head_parameters:,}",
        f"{each.head_parameters / each.parameters:.1%}",
        f"{each.head_operations:,}",
        f"{each.head_operations / max(1, each.operations):.1%}",
    ]


def _edge_row(edge: EdgeFigures) -> list[str]:
    times = f"{edge.num_messages} x " if edge.num_messages > 1 else ""
    tensors = ", ".join(str(tensor) for tensor in edge.tensors)
    return [str(edge), tensors, times + size(edge.message_bytes), size(edge.step_bytes)]
