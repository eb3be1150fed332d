"""``sharding: fsdp``: parameters, gradients and optimizer state of a block lie sharded over its replicas, by torch's
FSDP2, whose terms these are.

A unit is gathered before it computes, forward and backward, and its gradients are added up and scattered when they are
complete, so that one unit alone is whole at a time. Of a head every layer is a unit. Each is the root of an FSDP tree
of its own: prefetching, which torch does within a tree, would make two of them whole.

Tensors of a traced network that belong to no module, scalars, and the parameters of an objective stay whole. Their
gradients, like all other sums of a step, are added up by the block's ``ReplicaSum``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bllpipe.distributed.replica_sum import ReplicaSum
from bllpipe.errors import ConfigError, WireError
from bllpipe.learn.block import Block
from bllpipe.learn.heads import layers_of
from bllpipe.learn.optimizer import GRADIENT, Learner
from bllpipe.messages import Passes, Round, Target
from bllpipe.models.registry import check_complete, check_has_values
from bllpipe.models.units import Run, Segment, Unit
from bllpipe.training.timing import Meter
from bllpipe.utils.slices import WholeTensors, gathered, is_sliced, own_part
from bllpipe.utils.tree_sum import Sums, TreeSum


class Sharding:
    """The slices of a block that this rank and the ``others`` hold, which exchange them in ``group``, over gloo."""

    def __init__(self, name: str, others: Sequence[int], group: Any) -> None:
        from torch.distributed.device_mesh import DeviceMesh  # these take seconds

        self.meter = Meter(name)
        self._others, self._mesh = others, DeviceMesh.from_group(group, "cpu")
        self._units: dict[int, ShardedUnit] = {}

    def build(self, units: Sequence[Unit], seed: int) -> Segment:
        """The segment of ``units``. Raises ConfigError for a unit that cannot be sharded."""
        return Segment(units, seed, self._shard_unit)

    def _shard_unit(self, segment: Segment, number: int) -> None:
        """Shards a unit that has been built, before the next one is."""
        if not segment.has_layers:
            raise ConfigError(
                f"sharding is fsdp, but the block that ends with {segment.last_unit} was traced by torch.export, which "
                f"keeps no modules that could be gathered; use --set sharding=none, or a forward that torch.fx can "
                f"trace"
            )
        segment.detach_structure()
        self._units[number] = unit = ShardedUnit(segment.modules_of(number))
        check_complete(unit, segment.unit_ends[number])
        check_has_values(unit, segment.unit_ends[number])
        self._shard(unit)

    def run_units(self, segment: Segment) -> None:
        """From now on the units of ``segment`` are gathered whenever they compute."""

        def wrap(number: int, run: Run) -> Run:
            self._units[number].run = run
            return self._units[number]

        segment.wrap_units(wrap)

    def shard_head(self, head: nn.Module) -> None:
        """Shards the layers of a local head, which are called one by one."""
        for layer in layers_of(head):
            self._shard(layer)

    def _shard(self, module: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard

        scalars = {parameter for parameter in module.parameters() if parameter.dim() == 0}
        if all(parameter in scalars for parameter in module.parameters()):
            return
        sharded: Any = fully_shard(module, mesh=self._mesh, reshard_after_forward=True, ignored_params=scalars)
        sharded.set_gradient_divide_factor(1.0)  # a shard's loss is its part of the mean already
        sharded.set_force_sum_reduction_for_comms(True)  # gloo does not multiply
        sharded.set_custom_all_gather(Communication(all_gather, self.exchanging))
        sharded.set_custom_reduce_scatter(Communication(reduce_scatter, self.exchanging))

    @contextmanager
    def exchanging(self, sent: int) -> Iterator[None]:
        """A context in which this replica sends ``sent`` bytes, and waits for the others. Raises WireError if one of
        them is gone."""
        self.meter.begin()
        try:
            yield
        except RuntimeError as error:
            names = " or ".join(f"rank {rank}" for rank in self._others)
            raise WireError(f"{self.meter.edge}: {names} is gone: the connection was closed") from error
        finally:
            self.meter.end()
        self.meter.sent += sent

    def gather(self, tensor: Tensor) -> Tensor:
        """The whole of a sliced tensor; all replicas call this."""
        with self.exchanging(own_part(tensor).nbytes * len(self._others)):
            return gathered(tensor)

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """``tensors`` by name, for all replicas to read in the order of names."""
        return WholeTensors(tensors, sorted(tensors), self.gather)

    def sums(
        self, port: ReplicaSum, block: Block, held: Sequence[Passes], number: int, input_shape: Sequence[int]
    ) -> SumOfTheRest:
        """The sums of ``port`` over the replicas, which have ``held`` passes, for replica ``number`` of ``block``. From
        now on the gradient norm is that of the whole block, which all replicas compute together."""
        learner = block.learner

        def norm(gradients: Sequence[Tensor]) -> Tensor:
            parts: dict[bool, list[Tensor]] = {True: [], False: []}
            for name, own in learner.optimizer.own.items():
                if own.grad is not None:
                    parts[is_sliced(learner.parameters[name])].append(own.grad)
            sliced, whole = (nn.utils.get_total_norm(parts[kind]).square() for kind in (True, False))
            return (port.add_up(sliced) + whole).sqrt()

        learner.norm = norm
        return SumOfTheRest(port, learner, held, number, partial(idle_pass, block, input_shape))


class ShardedUnit(nn.Module):
    """The modules of a unit, which torch gathers when this is called; it ``run``s the unit."""

    run: Run

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.run(x)
        # the hook that gathers for the backward pass would be lost if the next unit changed a view in place
        return alpha.clone() if alpha._is_view() else alpha


class Communication:
    """A collective of FSDP2, within ``exchanging``, which counts its time and bytes."""

    def __init__(self, collective: Callable[..., Any], exchanging: Callable[[int], Any]) -> None:
        self._collective, self._exchanging = collective, exchanging

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, **options: Any) -> Any:
        with self._exchanging(abs(output_tensor.nbytes - input_tensor.nbytes)):
            return self._collective(output_tensor, input_tensor, group=group, **options)


# torch 2.14 has new names for both
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def reduce_scatter(output_tensor: Tensor, input_tensor: Tensor, **options: Any) -> Any:
    """Torch's own, which frees its input: FSDP2 would hold the gradients of all roots to the end of the backward
    pass."""
    work = _reduce_scatter(output_tensor, input_tensor, **options)
    input_tensor.untyped_storage().resize_(0)
    return work


class SumOfTheRest:
    """The sums over replicas, with ``held`` passes each, whose gradients of sliced parameters are added up already:
    each has its slice of the sum of every pass. ``idle_pass`` gathers all slices, as a pass of a test batch does."""

    def __init__(
        self, port: ReplicaSum, learner: Learner, held: Sequence[Passes], number: int, idle_pass: Callable[[], object]
    ) -> None:
        self._port, self._held, self._number, self._idle_pass, self.sent_bytes = port, held, number, idle_pass, 0
        self._sliced = {f"{GRADIENT}{name}" for name, parameter in learner.parameters.items() if is_sliced(parameter)}

    def total(self, own: TreeSum) -> Sums:
        """As that of ``port``. Passes are added up in the order of shards. A replica that has fewer of a small test
        batch than another gathers as often, as the other waits for its slices."""
        passes = [len(range(each.own.start, min(each.own.stop, own.num_shards))) for each in self._held]
        for _ in range(max(passes) - passes[self._number]):
            self._idle_pass()
        slices: Sums = {}
        for _, sums in sorted(own.nodes.items()):
            for name in self._sliced & sums.keys():
                part = sums.pop(name)
                slices[name] = slices[name].add_(part) if name in slices else part
        total = self._port.total(own)
        self.sent_bytes = self._port.sent_bytes
        return {**total, **slices}


@torch.no_grad()
def idle_pass(block: Block, input_shape: Sequence[int]) -> None:
    """A test pass of two images without content, whose results are dropped."""
    alpha = block.infer(torch.zeros(2, *input_shape))
    label_B = torch.zeros(len(alpha), dtype=torch.int64)
    target = Target(Round("evaluate", 0, size=2), torch.zeros(2, block.message_size), torch.zeros(2), label_B)
    scores_BK, has_gradients = block.scores(alpha), block.config.method == "own"
    with torch.set_grad_enabled(has_gradients):
        block.losses(alpha, target, None if has_gradients else scores_BK)
