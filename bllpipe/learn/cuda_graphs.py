"""A block's step captured once as CUDA graphs and replayed from then on.

The step of a block sends and receives nothing: forward, statistics, loss, backward and update each become a CUDA graph,
which takes one launch instead of hundreds. A replay does again what the device did, on the same memory; no Python
runs. So

  - the first steps are ordinary ones: libraries choose their kernels, buffers are made
  - what changes from step to step lies in memory that stays where it is: the block's input, its target, and the
    learning rate, which the optimizer keeps on the device
  - inputs come to a few places in turn, the slots of a ring: each has graphs of its own, and is not copied; an input
    from anywhere else is copied to one of the places first
  - tests, whose batches may be smaller, are not captured

A larger graph may be recorded around the steps of many blocks (engines/streams_graph.py): inside it the block has its
own methods again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bllpipe.config import Config
from bllpipe.learn.block import Block
from bllpipe.learn.compiled import Backend, compile_part
from bllpipe.learn.memory_format import make_pools_deterministic
from bllpipe.messages import Target

ORDINARY_STEPS = 3
MOST_PLACES = 2  # slots of a ring
Result = TypeVar("Result")
REPLACED = ("forward", "infer", "stats", "losses", "backward", "step_optimizer")


class Graphs(Protocol):
    """Where the graphs of one block come from. They are replayed one at a time, in the order of their recording."""

    def record(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Does not carry out what ``compute`` asks of the device, but gives what does so, as often as it is called, and
        the tensors that will then hold the results."""


class CudaGraphs:
    """Graphs of a GPU, which share memory. Each block has a stream of its own to record on, as libraries keep a
    workspace a stream, and blocks compute side by side.

    What is recorded may use other streams too, once they wait for an event of the recording; it must wait for them at
    its end. What they allocate comes from the memory of the graphs as well, and stays with the stream that asked.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        graph = torch.cuda.CUDAGraph()
        # other threads (images, links, the watcher) may use the device meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = compute()
        return graph.replay, result


@dataclass
class CapturedInput:
    """Where an input of the block lies, and what was recorded for it: by the name of the piece its replay and its
    results. ``held`` are the other inputs, each in memory of its own."""

    x: Tensor
    graphs: Graphs
    pieces: dict[str, tuple[Callable[[], None], Any]] = field(default_factory=dict)
    held: dict[str, Tensor] = field(default_factory=dict)

    def play(self, name: str, compute: Callable[[], Result]) -> Result:
        """Carries out the piece called ``name``, which is recorded when it comes for the first time."""
        if name not in self.pieces:
            self.pieces[name] = self.graphs.record(compute)
        replay, result = self.pieces[name]
        replay()
        return result  # type: ignore[no-any-return]  # what was recorded under this name

    def hold(self, name: str, tensor: Tensor) -> Tensor:
        """The values of ``tensor``, at the same place every time."""
        if name not in self.held:
            self.held[name] = torch.empty_like(tensor)
        return self.held[name].copy_(tensor, non_blocking=True)

    def finish(self, name: str, compute: Callable[[], Result]) -> Result:
        """Plays the last piece of a step. When that is recorded nobody needs the way back through the results, and it
        must go: autograd would use its leaves again in a later recording, on the stream of this one."""
        if name not in self.pieces:
            self.pieces = {other: (replay, _detached(result)) for other, (replay, result) in self.pieces.items()}
        return self.play(name, compute)

    def fits(self, x: Tensor) -> bool:
        """Whether ``x`` lies here already."""
        mine = self.x
        return (mine.data_ptr(), mine.shape, mine.stride()) == (x.data_ptr(), x.shape, x.stride())


class CapturedStep:
    """Takes the place of those methods of ``block`` that make up its step."""

    def __init__(self, block: Block, graphs: Graphs) -> None:
        self._block, self._graphs = block, graphs
        self._places: list[CapturedInput] = []
        self._place: CapturedInput | None = None  # that of the step under way; None in tests and in ordinary steps
        self._steps = 0
        self._forward, self._infer, self._stats = block.forward, block.infer, block.stats
        self._losses, self._backward = block.losses, block.backward
        block.is_captured = True
        for name in REPLACED:
            setattr(block, name, getattr(self, name))

    def forward(self, x: Tensor) -> Tensor:
        self._steps += 1
        if self._steps <= ORDINARY_STEPS:
            return self._forward(x)
        place = self._place = self._place_of(x)
        self._block.x, self._block.means_BC = place.x, None
        return place.play("forward", lambda: self._forward(place.x))

    def infer(self, x: Tensor) -> Tensor:
        self._place = None
        return self._infer(x)

    def stats(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        if self._place is None:
            return self._stats(alpha, label_B)
        held_B = self._place.hold("label of the stats", label_B)
        sums_KC, counts_K, means_BC = self._place.play("stats", lambda: self._stats_and_means(alpha, held_B))
        self._block.means_BC = means_BC  # those of this place
        return sums_KC, counts_K

    def _stats_and_means(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        sums_KC, counts_K = self._stats(alpha, label_B)
        return sums_KC, counts_K, self._block.means_BC

    def losses(
        self, alpha: Tensor, target: Target, scores_BK: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        if self._place is None:
            return self._losses(alpha, target, scores_BK)
        hold = self._place.hold
        parts = hold("beta", target.beta_BC), hold("known", target.known_B), hold("label", target.label_B)
        return self._place.play("losses", lambda: self._losses(alpha, Target(target.round, *parts)))

    def backward(self, terms: Mapping[str, Tensor]) -> None:
        if self._place is None:
            return self._backward(terms)
        return self._place.play("backward", lambda: self._backward(terms))

    def step_optimizer(self, step: int) -> float:
        learner = self._block.learner
        lr = learner.set_rate(step)
        if self._place is None:
            learner.apply()
        else:
            self._place.finish("update", learner.apply)
        return lr

    def _place_of(self, x: Tensor) -> CapturedInput:
        """The place where ``x`` lies, or to which it is copied."""
        for place in self._places:
            if place.fits(x):
                return place
        if len(self._places) < MOST_PLACES:
            self._places.append(CapturedInput(x, self._graphs))  # which keeps it: nothing else will ever lie there
            return self._places[-1]
        self._places[0].x.copy_(x, non_blocking=True)
        return self._places[0]


def _detached(result: Any) -> Any:
    """The tensors of a piece's result without the nodes that made them."""
    match result:
        case Tensor():
            return result.detach()
        case dict():
            return {name: _detached(value) for name, value in result.items()}
        case tuple():
            return tuple(map(_detached, result))
    return result


@contextmanager
def as_part_of_a_graph(block: Block, lr: float) -> Iterator[None]:
    """The block with its own methods, whatever has taken their place: for a larger graph, which is recorded around its
    step. Its rate was set to ``lr`` in front of that graph; inside it the rate would stay what it is."""
    replaced = {name: vars(block).pop(name) for name in REPLACED if name in vars(block)}

    def step_optimizer(step: int) -> float:
        block.learner.apply()
        return lr

    vars(block)["step_optimizer"] = step_optimizer
    try:
        yield
    finally:
        del vars(block)["step_optimizer"]
        vars(block).update(replaced)


def speed_up(block: Block, config: Config) -> Block:
    """The block, deterministic, compiled and captured as asked for."""
    device = block.learner.device
    if device.type != "cuda":
        return block
    if config.gpu.deterministic:
        make_pools_deterministic(block.segment)
        make_pools_deterministic(block.head)
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
