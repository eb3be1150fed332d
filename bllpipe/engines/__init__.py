"""How a run is executed. Only here are loops, wires, data and files put together."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from bllpipe.config import Config
from bllpipe.topology import Topology


@dataclass(frozen=True)
class Options:
    """What the command line says beside the config. ``resume`` is ``auto``, ``never`` or the path of a checkpoint."""

    resume: str = "never"
    run_dir: str | None = None


Engine = Callable[[Config, Options], None]
NAMES = ("ranks", "threads", "sequential", "single")


def topology(config: Config) -> Topology:
    """Who takes part: a whole network is one block that learns without feedback."""
    return Topology(config.num_blocks, has_feedback=not config.is_end_to_end)


def engine(name: str) -> Engine:
    """The engine called ``name``; its module, and torch with it, is imported only now."""
    assert name in NAMES, "the config admits no other"
    return importlib.import_module(f"bllpipe.engines.{name}").run  # type: ignore[no-any-return]  # an Engine by contract
