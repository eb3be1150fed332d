"""A CPU that records and replays as CUDA graphs do: the operations of torch on the memory that they were recorded on.

No Python runs in a replay. So whatever was not on the tape, a learning rate as a number, say, stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")
ASKS_THE_DEVICE = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2")


class Tape(TorchDispatchMode):
    """What torch did while it was entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.calls: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []
        self._is_fresh = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in ASKS_THE_DEVICE, f"{func._schema.name} cannot be captured"
        results = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, results))
        return results

    def replay(self) -> None:
        """Does it again. The first time it has been done already: a CPU cannot record without doing."""
        if self._is_fresh:
            self._is_fresh = False
            return
        for call in self.calls:
            carry_out_again(*call)


@torch.no_grad()
def carry_out_again(func: Any, args: Sequence[Any], kwargs: dict[str, Any], results: Any) -> None:
    """Does once more what gave ``results``, and puts there what comes of it."""
    if any(given.alias_info and not given.alias_info.is_write for given in func._schema.returns):
        return  # a view stays where it is
    again = func(*args, **kwargs)
    if all(given.alias_info is None for given in func._schema.returns):
        for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)


class TapeGraphs:
    """The tapes of one block."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def record(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        self.tapes.append(Tape())
        with self.tapes[-1] as tape:
            result = compute()
        return tape.replay, result
