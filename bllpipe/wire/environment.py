"""What torchrun tells a process about its place; the one place that reads these variables. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from bllpipe.errors import ConfigError


@dataclass(frozen=True)
class RankEnvironment:
    """One process of a torchrun job. ``attempt`` counts the restarts of the whole group."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    attempt: int
    master_addr: str
    master_port: int
    agent_hosts_store: bool

    @property
    def on_one_machine(self) -> bool:
        return self.local_world_size == self.world_size

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> RankEnvironment | None:
        """None outside torchrun; ConfigError when only a part of its variables is there."""
        if "RANK" not in variables or "WORLD_SIZE" not in variables:
            return None
        try:
            return cls._parse(variables)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"RANK and WORLD_SIZE are set, but {error} is missing or no number; start with torchrun, "
                f"or unset RANK and WORLD_SIZE"
            ) from error

    @classmethod
    def _parse(cls, variables: Mapping[str, str]) -> RankEnvironment:
        return cls(
            rank=int(variables["RANK"]),
            world_size=int(variables["WORLD_SIZE"]),
            local_rank=int(variables["LOCAL_RANK"]),
            local_world_size=int(variables["LOCAL_WORLD_SIZE"]),
            attempt=current_attempt(variables),
            master_addr=variables["MASTER_ADDR"],
            master_port=int(variables["MASTER_PORT"]),
            agent_hosts_store=variables.get("TORCHELASTIC_USE_AGENT_STORE", "False") == "True",
        )


def fault_text(variables: Mapping[str, str] = os.environ) -> str:
    """The faults on purpose that are asked for, mostly none; ConfigError when nobody has allowed them."""
    text = variables.get("BLLPIPE_FAULT", "")
    if text and variables.get("BLLPIPE_ALLOW_FAULTS") != "1":
        raise ConfigError(
            f"BLLPIPE_FAULT is {text!r}, but faults are not allowed; unset it, or set BLLPIPE_ALLOW_FAULTS=1"
        )
    return text


def current_attempt(variables: Mapping[str, str] = os.environ) -> int:
    """How often the group of this process was restarted."""
    return int(variables.get("TORCHELASTIC_RESTART_COUNT", "0"))


def speaks_for_all(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that prints what all ranks found alike."""
    return variables.get("RANK", "0") == "0"


def allow_deterministic_products(variables: MutableMapping[str, str] = os.environ) -> None:
    """Gives cuBLAS workspaces of a fixed size, without which its products may differ from run to run; to be called
    before the first one. Who has set it otherwise keeps that."""
    variables.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
