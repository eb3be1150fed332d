"""Compiled parts of blocks, with an error where torch.compile would silently fall back to eager Python.

torch.compile caches compilations by code object, tries one after another, and makes at most eight; after the eighth it
runs eager Python, slowly, and logs this once. All networks share the code of ``forward``: every block, in training and
in tests, for whole and for smaller batches, in every run of a process. So

  - each part is called by its own function object, freed with the part: three compilations, and three cache entries
  - the limit, which other frames still count towards when a network breaks the graph, is raised around the calls
  - reaching it is an error, and so is a part that is compiled again and again for inputs that it had before
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.errors import ConfigError
from bllpipe.messages import Target

Backend = str | Callable[..., Any]  # a name registered with torch, or a compiler of graphs
# Compilations of one code object. A network that breaks the graph is compiled in pieces, whose code all instances of a
# module share: 50 residual units, in training, in tests and for the last test batch.
RECOMPILE_LIMIT = 256
MOST_AGAIN = 8  # recompilations for earlier inputs: some come late, as requires_grad of inputs changes
NUMBERS = count()
ADVICE = "use --set gpu.compile=false, or change the network (TORCH_LOGS=recompiles says why)"


@contextmanager
def never_in_python() -> Iterator[None]:
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

    Calls raise ConfigError, with ``name`` in it, when torch would run eager Python instead, or compile for ever.
    """
    part._compiled_call_impl = Compiled(part, name, backend)


class Compiled:
    """The compiled call of ``part``."""

    def __init__(self, part: nn.Module, name: str, backend: Backend) -> None:
        self._part, self._name = part, name
        self._backend, self._again = CountingBackend(backend), 0
        self._seen: set[object] = set()
        self._compute = torch.compile(_unique_function(part), backend=self._backend, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit

        before = self._backend.graphs
        try:
            if config.fail_on_recompile_limit_hit and config.recompile_limit >= RECOMPILE_LIMIT:  # for the whole run
                result = self._compute(*arguments)
            else:
                with never_in_python():
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
        self._again += was_compiled and kind in self._seen
        self._seen.add(kind)
        if self._again > MOST_AGAIN:
            raise ConfigError(
                f"gpu.compile is true, but {self._name} was compiled {self._again} times more for inputs that it had "
                f"before: something in it changes from step to step; {ADVICE}"
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
