"""The device of each rank, the backend of each kind of message, and the settings of the process that computes there,
which are restored when the run ends: a script may start many runs.

All ranks agree on the backends, as their machines may have different GPUs: all ranks together open the group of every
edge, so a rank that chose by its own GPUs alone might wait forever for a rank that chose another backend.

torch has the precision of fp32 products and convolutions twice: by its old switches (``allow_tf32``) and by names
(``fp32_precision``). Setting an old switch sets the names too, but not the other way round, and reading an old switch
that contradicts the name raises RuntimeError: ``cudnn.flags()``, ``torch.get_float32_matmul_precision()``, and the
compiler, which calls these, read one. So both are set, the old switches first.

Blocks, captured steps and their graphs refer to each other in circles, so only the garbage collector can free them,
and it skips objects that ``freeze_garbage`` has frozen.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bllpipe.config import Config
from bllpipe.distributed.process_links import chosen_backends
from bllpipe.distributed.torchrun import RankEnvironment, allow_deterministic_products
from bllpipe.errors import ConfigError
from bllpipe.learn.cuda_graphs import forget_compiled, no_eager_fallback
from bllpipe.messages import Store
from bllpipe.topology import Topology
from bllpipe.utils.console import warn
from bllpipe.utils.process import thaw_garbage

CPU = torch.device("cpu")
PRODUCTS: Any = torch.backends.cuda.matmul
CONVOLUTIONS: Any = torch.backends.cudnn  # an object in place of a module: torch's types do not know all of it


@dataclass(frozen=True)
class Machine:
    """The GPUs of a machine."""

    gpus: int

    @classmethod
    def found(cls) -> Machine:
        """This one."""
        return cls(torch.cuda.device_count() if torch.cuda.is_available() else 0)

    def __str__(self) -> str:
        return "1 GPU" if self.gpus == 1 else f"{self.gpus} GPUs"

    def gpu(self, number: int) -> torch.device:
        """A GPU for process ``number`` of the machine: the GPUs in turn."""
        return torch.device("cuda", number % self.gpus)


def one_device(config: Config, machine: Machine) -> torch.device:
    """The device that all blocks of a single process share."""
    return machine.gpu(0) if _use_gpus(config, machine) else CPU


@dataclass(frozen=True)
class RankDevices:
    """The devices of a job as one rank, which has this ``environment``, knows them from the GPUs of its ``machine``."""

    config: Config
    topology: Topology
    environment: RankEnvironment
    machine: Machine

    def device(self) -> torch.device:
        """The device of this rank. Blocks use the GPUs of their machine in turn; the feedback uses one without a block
        if there is any, else the CPU."""
        if self.topology.is_feedback(self.environment.rank):
            return self._feedback_device()
        return self.machine.gpu(self.environment.local_rank) if _use_gpus(self.config, self.machine) else CPU

    def _feedback_device(self) -> torch.device:
        choice, spare = self.config.feedback.device, self.machine.gpus > self.environment.local_rank
        if choice == "cuda" and not self.machine.gpus:
            raise ConfigError("feedback.device is cuda, but there is no GPU; use --set feedback.device=cpu")
        if choice == "cuda" and not spare and self.has_distinct_gpus():
            raise ConfigError(
                f"feedback.device is cuda, but the blocks take {self.machine}, all there are on this machine; "
                f"use --set feedback.device=cpu, which costs little"
            )
        if choice == "cuda" or (choice == "auto" and spare and self.config.device != "cpu"):
            return self.machine.gpu(self.environment.local_rank)
        return CPU

    def has_distinct_gpus(self) -> bool:
        """Whether no two blocks of this machine share a GPU, so that NCCL can carry activations between them."""
        return _use_gpus(self.config, self.machine) and self.machine.gpus >= self._num_blocks_here()

    def _num_blocks_here(self) -> int:
        first = self.environment.rank - self.environment.local_rank
        ranks = range(first, first + self.environment.local_world_size)
        return sum(rank in self.topology.block_ranks for rank in ranks)

    def check_backends(self) -> None:
        """Raises ConfigError for a kind of message that is set to NCCL, but has an end without a GPU of its own."""
        blocks, backends = self._num_blocks_here(), self.config.backend
        if blocks and backends.alpha == "nccl" and not self.has_distinct_gpus():
            raise ConfigError(
                f"backend.alpha is nccl, which takes one rank a GPU, but {blocks} blocks find {self.machine} on this "
                f"machine; use --set backend.alpha=gloo"
            )
        for kind in ("target", "stats"):
            if getattr(backends, kind) == "nccl" and not self._feedback_has_gpu():
                raise ConfigError(
                    f"backend.{kind} is nccl, but the feedback rank has no GPU of its own: {blocks} blocks find "
                    f"{self.machine} on this machine; use --set backend.{kind}=gloo"
                )

    def _feedback_has_gpu(self) -> bool:
        """Whether the feedback rank has a GPU without a block, as far as this machine shows."""
        on_gpu = self.config.feedback.device != "cpu" and _use_gpus(self.config, self.machine)
        return on_gpu and (not self.environment.on_one_machine or self.machine.gpus >= self.topology.world_size)

    def sharing_warning(self) -> str:
        """The warning for blocks that share a GPU; empty if none do."""
        if not _use_gpus(self.config, self.machine) or self.has_distinct_gpus():
            return ""
        return (
            f"{self._num_blocks_here()} blocks share {self.machine}: their messages go through the memory of the CPU, "
            f"and what they take is no measure of several GPUs; faster on one: --set engine=streams"
        )

    def agreed_backends(self, store: Store) -> dict[str, str]:
        """The backend of every kind of message, the same in all ranks. ``auto`` means NCCL only if every block of every
        machine has a GPU of its own. Waits for all blocks to post whether they have."""
        rank, blocks = self.environment.rank, list(self.topology.block_ranks)
        if rank in blocks:
            store.set(f"own gpu/{rank}", str(int(self.has_distinct_gpus())))
        if rank == 0:  # one rank asks for all, and the others ask for one key
            without = [block for block in blocks if not int(store.get(f"own gpu/{block}"))]
            store.set("own gpu/all", str(int(not without)))
            if self.config.backend.alpha == "auto" and 0 < len(without) < len(blocks):
                warn(
                    f"the machines of ranks {', '.join(map(str, without))} have no GPU for each of their blocks: "
                    f"activations go over gloo between all ranks; NCCL needs a GPU for every block"
                )
        return chosen_backends(self.config.backend, distinct_gpus=store.get("own gpu/all") == b"1")


def _use_gpus(config: Config, machine: Machine) -> bool:
    if config.device == "cuda" and not machine.gpus:
        raise ConfigError("device is cuda, but there is no GPU; use --set device=cpu")
    return config.device != "cpu" and machine.gpus > 0


def compare_devices(rank: int, device: str, store: Store) -> None:
    """Raises ConfigError unless this rank computes on the same kind of ``device`` (cpu, cuda) as the first one, for
    engines in which all ranks exchange messages."""
    if rank == 0:
        store.set("device of the first", device)
    first = store.get("device of the first").decode()
    if first != device:
        raise ConfigError(
            f"rank 0 computes on {first}, this rank on {device}, and no backend carries messages between the two; "
            f"use --set device=cpu, or machines that all have GPUs"
        )


def set_up(config: Config, device: torch.device) -> None:
    """Chooses the kernels of this process, before the first one runs."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)  # without it graphs and pinned memory belong to the first GPU
    set_precision(config.gpu.tf32)
    torch.backends.cudnn.benchmark = not config.gpu.deterministic  # shapes do not change
    if config.gpu.deterministic:
        allow_deterministic_products()
        torch.backends.cudnn.deterministic = True
        # an operation of a user's network may have no deterministic kernel: a warning
        torch.use_deterministic_algorithms(True, warn_only=True)


def set_precision(tf32: bool) -> None:
    """TF32 or IEEE for products and convolutions, whose defaults in torch differ. The CPU's are not changed."""
    name = "tf32" if tf32 else "ieee"
    _set(tf32, tf32, name, name)


def precision_now() -> Callable[[], None]:
    """Returns a function that restores the present precision."""
    before = _now()

    def restore() -> None:
        if _now() != before:
            _set(*before)

    return restore


def _now() -> tuple[bool, bool, str, str]:
    products, convolutions = PRODUCTS.fp32_precision, CONVOLUTIONS.conv.fp32_precision
    return _switch(PRODUCTS, products), _switch(CONVOLUTIONS, convolutions), products, convolutions


def _switch(owner: Any, name: str) -> bool:
    """The old switch, or its equivalent where a script has set the names alone."""
    try:
        with _quiet():
            return bool(owner.allow_tf32)
    except RuntimeError:
        return name == "tf32"


def _set(products: bool, convolutions: bool, name_of_products: str, name_of_convolutions: str) -> None:
    with _quiet():
        PRODUCTS.allow_tf32, CONVOLUTIONS.allow_tf32 = products, convolutions
    PRODUCTS.fp32_precision, CONVOLUTIONS.conv.fp32_precision = name_of_products, name_of_convolutions


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings of the old switches, which torch itself reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*")
        yield


@contextmanager
def put_back(config: Config) -> Iterator[None]:
    """A context for a whole run. At its end the settings of the process are restored and its memory is freed, except
    for the objects to which an error that is not caught yet refers."""
    has_gpu = config.device != "cpu" and torch.cuda.is_available()
    with ExitStack() as inside:
        inside.callback(free_memory, had_frozen=gc.get_freeze_count() > 0)
        inside.callback(precision_now())
        if has_gpu and config.gpu.compile:
            inside.callback(forget_compiled)
            inside.enter_context(no_eager_fallback())
        if torch.cuda.is_initialized():  # or the peak would include runs before this one
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        yield


def free_memory(had_frozen: bool) -> None:
    """Frees unreachable objects, on the GPU too. Objects that the script itself froze before (``had_frozen``) stay."""
    if not had_frozen:
        thaw_garbage()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
