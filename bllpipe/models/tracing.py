"""The operations of a network in their order, as torch.fx graphs: one of the training mode, one of the evaluation mode.

Symbolic tracing runs a ``forward`` once on a placeholder. What a flag such as ``self.training`` decides is decided in
the graph, hence two graphs. A module whose ``forward`` cannot be traced (control flow that depends on values, ``len``
of a tensor), that keeps state in its attributes, or that has hooks, stays one operation and runs as it is. Where the
network's own ``forward`` cannot be traced, torch.export is used, which knows the sizes, though not the values.

This module imports torchvision, which takes seconds: only networks that are traced need it.
"""

from __future__ import annotations

import inspect
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from bllpipe.errors import ConfigError

CONSTANT = "_tensor_constant"  # fx gives tensors that a forward makes this name, with a number
SHOWN = 300  # characters of torch's own message
BY_HAND = "or pass the network as an nn.Sequential or a list of modules, whose order is known"


class NotTraced(ConfigError):
    """A network whose operations were not found by symbolic tracing."""


@dataclass(frozen=True)
class Traced:
    """The operations of ``model`` in one mode; ``names``: the path of the module of each, or of its module and itself.

    ``constants`` are tensors that the forward pass makes or finds outside of modules, by the name of their node's
    target. A graph of torch.export ``is_exported``: it has no modules, only the functions that they call. ``opaque``:
    kinds of modules that cannot be traced.
    """

    graph: fx.Graph
    names: dict[fx.Node, str]
    constants: dict[str, Tensor]
    is_exported: bool = False
    opaque: frozenset[type[nn.Module]] = frozenset()


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """``model`` in training or evaluation mode; afterwards every module is in the mode in which it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, was in before:
            module.training = was


def check_signature(model: nn.Module, source: str) -> None:
    """Raises ConfigError for a ``forward`` that does not take one input, for hooks of the whole network, and for one
    that torch has compiled or that cannot be copied."""
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    where = next(iter(scripted), "")  # the network itself has no name
    if scripted or type(model).__name__ == "OptimizedModule":  # whose import takes seconds
        raise ConfigError(
            f"{source} {type(model).__name__}, which torch has compiled{f' ({where})' if where else ''}, so its "
            f"operations cannot be divided; use the network as it was before torch.compile or torch.jit"
        )
    try:
        deepcopy(model)
    except Exception as error:  # attributes of a user's module may raise any error
        raise ConfigError(
            f"{source} {type(model).__name__}, which cannot be copied: {first_line(error)}; expected a network for "
            f"copy.deepcopy, on which a cut is tried; use attributes that can be copied, {BY_HAND}"
        ) from error
    parameters = list(inspect.signature(model.forward).parameters.values())
    required = [each.name for each in parameters if each.default is each.empty and each.kind not in (2, 4)]
    if len(required) > 1 or not any(each.kind in (0, 1, 2) for each in parameters):
        raise ConfigError(
            f"{source} {type(model).__name__}, whose forward takes {', '.join(required) or 'nothing'}; expected one "
            f"input, the images; wrap it in a module that takes the images alone"
        )
    if _has_hooks(model):
        raise ConfigError(
            f"{source} {type(model).__name__}, which has hooks of its own, which a cut would drop; remove them, or "
            f"register them with modules inside of it"
        )


def trace(model: nn.Module, training: bool, source: str) -> Traced:
    """The operations of ``model`` in one mode, by symbolic tracing; modules that resist stay one operation.

    Raises ConfigError, which begins with ``source``, for a ``forward`` that cannot be traced.
    """
    opaque = {type(module) for name, module in model.named_modules() if name and _has_hooks(module)}
    while True:
        with mode(model, training):
            if frozen := [name for name, module in model.named_modules() if module.training != training]:
                raise ConfigError(
                    f"{source} {type(model).__name__}, whose train({training}) leaves {frozen[0] or 'itself'} in the "
                    f"other mode, which blocks would not do; use requires_grad_(False) for what shall not change"
                )
            tracer = _Tracer(model, opaque)
            before, python = _attributes(model), random.getstate()
            try:
                graph, error = tracer.trace(model), None
            except Exception as caught:  # a forward on placeholders may raise anything
                graph, error = fx.Graph(), caught
            constants = _constants(model)
            changed = _restore(model, before)
        if random.getstate() != python:  # the operations would be those of one draw
            raise ConfigError(
                f"{source} {type(model).__name__}, whose forward draws random numbers of Python; expected a forward "
                f"that does the same at every call; use those of torch, {BY_HAND}"
            )
        resisting = tracer.failed if error is not None else next(iter(changed), None)
        if error is None and resisting is None:
            return Traced(
                graph, {node: _name(tracer, node) for node in graph.nodes}, constants, opaque=frozenset(opaque)
            )
        if resisting is model and error is None:
            raise ConfigError(
                f"{source} {type(model).__name__}, whose forward assigns {changed[model]}; expected state in "
                f"parameters and buffers, which blocks and checkpoints hold; use a buffer, or move it into a module "
                f"inside of the network"
            )
        if resisting in (None, model) or type(resisting) in opaque:
            raise NotTraced(
                f"{source} {type(model).__name__}, whose forward cannot be traced: {first_line(error)}; use a forward "
                f"whose operations do not depend on values, {BY_HAND}"
            ) from error
        opaque.add(type(resisting))


def export(model: nn.Module, training: bool, image_shape: Sequence[int], source: str) -> Traced:
    """The operations of ``model`` in one mode, by torch.export, for images of ``image_shape``; errors as ``trace``."""
    from torch.export import Dim
    from torch.export import export as exported  # torch's compiler, which takes seconds

    with mode(model, training):
        device = next((parameter.device for parameter in model.parameters()), None)
        before, images = _attributes(model), torch.randn(2, *image_shape, device=device)
        try:
            with warnings.catch_warnings():  # an attribute that is assigned would keep the value of now
                warnings.filterwarnings("error", "The tensor attribute")
                program = exported(model, (images,), dynamic_shapes=({0: Dim("batch")},), strict=False)
            module = program.module(**({"check_guards": False} if _takes(program.module, "check_guards") else {}))
        except Exception as error:  # torch.export has no error of its own
            raise ConfigError(
                f"{source} {type(model).__name__}, whose forward neither torch.fx nor torch.export can follow: "
                f"{first_line(error)}; use a forward whose operations do not depend on values, {BY_HAND}"
            ) from error
        finally:
            _restore(model, before)
    graph = module.graph
    for node in list(graph.nodes):  # checks of this input's dtype and device
        if not node.users and ("_assert" in str(node.target) or "_guards" in str(node.target)):
            graph.erase_node(node)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    targets = {node.target for node in graph.nodes if node.op == "get_attr"} - own.keys()
    constants = {target: _attribute(module, target) for target in targets}
    return Traced(graph, {node: _exported_name(node) for node in graph.nodes}, constants, is_exported=True)


class _Tracer(NodePathTracer):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's tracer: every operation has the path of its module. ``failed``: the innermost module that cannot be
    traced. Optional arguments of a forward have their defaults."""

    proxy_buffer_attributes = True  # otherwise operations on buffers alone are carried out, in place too, and forgotten

    def __init__(self, model: nn.Module, opaque: set[type[nn.Module]]) -> None:
        layers = sys.modules.get("timm.layers")  # which then knows what of its own must not be traced
        leaves = tuple(layers.get_notrace_modules()) if layers is not None else ()
        functions = tuple(f for f in layers.get_notrace_functions() if callable(f)) if layers is not None else ()
        super().__init__(leaf_modules=[*leaves, *opaque], autowrap_functions=functions)
        self.failed: nn.Module | None = None

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> Any:
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m
            raise


def _name(tracer: _Tracer, node: fx.Node) -> str:
    return tracer.node_to_qualname.get(node) or node.name


def _exported_name(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = [str(entry[0]) for entry in stack.values() if isinstance(entry, tuple)][-1:]
    return ".".join([part for part in path if part] + [node.name])


def first_line(error: BaseException | None) -> str:
    """What an error says, without what torch adds below about its compilers."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:SHOWN]


def does_not_fit(model: nn.Module, shape: Sequence[int], error: Exception, source: str) -> ConfigError:
    """For an error of the network's own operations with images of ``shape``."""
    others = {each.dtype for each in model.parameters() if each.is_floating_point()} - {torch.float32}
    use = (
        f"use parameters of float32, as images are, in place of {min(map(str, others))}: model.float()"
        if others
        else "use images of a size that it takes, or arguments for theirs, such as model.args.image_size or "
        "model.args.img_size"
    )
    return ConfigError(
        f"{source} {type(model).__name__}, which cannot take images of {list(shape)}: {first_line(error)}; {use}"
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _takes(function: Callable[..., Any], argument: str) -> bool:
    return argument in inspect.signature(function).parameters


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


Attributes = list[tuple[nn.Module, dict[str, Any], list[dict[str, Any]]]]
TABLES = ("_parameters", "_buffers", "_modules")


def _attributes(model: nn.Module) -> Attributes:
    """What every module holds: a forward that assigns to an attribute would leave a placeholder there."""
    return [(each, dict(vars(each)), [dict(getattr(each, table)) for table in TABLES]) for each in model.modules()]


def _restore(model: nn.Module, before: Attributes) -> dict[nn.Module, str]:
    """Puts back the attributes that have changed; returns the modules in which they had, with the first name."""
    changed = {}
    for module, attributes, tables in before:
        own: list[dict[str, Any]] = [vars(module), *(getattr(module, table) for table in TABLES)]
        for now, then in zip(own, (attributes, *tables), strict=True):
            names = [name for name in now.keys() | then.keys() if now.get(name) is not then.get(name)]
            names = [name for name in names if not name.startswith(CONSTANT) and name != "training"]
            if names and module not in changed:
                changed[module] = f"{type(module).__name__}.{min(names)}"
            if now.keys() != then.keys() or names:
                training = module.training
                now.clear()
                now.update(then)
                module.training = training
    return changed


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that fx has added to the network."""
    return {name: value for name, value in vars(model).items() if name.startswith(CONSTANT)}
