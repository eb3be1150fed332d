"""Networks of torchvision and timm by name: ``torchvision:convnext_tiny``, ``timm:resnet26d``.

Both packages take seconds to import, and are imported by the first network that is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import nn

from bllpipe.errors import ConfigError

TORCHVISION, TIMM = "torchvision", "timm"
PACKAGES = (TORCHVISION, TIMM)
MOST_CLOSE = 3
Builder = Callable[..., nn.Module]  # (in_channels, num_classes, **args)


def is_in_zoo(name: str) -> bool:
    """Whether ``model.name`` is that of a network of torchvision or timm."""
    return name.partition(":")[0] in PACKAGES


@cache
def builder(name: str) -> Builder:
    """The function that builds the network of ``model.name``, with random weights; ConfigError for an unknown one."""
    package, _, network = name.partition(":")
    return _of_torchvision(network) if package == TORCHVISION else _of_timm(network)


def _of_torchvision(name: str) -> Builder:
    from torchvision import models

    _check_known(TORCHVISION, name, models.list_models(module=models))

    def build(in_channels: int, num_classes: int, **args: Any) -> nn.Module:
        if in_channels != 3:
            raise ConfigError(
                f"model.name={TORCHVISION}:{name} takes images of 3 channels, but those of the data have "
                f"{in_channels}; use data in colour, or a network of timm, which takes any number: "
                f"--set model.name=timm:NAME"
            )
        return _built(
            TORCHVISION,
            name,
            lambda: models.get_model(name, weights=None, num_classes=num_classes, **args),
        )

    return build


def _of_timm(name: str) -> Builder:
    check_installed(f"{TIMM}:{name}")
    import timm

    architecture = name.partition(".")[0]  # what follows a dot names pretrained weights
    _check_known(TIMM, architecture, timm.list_models())

    def build(in_channels: int, num_classes: int, **args: Any) -> nn.Module:
        return _built(
            TIMM, name, lambda: timm.create_model(name, num_classes=num_classes, in_chans=in_channels, **args)
        )

    return build


def check_installed(name: str) -> None:
    """Raises ConfigError for a network of timm without timm."""
    if name.startswith(f"{TIMM}:") and find_spec(TIMM) is None:
        raise ConfigError(
            f"model.name={name} needs the package timm, which is not installed; use pip install 'bllpipe[timm]'"
        )


def _check_known(package: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        lister = "torchvision.models.list_models()" if package == TORCHVISION else "timm.list_models()"
        close = difflib.get_close_matches(name, known, n=MOST_CLOSE)
        hint = f"did you mean {' or '.join(close)}?" if close else f"{lister} lists them"
        raise ConfigError(f"model.name={package}:{name} is no classifier of {package}; {hint}")


def _built(package: str, name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except (TypeError, ValueError, AssertionError) as error:  # for arguments that the network does not have
        raise ConfigError(
            f"model.name={package}:{name} cannot be built with these model.args: {error}; expected keyword arguments "
            f"of {package}'s {name}"
        ) from error
