"""What must be true of a network that is cut into blocks, whether a script has given it or a function has made it.

Shapes: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from bllpipe.errors import ConfigError

EXTRA_STATE = "_extra_state"  # the last name of what get_extra_state returns, in a state_dict
ALWAYS_DRAW = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
# Attributes by which modules, those of torch, torchvision and timm among them, say how much they drop in training.
RATES = (
    "dropout",
    "dropout_p",
    "dropout_rate",
    "dropout_prob",
    "attention_dropout",
    "attn_dropout",
    "drop_prob",
    "drop_rate",
)


def check_network(modules: Mapping[str, nn.Module], source: str) -> None:
    """Raises ConfigError, which begins with ``source`` or names the module, for what blocks cannot be made of."""
    for name, module in modules.items():
        check_complete(module, name)
        _check_tensors(module, name)
        _check_state(module, name)
    check_nothing_shared(list(modules.values()), source)


def check_complete(module: nn.Module, name: str) -> None:
    """Raises ConfigError for a lazy layer that has seen no input yet: its weights would be drawn from no seed."""
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise ConfigError(
            f"module {name} of the model has parameters without a shape yet (a lazy layer), whose weights no seed "
            f"would settle; give it its sizes, or send one batch through the model first"
        )


def _check_tensors(module: nn.Module, name: str) -> None:
    for path, parameter in module.named_parameters():
        if parameter.is_complex():
            raise ConfigError(
                f"module {name} of the model: expected real parameters, got {path} of "
                f"{str(parameter.dtype).removeprefix('torch.')}; keep it as a real one with torch.view_as_real"
            )
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_inference():
            raise ConfigError(
                f"module {name} of the model: {path} was made inside torch.inference_mode(), so it can never be "
                f"trained; build the model outside of it"
            )


def _check_state(module: nn.Module, name: str) -> None:
    """A checkpoint holds parameters and buffers by name, and nothing else: no part of a state may be lost."""
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor) or key.rpartition(".")[2] == EXTRA_STATE:
            raise ConfigError(
                f"module {name} of the model: expected a state of parameters and buffers alone, which checkpoints "
                f"hold, got {key}, a {type(value).__name__} (of get_extra_state or a hook); keep it as a tensor with "
                f"register_buffer"
            )


def check_has_values(module: nn.Module, name: str) -> None:
    """Raises ConfigError for parameters and buffers on the meta device, which have a shape alone."""
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ConfigError(
                f"{name}: {path} of the model has no values (device meta); build the model on the CPU, or load its "
                f"weights with load_state_dict(..., assign=True) first"
            )


def check_nothing_shared(modules: Sequence[nn.Module], source: str) -> None:
    """Raises ConfigError when two units have a parameter, a buffer or a layer that draws in common: blocks learn alone,
    and side by side."""
    owners: dict[Any, int] = {}
    for number, module in enumerate(modules):
        for kind, name, keys in _own_things(module):
            others = {owners.setdefault(key, number) for key in keys} - {number}
            if others:
                raise ConfigError(
                    f"{source}: modules {min(others)} and {number} share the {kind} {name}, which blocks that learn "
                    f"alone cannot; put both into one nn.Sequential, which no cut divides, or give each its own with "
                    f"copy.deepcopy"
                )


def _own_things(module: nn.Module) -> Iterator[tuple[str, str, list[Any]]]:
    """Kind and name of everything that changes in training, with what tells it from others. Two parameters may be the
    same memory; those that lie side by side in one are not."""
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in named:
            keys: list[Any] = [id(tensor)]
            if tensor.numel() and not tensor.is_sparse:
                keys.append((tensor.untyped_storage()._cdata, tensor.storage_offset()))
            yield kind, name, keys
    for name, part in module.named_modules():
        if draws(part):  # its mode, training or not, would be that of whichever block was last
            yield f"layer {type(part).__name__}", name, [id(part)]


def drawing(modules: Mapping[str, nn.Module]) -> list[str]:
    """The names of the modules in which a layer draws random numbers."""
    return [name for name, module in modules.items() if any(map(draws, module.modules()))]


def draws(module: nn.Module) -> bool:
    """Whether this layer by itself draws random numbers in training, as far as its class or attributes tell."""
    if isinstance(module, _DropoutNd) or type(module).__name__ in ("StochasticDepth", "DropBlock2d", "DropBlock3d"):
        return float(module.p) > 0  # type: ignore[arg-type]  # a number in all of these
    if isinstance(module, nn.RReLU):
        return module.lower < module.upper
    if isinstance(module, nn.RNNBase):
        return module.num_layers > 1 and float(module.dropout) > 0
    rates = (getattr(module, name, 0.0) for name in RATES)
    return isinstance(module, ALWAYS_DRAW) or any(isinstance(rate, (int, float)) and rate > 0 for rate in rates)


@dataclass(frozen=True)
class SingleValues:
    """A batch norm that is given one value a channel of every image: a batch of one image has no variance."""

    path: str
    keeps_statistics: bool


@contextmanager
def batch_norms_seen(module: nn.Module) -> Iterator[list[SingleValues]]:
    """Inside, a batch that goes through ``module`` tells which of its batch norms are such."""
    found: list[SingleValues] = []

    def look(path: str, norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        x, size = inputs[0], trial_size(module)
        if x.numel() == size * x.shape[1]:
            found.append(SingleValues(path, norm.running_mean is not None))

    hooks = [
        norm.register_forward_pre_hook(lambda norm, inputs, path=path: look(path, norm, inputs))
        for path, norm in module.named_modules()
        if isinstance(norm, _BatchNorm)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def trial_size(module: nn.Module) -> int:
    """Images of a batch that only tries shapes: two where a batch norm without running statistics needs variance."""
    norms = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return 2 if any(norm.running_mean is None for norm in norms) else 1


def check_batches(found: Sequence[SingleValues], smallest_train: int, smallest_test: int, name: str) -> None:
    """Raises ConfigError for a batch norm that some batch leaves without variance."""
    for norm in found:
        if smallest_train == 1:
            raise ConfigError(
                f"{name}: the batch norm {norm.path} sees one value a channel of an image, and training batches have "
                f"1 image; expected at least 2 for a variance; use a larger data.batch_size, or fewer parts of it"
            )
        if smallest_test == 1 and not norm.keeps_statistics:
            raise ConfigError(
                f"{name}: the batch norm {norm.path} keeps no running statistics, and the last test batch has 1 image; "
                f"expected at least 2 for a variance; use another data.batch_size, or track_running_stats=True"
            )
