"""Parts of blocks that torch compiles, and never computes otherwise without saying so.

torch.compile keeps what it made by code object, tries one after another, and makes at most eight; behind the eighth it
computes in Python, slowly, and says so once in a log. All networks share the code of ``forward``: of every block, in
training and in tests, for whole and for smaller batches, of every run of a process. So

  - each part is called by a function of its own, which ends with it: three compilations, and three to try
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

Backend = str | Callable[..., Any]  # a name that torch knows, or what makes code of a graph
# Compilations of one code object. A network that breaks the graph is compiled in pieces, whose code all instances of a
# module share: 50 residual units, in training, in tests and for the last test batch.
RECOMPILE_LIMIT = 256
MOST_AGAIN = 8  # compilations for inputs that were there before: some come late, as gradients that are wanted change
NUMBERS = count()
REMEDY = "use --set gpu.compile=false, or change the network (TORCH_LOGS=recompiles says why)"


@contextmanager
def never_in_python() -> Iterator[None]:
    """Inside, in this thread, and in all with an older torch, more is compiled, and what cannot be is an error."""
    from torch._dynamo import config  # takes seconds, and few runs compile

    with config.patch(
        recompile_limit=max(RECOMPILE_LIMIT, config.recompile_limit),
        accumulated_recompile_limit=max(4 * RECOMPILE_LIMIT, config.accumulated_recompile_limit),
        fail_on_recompile_limit_hit=True,
        suppress_errors=False,
    ):
        yield


def forget_compiled() -> None:
    """Forgets all that torch has compiled in this process: between runs, and between cases of a benchmark."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def compile_part(part: nn.Module, name: str, backend: Backend = "inductor") -> None:
    """From now on ``part`` is compiled when it is called, for the shapes that come; its parameters keep their names.

    Calls raise ConfigError, with ``name`` in it, when torch would compute in Python instead, or compile for ever.
    """
    part._compiled_call_impl = Compiled(part, name, backend)


class Compiled:
    """What computes in place of ``part``."""

    def __init__(self, part: nn.Module, name: str, backend: Backend) -> None:
        self._part, self._name = part, name
        self._backend, self._again = CountingBackend(backend), 0
        self._seen: set[object] = set()
        self._compute = torch.compile(_of_its_own(part), backend=self._backend, dynamic=False)

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
                f"would compute in Python from now on; {REMEDY}"
            ) from error
        self._count_again(arguments, self._backend.graphs > before)
        return result

    def _count_again(self, arguments: tuple[object, ...], was_compiled: bool) -> None:
        kind = self._part.training, torch.is_grad_enabled(), *map(_form, arguments)
        self._again += was_compiled and kind in self._seen
        self._seen.add(kind)
        if self._again > MOST_AGAIN:
            raise ConfigError(
                f"gpu.compile is true, but {self._name} was compiled {self._again} times more for inputs that it had "
                f"before: something in it changes from step to step; {REMEDY}"
            )


class CountingBackend:
    """``backend`` for one part, whose graphs it counts. It does not know the part: torch keeps backends."""

    def __init__(self, backend: Backend) -> None:
        from torch._dynamo import lookup_backend

        self._compile, self.graphs = lookup_backend(backend), 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return self._compile(graph, inputs)


def _form(argument: object) -> object:
    """What torch compiles anew for: of tensors, also those of a message, all but the values."""
    if isinstance(argument, Tensor):
        return argument.requires_grad, argument.dtype, argument.shape, argument.stride()
    return tuple(map(_form, vars(argument).values())) if isinstance(argument, Target) else type(argument)


def _of_its_own(part: nn.Module) -> Callable[..., Any]:
    """A function that calls ``part`` and has a code object that no other has."""
    call = part._call_impl

    def compute(*arguments: Any) -> Any:
        return call(*arguments)  # type: ignore[no-untyped-call]  # nn.Module's own

    name = f"part_{next(NUMBERS)}"  # the same code by another name is another code, for dictionaries too
    return FunctionType(compute.__code__.replace(co_name=name), globals(), name, None, compute.__closure__)
