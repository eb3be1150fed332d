"""A process of a run that is spread over several: its place in the world, its watcher, and its end, good or bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from bllpipe.config import Config
from bllpipe.engines import topology
from bllpipe.engines.failure import exit_code, leave, report_failure
from bllpipe.engines.finish import prepare_process
from bllpipe.engines.watcher import Watcher
from bllpipe.errors import BllpipeError
from bllpipe.run.ending import Ending
from bllpipe.wire.environment import RankEnvironment
from bllpipe.wire.world import World, open_store

# This rank's part of a job, from its data to its summary.
Part = Callable[[World, Watcher], None]


def take_part(config: Config, part: Part) -> NoReturn:
    """Carries out ``part``. It does not return: tearing torch down takes longer than leaving."""
    environment = RankEnvironment.read()
    assert environment is not None, "the launcher starts this engine under torchrun only"
    prepare_process(config)
    world = open_store(environment, config.backend.timeout_seconds)
    try:
        with watcher(config, world) as watching:
            part(world, watching)
    except BaseException as error:
        role = topology(config).role(environment.rank)
        report_failure(error, world.store, world.job_store, environment.rank, role)
        leave(exit_code(error))
    leave(0)


def watcher(config: Config, world: World) -> Watcher:
    """The watcher of this rank, with a connection to the store for itself."""
    layout, beside = topology(config), world.another_connection()

    def fail(error: BllpipeError, rank: int, role: str) -> None:
        report_failure(error, beside.store, beside.job_store, rank, role)
        leave(exit_code(error))

    roles = [layout.role(rank) for rank in range(layout.world_size)]
    return Watcher(beside.store, world.environment.rank, roles, Ending(), config.backend.timeout_seconds, fail, leave)
