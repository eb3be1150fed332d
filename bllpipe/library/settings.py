"""The Config of a script's run: a file and settings as on the command line, and objects where names would stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any

from bllpipe.config import Config, parse_config
from bllpipe.config.reading import put
from bllpipe.config.schema import END_TO_END
from bllpipe.config.strict_yaml import read_yaml
from bllpipe.errors import ConfigError
from bllpipe.library.data import Data, given_data
from bllpipe.library.models import Model, given_model
from bllpipe.library.objectives import OwnObjective, given_objective
from bllpipe.library.values import plain

PLAIN = {"crop_padding": 0, "flip": False, "rotation": 0.0}  # own images are not changed unless that is asked for


@dataclass(frozen=True)
class Settings:
    """What a script says beside its model and data; ``settings`` are keys with dots, as ``--set`` has them."""

    objective: OwnObjective | None = None
    blocks: int | str | list[int | str] | None = None
    engine: str | None = None
    epochs: int | None = None
    config: str | PathLike[str] | None = None
    settings: Mapping[str, Any] | None = None


def config_of(model: Model | None, data: Data | None, said: Settings, under_torchrun: bool = False) -> Config:
    """The checked Config; without a model or data, that of the file. ConfigError or DataError for what cannot be
    trained."""
    keys, objective = given_objective(said.objective) if said.objective is not None else ({}, None)
    keys["model.name"], network = given_model(model) if model is not None else (None, None)
    keys["data.name"], images = given_data(data) if data is not None else (None, None)
    mapping = _mapping(said, keys)
    if images is not None and isinstance(changes := mapping["data"].setdefault("augment", {}), dict):
        mapping["data"]["augment"] = {**PLAIN, **changes}
    if "engine" not in mapping:
        mapping["engine"] = _engine(str(mapping.get("method")), under_torchrun)
    config = _with_objects(parse_config(mapping), network, images, objective)
    _check_floats(config)
    return config


def _mapping(said: Settings, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The file; over it the settings; over both ``keys`` and the other arguments, where there are any."""
    if said.config is not None and not isinstance(said.config, (str, PathLike)):
        raise ConfigError(
            f"config is a {type(said.config).__name__}; expected the path of a YAML file; use settings={{...}} for "
            f"keys and their values"
        )
    if said.settings is not None and not isinstance(said.settings, Mapping):
        raise ConfigError(
            f"settings is a {type(said.settings).__name__}; expected keys and values; use "
            f"settings={{'optimizer.lr': 0.1}}"
        )
    mapping = read_yaml(fspath(said.config)) if said.config is not None else {}
    for key, value in (said.settings or {}).items():
        put(mapping, key, plain(value), "settings")
    arguments = {**keys, "blocks": said.blocks, "engine": said.engine, "epochs": said.epochs}
    for key, value in arguments.items():
        if value is not None:
            put(mapping, key, plain(value), "the arguments")
    return mapping


def _engine(method: str, under_torchrun: bool) -> str:
    """Where nobody asks for another one: a process for every block, or the only process that there is."""
    if under_torchrun:
        return "ranks"
    return "single" if method in END_TO_END else "sequential"


def _with_objects(config: Config, network: Any, images: Any, objective: Any) -> Config:
    return replace(
        config,
        model=replace(config.model, given=network),
        data=replace(config.data, given=images),
        objective=replace(config.objective, given=objective),
    )


def _check_floats(config: Config) -> None:
    """Settings that would do nothing to images of floats."""
    data, changes = config.data, config.data.augment
    idle = {"data.augment": changes.crop_padding or changes.flip or changes.rotation}
    idle |= {"data.mean": data.mean is not None, "data.std": data.std is not None}
    asked = [key for key, is_set in idle.items() if is_set]
    if data.given is not None and data.given.is_float and asked:
        raise ConfigError(
            f"{' and '.join(asked)} would change nothing, as float images are taken as they are; leave it out, or "
            f"pass uint8 images [N, C, H, W]"
        )
