"""The step of a block made fast on a GPU: captured once as CUDA graphs and replayed from then on, or compiled.

The step of a block sends and receives nothing: forward, statistics, loss, backward and update each become a CUDA graph,
which takes one launch instead of hundreds. A replay repeats the work of the device on the same memory; no Python runs.
So

  - the first steps are warm-up, without graphs: libraries choose their kernels, buffers are allocated
  - what changes from step to step is at fixed addresses: the block's input, its target, and the learning rate, which
    the optimizer keeps on the device
  - inputs come in a few buffers in turn, the slots of a ring: each has its own graphs, and is not copied; any other
    input is copied into one of these buffers first
  - tests, whose batches may be smaller, are not captured

A larger graph may be captured around the steps of many blocks (engines/streams_graph.py): inside it the methods of the
block are the original ones.

torch.compile caches compilations by code object, tries one after another, and makes at most eight; after the eighth it
runs eager Python, slowly, and logs this once. All networks share the code of ``forward``: every block, in training and
in tests, for whole and for smaller batches, in every run of a process. So

  - each part is called by its own function object, freed with the part: three compilations, and three cache entries
  - the limit, which other frames still count towards when a network breaks the graph, is raised around the calls
  - reaching it is an error, and so is a part that is compiled again and again for inputs that it had before
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from types import FunctionType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Block
from bllpipe.learn.memory_format import make_pools_deterministic
from bllpipe.messages import Target

Backend = str | Callable[..., Any]  # a name registered with torch, or a compiler of graphs
# Compilations of one code object. A network that breaks the graph is compiled in pieces, whose code all instances of a
# module share: 50 residual units, in training, in tests and for the last test batch.
RECOMPILE_LIMIT = 256
MAX_RECOMPILATIONS = 8  # for earlier inputs: some come late, as requires_grad of inputs changes
NUMBERS = count()
WARMUP_STEPS = 3
MAX_INPUTS = 2  # slots of a ring
Result = TypeVar("Result")
REPLACED = ("forward", "infer", "stats", "losses", "backward", "step_optimizer")
ADVICE = "use --set gpu.compile=false, or change the network (TORCH_LOGS=recompiles says why)"


@contextmanager
def no_eager_fallback() -> Iterator[None]:
    """Inside, in this thread (in all threads with an older torch), the limit of compilations is higher, and exceeding
    it is an error."""
    from torch._dynamo import config  # takes seconds, and few runs compile

    with config.patch(
        recompile_limit=max(RECOMPILE_LIMIT, config.recompile_limit),
        accumulated_recompile_limit=max(4 * RECOMPILE_LIMIT, config.accumulated_recompile_limit),
        fail_on_recompile_limit_hit=True,
        suppress_errors=False,
    ):
        yield


def forget_compiled() -> None:
    """Clears all compilations of this process: between runs, and between cases of a benchmark."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def compile_part(part: nn.Module, name: str, backend: Backend = "inductor") -> None:
    """Calls of ``part`` are compiled from now on, for the shapes of their inputs; parameters keep their names.

    Calls raise ConfigError, with ``name`` in it, when torch would run eager Python instead, or compile in
    every step.
    """
    part._compiled_call_impl = Compiled(part, name, backend)


class Compiled:
    """The compiled call of ``part``."""

    def __init__(self, part: nn.Module, name: str, backend: Backend) -> None:
        self._part, self._name = part, name
        self._backend, self._recompilations = CountingBackend(backend), 0
        self._seen: set[object] = set()
        self._compute = torch.compile(_unique_function(part), backend=self._backend, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit

        before = self._backend.graphs
        try:
            is_set = config.fail_on_recompile_limit_hit and config.recompile_limit >= RECOMPILE_LIMIT  # by the run
            with nullcontext() if is_set else no_eager_fallback():
                result = self._compute(*arguments)
        except FailOnRecompileLimitHit as error:
            raise ConfigError(
                f"gpu.compile is true, but torch has compiled code of {self._name} {RECOMPILE_LIMIT} times and "
                f"would run eager Python from now on; {ADVICE}"
            ) from error
        self._count_recompilations(arguments, self._backend.graphs > before)
        return result

    def _count_recompilations(self, arguments: tuple[object, ...], was_compiled: bool) -> None:
        kind = self._part.training, torch.is_grad_enabled(), *map(_guard_key, arguments)
        self._recompilations += was_compiled and kind in self._seen
        self._seen.add(kind)
        if self._recompilations > MAX_RECOMPILATIONS:
            raise ConfigError(
                f"gpu.compile is true, but {self._name} was compiled {self._recompilations} times more for inputs "
                f"that it had before: something in it changes from step to step; {ADVICE}"
            )


class CountingBackend:
    """``backend`` for one part, with the number of its graphs. It holds no reference to the part, because torch keeps
    backends alive."""

    def __init__(self, backend: Backend) -> None:
        from torch._dynamo import lookup_backend

        self._compile, self.graphs = lookup_backend(backend), 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return self._compile(graph, inputs)


def _guard_key(argument: object) -> object:
    """What a recompilation depends on: of tensors, also those of a message, everything but the values."""
    if isinstance(argument, Tensor):
        return argument.requires_grad, argument.dtype, argument.shape, argument.stride()
    return tuple(map(_guard_key, vars(argument).values())) if isinstance(argument, Target) else type(argument)


def _unique_function(part: nn.Module) -> Callable[..., Any]:
    """A function that calls ``part``, with a code object of its own."""
    call = part._call_impl

    def compute(*arguments: Any) -> Any:
        return call(*arguments)  # type: ignore[no-untyped-call]  # nn.Module's own

    name = f"part_{next(NUMBERS)}"  # code objects with different names compare unequal, as dictionary keys too
    return FunctionType(compute.__code__.replace(co_name=name), globals(), name, None, compute.__closure__)


class Graphs(Protocol):
    """Captures the graphs of one block. They are replayed one at a time, in the order of their capture."""

    def record(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Captures the kernels of ``compute`` without running them; returns the replay, and the tensors that hold the
        results after it."""


class CudaGraphs:
    """Graphs of a GPU that share a memory pool. Each block captures on its own stream, because libraries keep a
    workspace per stream and blocks run concurrently.

    A capture may use other streams too, once they wait for an event of the capture; it must wait for them at its end.
    Their allocations come from the pool of the graphs as well, and stay with their stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        graph = torch.cuda.CUDAGraph()
        # other threads (images, links, the watchdog) may use the device meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = compute()
        return graph.replay, result


@dataclass
class CapturedInput:
    """An input buffer of the block, and the graphs captured for it: replay and results, by the name of the piece of the
    step. ``static`` are the other inputs, each in its own buffer."""

    x: Tensor
    graphs: Graphs
    pieces: dict[str, tuple[Callable[[], None], Any]] = field(default_factory=dict)
    static: dict[str, Tensor] = field(default_factory=dict)

    def replay(self, name: str, compute: Callable[[], Result]) -> Result:
        """Replays the piece ``name``, which is captured at its first call."""
        if name not in self.pieces:
            self.pieces[name] = self.graphs.record(compute)
        replay, result = self.pieces[name]
        replay()
        return result  # type: ignore[no-any-return]  # captured under this name

    def copy_static(self, name: str, tensor: Tensor) -> Tensor:
        """The values of ``tensor``, in the same buffer every time."""
        if name not in self.static:
            self.static[name] = torch.empty_like(tensor)
        return self.static[name].copy_(tensor, non_blocking=True)

    def finish(self, name: str, compute: Callable[[], Result]) -> Result:
        """Replays the last piece of a step. At its capture the autograd graph of the results is dropped: autograd would
        reuse its leaves in a later capture, on the stream of this one."""
        if name not in self.pieces:
            self.pieces = {other: (replay, _detached(result)) for other, (replay, result) in self.pieces.items()}
        return self.replay(name, compute)


class CapturedStep:
    """Replaces the methods of ``block`` that make up its step."""

    def __init__(self, block: Block, graphs: Graphs) -> None:
        self._block, self._graphs = block, graphs
        self._inputs: list[CapturedInput] = []
        self._current: CapturedInput | None = None  # that of the current step; None in tests and in warm-up steps
        self._steps = 0
        self._forward, self._infer, self._stats = block.forward, block.infer, block.stats
        self._losses, self._backward = block.losses, block.backward
        block.is_captured = True
        for name in REPLACED:
            setattr(block, name, getattr(self, name))

    def forward(self, x: Tensor) -> Tensor:
        self._steps += 1
        if self._steps <= WARMUP_STEPS:
            return self._forward(x)
        captured = self._current = self._input_of(x)
        self._block.x, self._block.means_BC = captured.x, None
        return captured.replay("forward", lambda: self._forward(captured.x))

    def infer(self, x: Tensor) -> Tensor:
        self._current = None
        return self._infer(x)

    def stats(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        if self._current is None:
            return self._stats(alpha, label_B)
        static_B = self._current.copy_static("label of the stats", label_B)
        statistics = self._current.replay("stats", lambda: self._block.statistics(alpha, static_B))
        sums_KC, counts_K, self._block.means_BC = statistics
        return sums_KC, counts_K

    def losses(
        self, alpha: Tensor, target: Target, scores_BK: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        if self._current is None:
            return self._losses(alpha, target, scores_BK)
        copy = self._current.copy_static
        parts = copy("beta", target.beta_BC), copy("known", target.known_B), copy("label", target.label_B)
        return self._current.replay("losses", lambda: self._losses(alpha, Target(target.round, *parts)))

    def backward(self, terms: Mapping[str, Tensor]) -> None:
        if self._current is None:
            return self._backward(terms)
        return self._current.replay("backward", lambda: self._backward(terms))

    def step_optimizer(self, step: int) -> float:
        learner = self._block.learner
        lr = learner.set_rate(step)
        if self._current is None:
            learner.apply()
        else:
            self._current.finish("update", learner.apply)
        return lr

    def _input_of(self, x: Tensor) -> CapturedInput:
        """The input buffer that is ``x``, or into which ``x`` is copied."""
        for captured in self._inputs:
            own = captured.x
            if (own.data_ptr(), own.shape, own.stride()) == (x.data_ptr(), x.shape, x.stride()):
                return captured
        if len(self._inputs) < MAX_INPUTS:
            self._inputs.append(CapturedInput(x, self._graphs))  # keeps x alive, so that its memory is not reused
            return self._inputs[-1]
        self._inputs[0].x.copy_(x, non_blocking=True)
        return self._inputs[0]


def _detached(result: Any) -> Any:
    """The tensors of a piece's result without their autograd graph."""
    match result:
        case Tensor():
            return result.detach()
        case dict():
            return {name: _detached(value) for name, value in result.items()}
        case tuple():
            return tuple(map(_detached, result))
    return result


@contextmanager
def uncaptured(block: Block, lr: float) -> Iterator[None]:
    """The block with its original methods, for a larger graph that is captured around its step. The caller has set the
    rate to ``lr`` before that graph; inside it ``step_optimizer`` does not set it."""
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
    """The block, deterministic, compiled and captured as ``gpu.*`` says."""
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


def wavefront_graphs(config: Config, device: torch.device) -> Graphs | None:
    """Captures the graphs of wavefront steps; None without ``gpu.capture=true`` on a GPU."""
    return CudaGraphs(device) if device.type == "cuda" and config.gpu.capture is True else None


def compile_parts(block: Block, backend: Backend = "inductor") -> None:
    """Compiles three regions, for the shapes of their inputs: the segment; the statistics; head, objective and hits.
    Names of parameters do not change."""
    name = f"the block that ends with {block.segment.last_unit}"
    compile_part(block.segment, name, backend)
    compile_part(block.statistics, f"the statistics of {name}", backend)
    compile_part(block.local, f"the local loss of {name}", backend)
