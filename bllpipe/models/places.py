"""The places of a traced network at which it can be cut: those where exactly one tensor is alive.

A tensor is alive at a place if an operation before it makes the tensor and an operation after it reads the tensor.
Parameters and buffers are read where they are used, and what depends on them alone is computed there. A number that
lives across a place is no obstacle if it is the size of the batch, which the tensor has too, or the device. Which nodes
are tensors, and of which shape, is found by running the graph on tensors without values, with two batch sizes.

Heads, statistics and messages read [B, C], [B, T, C] and [B, C, H, W]. Where the network has its channels in another
dimension, a block ends with a permutation, and the next one begins with its inverse.

Shapes: B images, C channels, T tokens, H x W positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import _disable_current_modes

from bllpipe.models.tracing import Traced, mode

BATCHES = (2, 3)
RANDOM = ("rand", "dropout", "bernoulli", "normal", "multinomial", "stochastic", "poisson", "exponential")
CHANNELS_FIRST = ("conv", "batch_norm", "group_norm", "pool2d", "instance_norm")  # in names of functions
CHANNELS_LAST = ("linear", "layer_norm", "layernorm", "rms_norm")
Values = tuple[Any, Any]  # of a node, for both batch sizes: tensors without values, or Python's own


@dataclass(frozen=True)
class Place:
    """A place after ``node``, whose tensor alone is alive there. ``position``: of the last node before it. ``shape`` is
    that of alpha, without the batch, after ``permutation`` of the tensor, if there is any."""

    node: fx.Node
    position: int
    name: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None = None
    channels_last: bool = False

    @property
    def form(self) -> tuple[Any, ...]:
        """What both modes must have alike."""
        return self.shape, self.permutation


@dataclass
class Analysis:
    """A traced network with the values of its nodes; ``keys`` identify the parameters and buffers of each node."""

    traced: Traced
    modules: dict[str, nn.Module]
    nodes: list[fx.Node]
    values: dict[fx.Node, Values]
    keys: dict[fx.Node, set[Any]]
    free: set[fx.Node] = field(default_factory=set)  # independent of the images, and computed where it is used
    alive: list[list[fx.Node]] = field(default_factory=list)  # after each node, of the others
    spans: dict[Any, tuple[int, int]] = field(default_factory=dict)  # first and last node that reads a parameter

    def is_tensor(self, node: fx.Node) -> bool:
        return isinstance(self.values[node][0], Tensor)

    def rebuilt(self, node: fx.Node) -> str | None:
        """How a value is found from any tensor of activations: ``batch`` or ``device``; None if it is not."""
        first, second = self.values[node]
        if isinstance(first, torch.device):
            return "device"
        return "batch" if type(first) is int and (first, second) == BATCHES else None


def analyse(traced: Traced, model: nn.Module, training: bool, image_shape: Sequence[int]) -> Analysis:
    """Runs the graph, and finds what is alive where. Errors are those of the network."""
    nodes = list(traced.graph.nodes)
    first, second = (_values(traced, model, training, (size, *image_shape)) for size in BATCHES)
    values = {node: (first[node], second[node]) for node in nodes}
    keys = state_keys(model)
    analysis = Analysis(traced, dict(model.named_modules()), nodes, values, {node: _read(node, keys) for node in nodes})
    dependent = set[fx.Node]()
    for node in nodes:
        if node.op in ("placeholder", "output") or any(each in dependent for each in node.all_input_nodes):
            dependent.add(node)
        elif not _is_impure(node) and all(each in analysis.free for each in node.all_input_nodes):
            analysis.free.add(node)
    position = {node: number for number, node in enumerate(nodes)}
    last = {node: max([position[user] for user in node.users], default=-1) for node in nodes}
    living: list[fx.Node] = []
    for number, node in enumerate(nodes):
        living = [each for each in [*living, node] if last[each] > number and each not in analysis.free]
        analysis.alive.append(living)
        for key in _keys_of(analysis, node) if node not in analysis.free else ():
            analysis.spans[key] = (analysis.spans.get(key, (number, number))[0], number)
    return analysis


def state_keys(model: nn.Module) -> dict[str, Any]:
    """What identifies the memory of each parameter and buffer, by name: the same for two names of one tensor."""
    found: dict[str, Any] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        in_memory = tensor.numel() and not tensor.is_meta and not tensor.is_sparse
        found[name] = (tensor.untyped_storage()._cdata, tensor.storage_offset()) if in_memory else id(tensor)
    return found


def places(analysis: Analysis) -> list[Place]:
    """All places of a network in one mode at which it can be cut, in order; the first one for each tensor."""
    channels, found, seen = _channels(analysis), list[Place](), set[fx.Node]()
    last = len(analysis.nodes) - 1
    for number, alive in enumerate(analysis.alive[:last]):
        tensors = [node for node in alive if analysis.rebuilt(node) is None]
        if len(tensors) != 1 or tensors[0].op == "placeholder" or tensors[0] in seen:
            continue
        (node,) = tensors
        if not analysis.is_tensor(node) or _is_result(analysis, node) or shared([(analysis, number)]):
            continue
        if (place := _place(analysis, node, number, channels.get(node))) is not None:
            found.append(place)
            seen.add(node)
    return found


def shared(parts: Sequence[tuple[Analysis, int]]) -> set[Any]:
    """The parameters and buffers, as in ``state_keys``, that are read before and after a place in one mode or another:
    the position of the place in each."""
    before, after = set[Any](), set[Any]()
    for analysis, position in parts:
        before |= {key for key, (first, _) in analysis.spans.items() if first <= position}
        after |= {key for key, (_, last) in analysis.spans.items() if last > position}
    return before & after


def _keys_of(analysis: Analysis, node: fx.Node) -> set[Any]:
    """The parameters and buffers that ``node`` reads, with those of the free nodes that it reads."""
    found, waiting = set(analysis.keys[node]), list(node.all_input_nodes)
    while waiting:
        other = waiting.pop()
        if other in analysis.free:
            found |= analysis.keys[other]
            waiting += other.all_input_nodes
    return found


def result(analysis: Analysis) -> Any:
    """What the network returns: a node, or anything else."""
    value = analysis.nodes[-1].args[0]
    alone = isinstance(value, (list, tuple)) and len(value) == 1 and analysis.traced.is_exported
    return value[0] if alone else value  # type: ignore[index]  # a sequence of one, then


def class_token_lengths(analysis: Analysis) -> set[int]:
    """The numbers of tokens of which the network reads the first alone: x[:, 0]."""
    found, index = set[int](), (slice(None, None, None), 0)
    for node in analysis.nodes:
        source = next(iter(node.all_input_nodes), None)
        if source is None or not analysis.is_tensor(source) or analysis.values[source][0].dim() != 3:
            continue
        name, rest = function_name(node), node.args[1:]
        if (name == "getitem" and rest[0] in (index, (*index, slice(None, None, None)))) or (
            name == "select" and rest == (1, 0)
        ):
            found.add(int(analysis.values[source][0].shape[1]))
    return found


def _is_result(analysis: Analysis, node: fx.Node) -> bool:
    return all(user.op == "output" for user in node.users)


def _place(analysis: Analysis, node: fx.Node, position: int, channel: int | None) -> Place | None:
    """The place after ``node``; None for a tensor that no head can read."""
    first, second = analysis.values[node]
    size = first.dim()
    batches = (first.shape[0], second.shape[0]) if size else (0, 0)
    if not first.is_floating_point() or batches != BATCHES or first.shape[1:] != second.shape[1:]:
        return None
    if size not in (2, 3, 4):
        return None
    where = size - 1 if size < 4 else 1  # of the channels, where heads read them
    if channel is None or channel == where or size == 2:
        permutation = None
    else:
        others = [dim for dim in range(1, size) if dim != channel]
        permutation = (0, channel, *others) if size == 4 else (0, *others, channel)
    shape = first.shape if permutation is None else [first.shape[dim] for dim in permutation]
    is_last = size == 4 and permutation is None and not first.is_contiguous()
    is_last = is_last and first.is_contiguous(memory_format=torch.channels_last)
    return Place(node, position, analysis.traced.names[node], tuple(shape[1:]), permutation, is_last)


def _is_impure(node: fx.Node) -> bool:
    """Whether a node changes a tensor in place, draws random numbers, or may do so."""
    if node.op == "call_module":
        return True
    name = function_name(node)
    return (name.endswith("_") and not name.endswith("__")) or any(word in name for word in RANDOM)


def function_name(node: fx.Node) -> str:
    """``permute``, ``add_``: without the overload of torch.ops."""
    if isinstance(node.target, str):
        return node.target
    name = getattr(node.target, "__name__", str(node.target))
    return str(name).split(".")[0] if isinstance(node.target, torch._ops.OpOverload) else str(name)


def _read(node: fx.Node, keys: Mapping[str, Any]) -> set[Any]:
    if node.op == "get_attr":
        return {keys[str(node.target)]} if node.target in keys else set()
    if node.op == "call_module":
        return {key for name, key in keys.items() if name.startswith(f"{node.target}.")}
    return set()


class _Probe(fx.Interpreter):
    """Runs a graph, without values if ``empty``; keeps the value of every node, tensors without their memory."""

    def __init__(self, model: nn.Module, traced: Traced, empty: bool) -> None:
        super().__init__(model, graph=traced.graph)
        self.constants, self.empty, self.found = traced.constants, empty, dict[fx.Node, Any]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n] = _without_memory(value) if isinstance(value, Tensor) else value
        return value

    def fetch_attr(self, target: str) -> Any:
        value = self.constants[target] if target in self.constants else super().fetch_attr(target)
        return _without_memory(value) if self.empty and isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_norm = self.empty and target is nn.functional.batch_norm and args
        return torch.empty_like(args[0]) if is_norm else super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.empty:
            return super().call_module(target, args, kwargs)
        module = self.submodules[target]
        if isinstance(module, _BatchNorm):  # without values torch does it in Python, with the help of its compiler
            return torch.empty_like(args[0])
        state = (*module.named_parameters(), *module.named_buffers())
        return torch.func.functional_call(module, {name: _without_memory(each) for name, each in state}, args, kwargs)


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _values(traced: Traced, model: nn.Module, training: bool, shape: tuple[int, ...]) -> dict[fx.Node, Any]:
    """The value of every node for images of ``shape``."""
    with torch.no_grad(), _disable_current_modes():
        try:
            with mode(model, training):
                probe = _Probe(model, traced, empty=True)
                probe.run(torch.empty(shape, device="meta"))
        except Exception:  # an operation that needs values, of torch or of a module
            copy = deepcopy(model).cpu()
            with mode(copy, training), torch.random.fork_rng(devices=[]):
                probe = _Probe(copy, traced, empty=False)
                probe.run(torch.randn(shape))
    return probe.found


def _channels(analysis: Analysis) -> dict[fx.Node, int]:
    """The dimension of the channels of each tensor, as the operations around it tell."""
    found: dict[fx.Node, int] = {}
    for node in analysis.nodes:
        if not analysis.is_tensor(node) or node.op == "placeholder":
            continue
        size = analysis.values[node][0].dim()
        if (pinned := _pinned(node, size, analysis.modules)) is not None:
            found[node] = pinned
        elif (inherited := _inherited(analysis, node, found)) is not None:
            found[node] = inherited
    for node in reversed(analysis.nodes):  # what is known of a result is known of an input of the same shape
        if not analysis.is_tensor(node):
            continue
        for other in node.all_input_nodes:
            if other in found or not analysis.is_tensor(other):
                continue
            own, theirs = analysis.values[node][0], analysis.values[other][0]
            if node in found and own.shape == theirs.shape and _dims(node, own.dim()) is None:
                found[other] = found[node]
            elif (reads := _pinned(node, theirs.dim(), analysis.modules)) is not None and theirs.dim() > 1:
                found[other] = reads
    return found


def _pinned(node: fx.Node, size: int, modules: Mapping[str, nn.Module]) -> int | None:
    """The dimension of the channels that an operation itself has, for tensors of ``size`` dimensions."""
    if node.op == "call_module":
        module = modules.get(str(node.target))
        if isinstance(module, (_ConvNd, _BatchNorm, nn.GroupNorm)) or "Pool2d" in type(module).__name__:
            return 1
        return size - 1 if type(module) in (nn.LayerNorm, nn.Linear, nn.MultiheadAttention) else None
    if node.op in ("call_function", "call_method"):
        name = function_name(node)
        if any(word in name for word in CHANNELS_FIRST):
            return 1
        if any(word in name for word in CHANNELS_LAST):
            return size - 1
    return None


def _inherited(analysis: Analysis, node: fx.Node, found: Mapping[fx.Node, int]) -> int | None:
    """The dimension of the channels of the first input for which it is known, moved as the operation moves it."""
    own: Tensor = analysis.values[node][0]
    for other in node.all_input_nodes:
        if other not in found:
            continue
        theirs, channel = analysis.values[other][0], found[other]
        if (dims := _dims(node, theirs.dim())) is not None:
            return dims.index(channel) if channel in dims else None
        if own.dim() == theirs.dim() and own.shape[channel] == theirs.shape[channel]:
            return channel
        if channel == theirs.dim() - 1 and own.dim() > 1 and own.shape[-1] == theirs.shape[-1]:
            return own.dim() - 1
        if channel == 1 and own.dim() > 2 and own.shape[1] == theirs.shape[1]:
            return 1
    return None


def _dims(node: fx.Node, size: int) -> list[int] | None:
    """The order in which a permutation or a transposition has the ``size`` dimensions of its input."""
    name, rest = function_name(node), list(node.args[1:])
    rest += [value for key, value in node.kwargs.items() if key in ("dims", "dim0", "dim1")]
    flat: list[Any] = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else rest
    if name not in ("permute", "transpose", "swapaxes") or not all(type(each) is int for each in flat):
        return None
    order = [int(each) % size for each in flat]
    if name == "permute":
        return order
    dims = list(range(size))
    dims[order[0]], dims[order[1]] = order[1], order[0]
    return dims
