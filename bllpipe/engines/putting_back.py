"""What a run changes in its process, and gives back when it ends, well or not: a script may start many.

Blocks, captured steps and their graphs refer to each other in circles, so only the garbage collector can free them,
and it does not look at what ``freeze_garbage`` has frozen.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
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
    restore = settings_now()
    with ExitStack() as inside:
        inside.callback(free_memory, had_frozen=gc.get_freeze_count() > 0)
        inside.callback(restore)
        if has_gpu and config.gpu.compile:
            inside.callback(forget_compiled)
            inside.enter_context(never_in_python())
        if torch.cuda.is_initialized():  # the peak of this run is not that of one before
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        yield


def settings_now() -> Callable[[], None]:
    """What sets the switches of torch that runs change to what they are now."""
    threads = torch.get_num_threads()
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()

    precision = precision_now()

    def restore() -> None:
        precision()
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)

    return restore


def free_memory(had_frozen: bool) -> None:
    """Frees what nobody refers to any more, on the GPU too; a script that ``had_frozen`` garbage itself keeps that."""
    if not had_frozen:
        thaw_garbage()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
