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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bllpipe.distributed.replica_sum import ReplicaSum
from bllpipe.engines.job import Job
from bllpipe.errors import ConfigError, WireError
from bllpipe.learn.heads import layers_of
from bllpipe.learn.optimizer import GRADIENT, Learner
from bllpipe.messages import Round
from bllpipe.models.registry import check_complete, check_has_values
from bllpipe.models.units import Run, Segment, Unit
from bllpipe.training.timing import Meter
from bllpipe.utils.slices import WholeTensors, gathered, is_sliced
from bllpipe.utils.tree_sum import Sums, TreeSum


class Sharding:
    """The slices of a block that its replicas hold, which exchange them in ``group``, over gloo. Raises ConfigError for
    test batches of which they have unequally many shards."""

    def __init__(self, job: Job, block: int, group: Any) -> None:
        from torch.distributed.device_mesh import DeviceMesh  # these take seconds

        _check_equal_passes(job)
        self.meter = Meter(f"slices of block {block}")
        self._ranks, self._mesh = job.topology.ranks_of(block), DeviceMesh.from_group(group, "cpu")
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
            names = " or ".join(f"rank {rank}" for rank in self._ranks)
            raise WireError(f"{self.meter.edge}: {names} is gone: the connection was closed") from error
        finally:
            self.meter.end()
        self.meter.sent += sent

    def gather(self, tensor: Tensor) -> Tensor:
        """The whole of a sliced tensor; all replicas call this."""
        with self.exchanging(tensor.nbytes // len(self._ranks) * (len(self._ranks) - 1)):
            return gathered(tensor)

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """``tensors`` by name, for all replicas to read in the order of names."""
        return WholeTensors(tensors, sorted(tensors), self.gather)

    def sums(self, port: ReplicaSum, learner: Learner) -> SumOfTheRest:
        """The sums of ``port`` over the replicas, for a block that lies sharded. From now on the gradient norm of
        ``learner`` is that of the whole block; all replicas compute it together."""

        def norm(gradients: Sequence[Tensor]) -> Tensor:
            parts: dict[bool, list[Tensor]] = {True: [], False: []}
            for name, own in learner.optimizer.own.items():
                if own.grad is not None:
                    parts[is_sliced(learner.parameters[name])].append(own.grad)
            sliced, whole = (nn.utils.get_total_norm(parts[kind]).square() for kind in (True, False))
            return (port.add_up(sliced) + whole).sqrt()

        learner.norm = norm
        return SumOfTheRest(port, learner)


def _check_equal_passes(job: Job) -> None:
    """Raises ConfigError for a last test batch of which not all replicas of a block have equally many shards: those
    that compute wait for the slices of the others."""
    size, number = job.config.data.batch_size, job.config.num_shards
    last = Round("evaluate", 0, size=job.spec.num_test % size or min(size, job.spec.num_test))
    found = len(last.shards(number))
    if found < number:
        raise ConfigError(
            f"sharding is fsdp, for which all replicas of a block need equally many shards, but the last test batch "
            f"has {last.size} images, {found} of {number} shards; use another data.batch_size, or fewer shards"
        )


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
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class SumOfTheRest:
    """The sums over replicas whose gradients of sliced parameters are added up already: each has its slice of the sum
    of every pass."""

    def __init__(self, port: ReplicaSum, learner: Learner) -> None:
        self._port, self.sent_bytes = port, 0
        self._sliced = {f"{GRADIENT}{name}" for name, parameter in learner.parameters.items() if is_sliced(parameter)}

    def total(self, own: TreeSum) -> Sums:
        """As that of ``port``. All replicas have equally many passes, and add them up in the order of shards."""
        slices: Sums = {}
        for _, sums in sorted(own.nodes.items()):
            for name in self._sliced & sums.keys():
                part = sums.pop(name)
                slices[name] = slices[name].add_(part) if name in slices else part
        total = self._port.total(own)
        self.sent_bytes = self._port.sent_bytes
        return {**total, **slices}
