"""From a config to units: a ResNet by name, a network of torchvision or timm, a function by its import path, or what a
script passes as an object; and the checks of a user-defined network that is cut into blocks.

Shapes: B images, C channels.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from bllpipe.config.networks import LAST_STAGE
from bllpipe.config.schema import Config, ModelConfig
from bllpipe.errors import ConfigError
from bllpipe.models.resnet import LaterUnit, later_units, resnet_units
from bllpipe.models.units import Stretch, Unit, units_from_modules
from bllpipe.models.zoo import builder, is_in_zoo
from bllpipe.utils.tensors import derived_seed, span, torch_defaults

if TYPE_CHECKING:
    from bllpipe.models.stretches import Plan

# Attributes of modules (torch, torchvision, timm and others) that hold a dropout rate.
DROPOUT_RATES = {"dropout", "dropout_p", "dropout_rate", "dropout_prob", "drop_prob", "drop_rate"}
ATTENTION_DROPOUT_RATES = {"attention_dropout", "attn_dropout"}


def check_network(modules: Mapping[str, nn.Module], source: str) -> None:
    """Raises ConfigError, which begins with ``source`` or names the module, for modules that cannot be in a block."""
    for name, module in modules.items():
        check_complete(module, name)
        _check_layers(module, name)
        _check_tensors(module, name)
        _check_state(module, name)
    check_nothing_shared(list(modules.values()), source)


def check_complete(module: nn.Module, name: str) -> None:
    """Raises ConfigError for a lazy layer without an input so far: its weights would not depend on the seed."""
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise ConfigError(
            f"module {name} of the model: expected parameters with a shape, got a lazy layer, whose weights would not "
            f"depend on the seed; use explicit sizes, or run one batch through the model first"
        )


def _check_tensors(module: nn.Module, name: str) -> None:
    for path, parameter in module.named_parameters():
        if parameter.is_complex():
            raise ConfigError(
                f"module {name} of the model: expected real parameters, got {path} of "
                f"{str(parameter.dtype).removeprefix('torch.')}; use torch.view_as_real"
            )
        if parameter.layout == torch.strided and span(parameter) < parameter.numel():
            raise ConfigError(
                f"module {name} of the model: expected parameters with memory for each value, got {path}, a tensor "
                f"that was expanded; use .clone()"
            )
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_inference():
            raise ConfigError(
                f"module {name} of the model: {path} was made inside torch.inference_mode(), so it cannot be trained; "
                f"build the model outside of it"
            )


def _check_layers(module: nn.Module, name: str) -> None:
    for path, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse:
            raise ConfigError(
                f"module {name} of the model: expected dense gradients, got sparse ones of {path or name}; use "
                f"sparse=False"
            )


def _check_state(module: nn.Module, name: str) -> None:
    """Checkpoints hold parameters and buffers by name only, so another kind of state would be lost."""
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor) or key.rpartition(".")[2] == "_extra_state":  # of get_extra_state
            raise ConfigError(
                f"module {name} of the model: expected a state of parameters and buffers alone, which checkpoints "
                f"hold, got {key}, a {type(value).__name__} (of get_extra_state or a hook); use a tensor and "
                f"register_buffer"
            )


def check_has_values(module: nn.Module, name: str) -> None:
    """Raises ConfigError for parameters and buffers on the meta device, which have no values."""
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ConfigError(
                f"{name}: {path} of the model has no values (device meta); build the model on the CPU, or load its "
                f"weights with load_state_dict(..., assign=True) first"
            )


def check_nothing_shared(modules: Sequence[nn.Module], source: str) -> None:
    """Raises ConfigError when two units share a parameter, a buffer or a random layer: blocks learn independently and
    concurrently."""
    owners: dict[Any, int] = {}
    for number, module in enumerate(modules):
        for kind, name, keys in _identities(module):
            others = {owners.setdefault(key, number) for key in keys} - {number}
            if others:
                raise ConfigError(
                    f"{source}: expected modules that share nothing, as blocks learn independently, got modules "
                    f"{min(others)} and {number} with the same {kind} {name}; use one nn.Sequential for both, which no "
                    f"cut divides, or a copy.deepcopy for one of them"
                )


def _identities(module: nn.Module) -> Iterator[tuple[str, str, list[Any]]]:
    """Kind, name and identifying keys of everything that changes in training. Two parameters may be the same memory;
    different parts of one storage are not shared."""
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in named:
            keys: list[Any] = [id(tensor)]
            if tensor.numel() and not tensor.is_sparse:
                keys.append((tensor.untyped_storage()._cdata, tensor.storage_offset()))
            yield kind, name, keys
    for name, part in module.named_modules():
        if is_stochastic(part):  # its training mode would be that of the last block to set it
            yield f"layer {type(part).__name__}", name, [id(part)]


def stochastic_modules(modules: Mapping[str, nn.Module]) -> list[str]:
    """The names of the modules in which a layer draws random numbers."""
    return [name for name, module in modules.items() if any(map(is_stochastic, module.modules()))]


def is_stochastic(module: nn.Module) -> bool:
    """Whether this layer itself draws random numbers in training, judged by its class and attributes."""
    if isinstance(module, Stretch):
        return module.stretch_is_random
    if isinstance(module, _DropoutNd) or type(module).__name__ in ("StochasticDepth", "DropBlock2d", "DropBlock3d"):
        return float(module.p) > 0  # type: ignore[arg-type]  # a number in all of these
    if isinstance(module, nn.RReLU):
        return module.lower < module.upper
    if isinstance(module, nn.RNNBase):
        return module.num_layers > 1 and float(module.dropout) > 0
    rates = (getattr(module, name, 0.0) for name in DROPOUT_RATES | ATTENTION_DROPOUT_RATES)
    always = isinstance(module, nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)
    return always or any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


@contextmanager
def single_value_norms(module: nn.Module) -> Iterator[dict[str, bool]]:
    """The batch norms that get one value a channel of every image, filled while a batch runs through ``module``: by
    path, whether they keep running statistics. A batch of one image has no variance there."""
    found: dict[str, bool] = {}

    def check(path: str, norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == trial_size(module) * inputs[0].shape[1]:
            found[path] = norm.running_mean is not None

    hooks = [
        norm.register_forward_pre_hook(lambda norm, inputs, path=path: check(path, norm, inputs))
        for path, norm in module.named_modules()
        if isinstance(norm, _BatchNorm)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def trial_size(module: nn.Module) -> int:
    """Images of a batch for shape inference: two if a batch norm without running statistics needs a variance."""
    norms = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return 2 if any(norm.running_mean is None for norm in norms) else 1


def check_batches(norms: Mapping[str, bool], smallest_train: int, smallest_test: int, name: str) -> None:
    """Raises ConfigError for one of ``single_value_norms`` that has no variance in some batch."""
    for path, keeps_statistics in norms.items():
        if smallest_train == 1:
            raise ConfigError(
                f"{name}: the batch norm {path} sees one value a channel of an image, and training batches have "
                f"1 image; expected at least 2 for a variance; use a larger data.batch_size, or fewer parts of it"
            )
        if smallest_test == 1 and not keeps_statistics:
            raise ConfigError(
                f"{name}: the batch norm {path} keeps no running statistics, and the last test batch has 1 image; "
                f"expected at least 2 for a variance; use another data.batch_size, or track_running_stats=True"
            )


USER_OBJECTS = "given"  # in place of a package, in the names of objects that a script passes


def network_units(model: ModelConfig, image_shape: Sequence[int], num_classes: int, seed: int) -> list[Unit]:
    """The network of ``model`` for images of ``image_shape`` [C, H, W] and ``num_classes`` scores, as units."""
    units = _units(model, image_shape, num_classes, seed)
    if model.weights is None:
        return units
    from bllpipe.models.pretrained import with_weights  # safetensors, which others do not need here

    return with_weights(units, model.weights)


def _units(model: ModelConfig, image_shape: Sequence[int], num_classes: int, seed: int) -> list[Unit]:
    if ":" not in model.name:
        return resnet_units(model.name, model.width, model.stem, image_shape[0], num_classes)
    function, source = _function(model), f"model.name={model.name} returned"
    with torch_defaults():
        torch.manual_seed(derived_seed(seed, "weights"))
        network = called(function, image_shape[0], num_classes, model.args, f"model.name={model.name}")
        modules = None if is_traced(network) else in_order(network, source)  # a generator draws its weights only here
        if modules is None:
            check_network({type(network).__name__: network}, "the model")
            plan = network_plan(function, model.args, tuple(image_shape), num_classes, seed, source)
            return plan.units(network)
    check_network(modules, "the model")
    return units_from_modules(modules)


def called(
    function: Callable[..., Any], in_channels: int, num_classes: int, args: Mapping[str, Any], source: str
) -> Any:
    """The network of ``function``; ConfigError, which begins with ``source``, for arguments that it does not take."""
    if known := sorted({"in_channels", "num_classes"} & args.keys()):
        raise ConfigError(f"model.args.{known[0]} is {args[known[0]]!r}, but it is that of the data; leave it out")
    try:
        inspect.signature(function).bind(in_channels=in_channels, num_classes=num_classes, **args)
    except TypeError as error:
        raise ConfigError(
            f"{source} cannot be called: {error}; expected a function of in_channels, num_classes and the names in "
            f"model.args, which are {', '.join(args) or 'none'}; in a script pass the network itself instead"
        ) from error
    except ValueError:  # a callable of C, without a signature
        pass
    return function(in_channels=in_channels, num_classes=num_classes, **args)


def _function(model: ModelConfig) -> Callable[..., Any]:
    return model.user_model or (builder(model.name) if is_in_zoo(model.name) else imported("model.name", model.name))


def is_traced(network: object) -> TypeGuard[nn.Module]:
    """Whether ``network`` computes in a ``forward`` of its own, which is traced to find where it can be cut."""
    if not isinstance(network, nn.Module) or isinstance(network, nn.ModuleList):
        return False
    return not isinstance(network, nn.Sequential) or type(network).forward is not nn.Sequential.forward


def network_plan(
    function: Callable[..., Any],
    args: Mapping[str, Any],
    image_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
    source: str,
) -> Plan:
    """The places and the code of a network with a ``forward`` of its own, which do not depend on its weights.

    Tracing takes seconds, and a process builds its network several times: the plan of a network that a script passes is
    kept with it, as ``plans``, and those of the last functions here.
    """
    plans = getattr(function, "plans", None)
    key = Key(function, json.dumps(args, sort_keys=True), image_shape, num_classes)
    if plans is None:
        return _plan_of(key, seed, source) if isinstance(function, Hashable) else _traced(key, args, seed, source)
    if image_shape not in plans:
        plans[image_shape] = _traced(key, args, seed, source)
    return plans[image_shape]  # type: ignore[no-any-return]  # a dict of plans


@dataclass(frozen=True)
class Key:
    """What the plan of a network depends on; ``args`` are its arguments as JSON."""

    function: Callable[..., Any]
    args: str
    image_shape: tuple[int, ...]
    num_classes: int


@lru_cache(maxsize=4)
def _plan_of(key: Key, seed: int, source: str) -> Plan:
    return _traced(key, json.loads(key.args), seed, source)


def _traced(key: Key, args: Mapping[str, Any], seed: int, source: str) -> Plan:
    from bllpipe.models.stretches import plan_network  # torchvision, whose import takes seconds

    with _disable_current_modes(), torch_defaults():  # tensors with values, also where others only count operations
        torch.manual_seed(derived_seed(seed, "weights"))
        network = called(key.function, key.image_shape[0], key.num_classes, args, source.removesuffix(" returned"))
        return plan_network(network, key.image_shape, source)


def last_width(config: Config, units: Sequence[Unit]) -> int | None:
    """The number of channels at the end of the network of ``units``, for strided heads; None for other heads, or if the
    last unit has no linear layer.

    For a ResNet it is that of its last 3x3 convolutions: a bottleneck's last 1x1 has four times as many. For any other
    network it is the number of input features of its last linear layer.
    """
    if config.objective.head != "strided":
        return None
    if ":" not in config.model.name:
        return config.model.width * LAST_STAGE
    modules = [module for layer in units[-1].layers for module in layer.make().modules()]
    widths = [module.in_features for module in modules if isinstance(module, nn.Linear)]
    return widths[-1] or None if widths else None  # 0 in a lazy layer


def units_after(config: Config, unit: str) -> list[LaterUnit]:
    """The residual units of the network after ``unit``, for heads that are made of such; none for other heads."""
    if config.objective.head != "auglocal":
        return []
    return later_units(config.model.name, config.model.width, unit)


def in_order(made: Any, source: str) -> dict[str, nn.Module]:
    """The modules of an nn.Sequential by their names there, those of any other sequence by their number.

    Raises ConfigError, which begins with ``source``, for anything without an order of computation.
    """
    if isinstance(made, nn.Sequential):
        if not len(made):
            raise ConfigError(f"{source} an empty nn.Sequential; expected at least one module for every block")
        return {name: module for name, module in made._modules.items() if module is not None}
    modules = list(made)
    if not modules or not all(isinstance(module, nn.Module) for module in modules):
        kinds = sorted({type(module).__name__ for module in modules}) or ["nothing"]
        raise ConfigError(f"{source} {', '.join(kinds)}; expected a list of torch.nn.Module")
    return {str(number): module for number, module in enumerate(modules)}


def imported(key: str, name: str) -> Callable[..., Any]:
    """The function ``name``, package.module:function; ConfigError, which names ``key``, if it cannot be imported."""
    module_name, _, function_name = name.partition(":")
    if module_name == USER_OBJECTS:
        raise ConfigError(
            f"{key}={name} is an object that a script passed, and exists in that script only; run the script, or use a "
            f"function in a module, named as package.module:function"
        )
    try:
        with torch_defaults():  # an imported module may set torch's defaults, or seed its random numbers
            function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}={name} cannot be imported: {error}; expected package.module:function, "
            f"with the package on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f"{key}={name} is a {type(function).__name__}; expected a function")
    return function  # type: ignore[no-any-return]  # a callable of the user's, checked when it is called
