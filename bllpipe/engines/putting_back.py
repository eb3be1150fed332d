"""What a run changes in its process, and gives back when it ends, well or not: a script may start many.

Blocks, captured steps and their graphs refer to each other in circles, so only the garbage collector can free them,
and it does not look at what ``freeze_garbage`` has frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from bllpipe.config import Config
from bllpipe.engines.compiled import forget_compiled, never_in_python
from bllpipe.engines.precision import precision_now
from bllpipe.run.memory import thaw_garbage


@contextmanager
def put_back(config: Config) -> Iterator[None]:
    """Around a whole run: inside, its process computes as the run wants it; behind it, it is as it was before, and has
    its memory back. An error that is still on its way keeps what it has seen until it is caught."""
    has_gpu = config.device != "cpu" and torch.cuda.is_available()
    with ExitStack() as inside:
        inside.callback(free_memory, had_frozen=gc.get_freeze_count() > 0)
        inside.callback(precision_now())
        if has_gpu and config.gpu.compile:
            inside.callback(forget_compiled)
            inside.enter_context(never_in_python())
        if torch.cuda.is_initialized():  # the peak of this run is not that of one before
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        yield


def free_memory(had_frozen: bool) -> None:
    """Frees what nobody refers to any more, on the GPU too; a script that ``had_frozen`` garbage itself keeps that."""
    if not had_frozen:
        thaw_garbage()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
