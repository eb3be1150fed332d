"""A network that computes in its own ``forward``, as units: the stretches of operations between the places at which it
can be cut.

The code of a stretch is made from the traced graphs, one for training and one for evaluation; a place counts if both
have it. The modules and parameters of a stretch keep their names in the network, and are the same objects. Before
anything is trained, the stretches in a row are compared with the network itself, bit by bit, in both modes.

A unit is named after the largest module that ends with it, such as ``layer1.0`` (containers, as ``layer1``, do not
count), or after its last operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes

from bllpipe.errors import ConfigError
from bllpipe.models.places import (
    Analysis,
    Place,
    analyse,
    class_token_lengths,
    function_name,
    places,
    result,
    shared,
    state_keys,
)
from bllpipe.models.tracing import BY_HAND, NotTraced, Traced, check_signature, does_not_fit, export, first_line, trace
from bllpipe.models.units import Layer, Segment, Stretch, Unit

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
MODES = (True, False)  # training and evaluation
NUM_CHECKED = 2  # images of the comparison: a batch norm with one position needs two
Code = Callable[[nn.Module, Tensor], Tensor]


class _NoPlace(ConfigError):
    """No place has exactly one tensor alive, as far as was traced."""


@dataclass(frozen=True)
class StretchPlan:
    """One unit: its code in training and in evaluation mode, and what it needs of the network, by name. ``shape`` is
    that of its output, without the batch; ``is_random`` if it draws random numbers in training; ``has_class_token`` if
    the output are tokens of which the network reads the first alone in the end."""

    name: str
    training: Code
    evaluation: Code
    modules: tuple[str, ...]
    tensors: tuple[str, ...]
    constants: Mapping[str, Tensor]
    unsaved: frozenset[str]
    shape: tuple[int, ...]
    is_random: bool
    has_class_token: bool


@dataclass(frozen=True)
class Plan:
    """All units of a network; independent of its weights. ``has_modules`` unless torch.export has traced it."""

    stretches: tuple[StretchPlan, ...]
    used_twice: frozenset[str]  # modules without parameters that several units use
    has_modules: bool

    def units(self, model: nn.Module) -> list[Unit]:
        """The units of ``model``, a network of the form that was traced. They share its modules."""
        return [
            Unit(each.name, (Layer(each.name, self._maker(model, each)),), True, each.shape, each.has_class_token)
            for each in self.stretches
        ]

    def _maker(self, model: nn.Module, plan: StretchPlan) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            parts: dict[str, nn.Module | Tensor] = {}
            for path in plan.modules:
                module = model.get_submodule(path)
                # a flag of a mode each: blocks train and test at different times
                parts[path] = copy(module) if path in self.used_twice else module
            for path in plan.tensors:
                owner, _, name = path.rpartition(".")
                parts[path] = getattr(model.get_submodule(owner), name)
            codes = plan.training, plan.evaluation
            return Stretch({**parts, **plan.constants}, *codes, plan.unsaved, plan.is_random, self.has_modules)

        return make


def plan_network(model: nn.Module, image_shape: Sequence[int], source: str) -> Plan:
    """The units of ``model`` for images of ``image_shape``.

    Raises ConfigError, which begins with ``source``, for a network that cannot be cut: it says where, and what is
    alive there.
    """
    check_signature(model, source)
    try:
        traced = [trace(model, training, source) for training in MODES]
        plan = _planned(model, _analysed(model, traced, image_shape, source), source)
        _compare(model, plan, image_shape, source)
    except NotTraced as error:
        first: ConfigError = error
    except _NoPlace as error:
        if not any(each.opaque for each in traced):
            raise
        first = error
    else:
        return plan
    try:
        traced = [export(model, training, image_shape, source) for training in MODES]
        plan = _planned(model, _analysed(model, traced, image_shape, source), source)
        _compare(model, plan, image_shape, source)
    except ConfigError as error:
        raise first from error
    return plan


def _analysed(model: nn.Module, traced: Sequence[Traced], shape: Sequence[int], source: str) -> list[Analysis]:
    """Both modes with the values of their nodes. Raises ConfigError for images that do not fit, and for other results
    than one tensor."""
    found = []
    for each, training in zip(traced, MODES, strict=True):
        try:
            analysis = analyse(each, model, training, shape)
        except Exception as error:  # of the network's own operations
            raise does_not_fit(model, shape, error, source) from error
        scores = result(analysis)
        if not isinstance(scores, fx.Node) or not analysis.is_tensor(scores):
            kind = type(analysis.values[scores][0] if isinstance(scores, fx.Node) else scores).__name__
            kind = kind.removeprefix("immutable_")  # as fx calls its dicts and lists
            raise ConfigError(
                f"{source} {type(model).__name__}, which returns a {kind} in {'training' if training else 'evaluation'}"
                f" mode; expected class scores [B, K] alone; switch off auxiliary outputs, as model.args.aux_logits="
                f"false does for torchvision's GoogLeNet and Inception, or wrap it in a module that selects the scores"
            )
        found.append(analysis)
    return found


def _planned(model: nn.Module, analyses: Sequence[Analysis], source: str) -> Plan:
    """The units between the places that both modes have and that divide the state in the same way."""
    training, evaluation = (_unit_names(model, analysis, places(analysis)) for analysis in analyses)
    names, pairs, after = list[str](), list[tuple[Place, Place]](), -1
    for name, place in training.items():
        other = evaluation.get(name)
        if other is None or other.position <= after or place.form != other.form:
            continue
        if not shared(list(zip(analyses, (place.position, other.position), strict=True))):
            names.append(name)
            pairs.append((place, other))
            after = other.position
    if not names:
        raise _NoPlace(nowhere(model, analyses[0], source))
    return _plan(model, analyses, names, pairs)


def _unit_names(model: nn.Module, analysis: Analysis, found: Sequence[Place]) -> dict[str, Place]:
    """The name of each place: the largest module that ends there and is no container, or the last operation."""
    last = dict[str, fx.Node]()  # of each module
    for node in (node for node in analysis.nodes if node not in analysis.free):
        path = analysis.traced.names[node]
        for end in [number for number, letter in enumerate(path) if letter == "."]:
            last[path[:end]] = node
    kinds, named = {name: type(module) for name, module in model.named_modules()}, dict[str, Place]()
    for place in found:
        path = analysis.traced.names[place.node]
        parents = [path[:end] for end, letter in enumerate(path) if letter == "."]
        ending = [each for each in parents if last[each] is place.node and kinds.get(each) not in CONTAINERS]
        name = next((each for each in ending if each in kinds and each not in named), path)
        named[name] = place
    return named


def nowhere(model: nn.Module, analysis: Analysis, source: str) -> str:
    """Why a network cannot be cut anywhere: what is alive where the fewest tensors are, or which tensors are shared."""
    candidates = [
        (len(alive), number) for number, alive in enumerate(analysis.alive[:-1]) if number > 0 and len(alive) > 1
    ]
    for number, alive in enumerate(analysis.alive[:-1]):
        if len(alive) == 1 and alive[0].op != "placeholder" and (keys := shared([(analysis, number)])):
            own = state_keys(model)
            names = [name for name in own if own[name] in keys]
            return (
                f"{source} {type(model).__name__}, which reads {', '.join(names[:4])} before and after every place "
                f"where one tensor alone is alive; expected parameters that one block has for itself, as blocks learn "
                f"independently; use a copy for each use, or --set method=bp --set engine=single --set blocks=1"
            )
    if not candidates:
        return (
            f"{source} {type(model).__name__}, which has no place between two of its operations where one tensor "
            f"[B, C], [B, T, C] or [B, C, H, W] is alive; expected at least one; {BY_HAND.removeprefix('or ')}"
        )
    _, number = min(candidates)
    tensors = ", ".join(_shown(analysis, node) for node in analysis.alive[number][:4])
    return (
        f"{source} {type(model).__name__}, in which no place has one tensor alive alone: after "
        f"{analysis.traced.names[analysis.nodes[number]]}, where the fewest are, it is {tensors}; expected at least "
        f"one place that one tensor [B, C], [B, T, C] or [B, C, H, W] passes; use a network with such a place"
    )


def _shown(analysis: Analysis, node: fx.Node) -> str:
    value, name = analysis.values[node][0], analysis.traced.names[node]
    if isinstance(value, Tensor):
        return f"{name} {list(value.shape[1:])}"
    return f"{name} (a {type(value).__name__})"


def _plan(
    model: nn.Module, analyses: Sequence[Analysis], names: Sequence[str], pairs: Sequence[tuple[Place, Place]]
) -> Plan:
    """The code and the parts of every unit."""
    chosen = [[pair[number] for pair in pairs] for number in range(len(MODES))]
    codes = [_codes(model, analysis, of_mode) for analysis, of_mode in zip(analyses, chosen, strict=True)]
    divided = [_divided(analysis, of_mode) for analysis, of_mode in zip(analyses, chosen, strict=True)]
    scores = result(analyses[0])
    all_names = [*names, _last_name(model, analyses[0].traced.names[scores], names)]
    shapes = [*(place.shape for place, _ in pairs), tuple(analyses[0].values[scores][0].shape[1:])]
    parts = [
        {str(node.target) for nodes in unit for node in nodes if node.op in ("call_module", "get_attr")}
        for unit in zip(*divided, strict=True)
    ]
    parts[-1] |= _unread(model, parts)
    constants = {**analyses[1].traced.constants, **analyses[0].traced.constants}
    with_class_token = class_token_lengths(analyses[0])
    modules, saved = {name for name, _ in model.named_modules()}, model.state_dict().keys()
    stretches = tuple(
        StretchPlan(
            name,
            codes[0][number],
            codes[1][number],
            tuple(sorted(parts[number] & modules)),
            tuple(sorted(parts[number] - modules - constants.keys())),
            {each: constants[each] for each in parts[number] & constants.keys()},
            frozenset(parts[number] - modules - saved),
            shapes[number],
            any(_is_random(node) for node in divided[0][number]),
            len(shapes[number]) == 2 and shapes[number][0] in with_class_token,
        )
        for number, name in enumerate(all_names)
    )
    uses = [path for each in stretches for path in each.modules]
    return Plan(stretches, frozenset(path for path in uses if uses.count(path) > 1), not analyses[0].traced.is_exported)


def _last_name(model: nn.Module, path: str, names: Sequence[str]) -> str:
    """The last unit is named as the others are, after what ends in the scores; never as another one."""
    parents = [path[:end] for end, letter in enumerate(path) if letter == "."]
    kinds = {name: type(module) for name, module in model.named_modules()}
    fitting = [each for each in parents if each in kinds and kinds[each] not in CONTAINERS and each not in names]
    return next((each for each in [*fitting, path] if each not in names), f"{path}_end")


def _unread(model: nn.Module, parts: Sequence[set[str]]) -> set[str]:
    """Parameters and buffers that no operation reads; they are in the network's state, too."""
    read = set[str]().union(*parts)
    return {
        name
        for name in model.state_dict()
        if name not in read and not any(name.startswith(f"{path}.") for path in read)
    }


def _is_random(node: fx.Node) -> bool:
    name = function_name(node)
    rate = next((each for each in [*node.args[1:], *node.kwargs.values()] if isinstance(each, float)), 1.0)
    return node.op != "call_module" and rate > 0 and ("dropout" in name or "stochastic" in name or "bernoulli" in name)


def _divided(analysis: Analysis, chosen: Sequence[Place]) -> list[list[fx.Node]]:
    """The nodes of every unit, with the free nodes that they read; without input and output."""
    ends = [-1, *(place.position for place in chosen), len(analysis.nodes) - 1]
    found = []
    for first, end in pairwise(ends):
        nodes = [
            node
            for node in analysis.nodes[first + 1 : end + 1]
            if node not in analysis.free and node.op not in ("placeholder", "output")
        ]
        free, waiting = list[fx.Node](), [other for node in nodes for other in node.all_input_nodes]
        waiting += analysis.nodes[-1].all_input_nodes if end == ends[-1] else []
        while waiting:
            other = waiting.pop()
            if other in analysis.free and other not in free:
                free.append(other)
                waiting += other.all_input_nodes
        found.append([*free, *nodes])
    return found


def _codes(model: nn.Module, analysis: Analysis, chosen: Sequence[Place]) -> list[Code]:
    """The function of every unit in one mode."""
    before: list[Place | None] = [None, *chosen]
    after: list[Place | None] = [*chosen, None]
    return [
        _code(model, analysis, start, end, nodes)
        for start, end, nodes in zip(before, after, _divided(analysis, chosen), strict=True)
    ]


def _code(
    model: nn.Module, analysis: Analysis, start: Place | None, end: Place | None, nodes: Sequence[fx.Node]
) -> Code:
    """The nodes of one unit as a function (module that has the parts, input) -> output."""
    graph, own = fx.Graph(), set(nodes)
    x = graph.placeholder("x")
    entering = x
    if start is not None and start.permutation is not None:
        inverse = [start.permutation.index(dim) for dim in range(len(start.permutation))]
        entering = graph.call_method("permute", (x, *inverse))
        if analysis.values[start.node][0].is_contiguous():  # as in the network: other strides have other bits
            entering = graph.call_method("contiguous", (entering,))
    elif start is not None and start.channels_last:
        entering = graph.call_method("contiguous", (x,), {"memory_format": torch.channels_last})
    made: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        if node in made:
            return made[node]
        if node in own:  # free: computed where it is first read
            made[node] = copied(node)
        elif (start is None and node.op == "placeholder") or (start is not None and node is start.node):
            made[node] = entering
        elif analysis.rebuilt(node) == "batch":
            made[node] = graph.call_method("size", (entering, 0))
        else:
            assert analysis.rebuilt(node) == "device", f"{node} is not alive"
            made[node] = graph.call_function(getattr, (entering, "device"))
        return made[node]

    def copied(node: fx.Node) -> fx.Node:
        new = graph.node_copy(node, find)
        if analysis.traced.is_exported and isinstance(new.kwargs.get("device"), torch.device):
            new.kwargs = {**new.kwargs, "device": graph.call_function(getattr, (entering, "device"))}
            new.prepend(new.kwargs["device"])  # type: ignore[arg-type]  # the node above
        return new

    for node in nodes:
        if node not in analysis.free:
            made[node] = copied(node)
    leaving = find(result(analysis) if end is None else end.node)
    if end is not None and end.permutation is not None:
        leaving = graph.call_method("permute", (leaving, *end.permutation))
    graph.output(leaving)
    return _function(model, analysis.traced, graph)


def _function(model: nn.Module, traced: Traced, graph: fx.Graph) -> Code:
    for name, value in traced.constants.items():  # where the graph expects them, while its code is written
        if "." not in name:
            vars(model)[name] = value
    try:
        forward: Any = type(fx.GraphModule(model, graph)).forward
    finally:
        for name in traced.constants:
            vars(model).pop(name, None)
    return forward  # type: ignore[no-any-return]  # fx is untyped here


def _compare(model: nn.Module, plan: Plan, image_shape: Sequence[int], source: str) -> None:
    """Raises ConfigError unless the units in a row compute what the network computes, in both modes, bit by bit."""
    with torch.no_grad(), _disable_current_modes(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(NUM_CHECKED, *image_shape)
        theirs, ours = deepcopy(model).cpu(), deepcopy(model).cpu()
        row = [Segment([unit], seed=0) for unit in plan.units(ours)]
        for training in MODES:
            torch.manual_seed(1)
            try:
                expected = theirs.train(training)(images.clone())  # some change their input in place
            except Exception as error:  # of the network's own operations
                raise does_not_fit(model, image_shape, error, source) from error
            torch.manual_seed(1)
            x = images.clone()
            try:
                for segment in row:
                    x = segment.train(training)(x)
            except Exception as error:  # of code that torch wrote
                raise NotTraced(
                    f"{source} {type(model).__name__}, whose traced operations cannot be carried out: "
                    f"{first_line(error)}; use a forward of plain operations, {BY_HAND}"
                ) from error
            if not torch.equal(x, expected) and not bool(torch.isnan(expected).any()):
                when = "training" if training else "evaluation"
                raise NotTraced(
                    f"{source} {type(model).__name__}, whose traced operations give other scores than its forward in "
                    f"{when} mode, by up to {float((x - expected).abs().max()):g}; expected a forward that does the "
                    f"same at every call, without random numbers of Python; use such a one, {BY_HAND}"
                )
