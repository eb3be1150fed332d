"""A process of a run that is spread over several: its place in the world, its watcher, and its end, good or bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from bllpipe.config import Config
from bllpipe.config.keys import NEVER
from bllpipe.engines import Options, topology
from bllpipe.engines.failure import enter, fail, leave
from bllpipe.engines.finish import prepare_process
from bllpipe.engines.putting_back import put_back
from bllpipe.engines.watcher import Watcher
from bllpipe.run.ending import Ending
from bllpipe.wire.environment import RankEnvironment
from bllpipe.wire.world import World

# This rank's part of a job, from its data to its summary.
Part = Callable[[World, Watcher], None]


def take_part(config: Config, options: Options, part: Part) -> int:
    """Carries out ``part``. It returns to a script alone: tearing torch down takes longer than leaving."""
    environment = RankEnvironment.read()
    assert environment is not None, "the launcher starts this engine under torchrun only"
    with put_back(config):
        _take_part(config, options, part, environment)
    return 0


def _take_part(config: Config, options: Options, part: Part, environment: RankEnvironment) -> None:
    prepare_process(config, environment.rank)
    world = enter(environment, config.backend.timeout_seconds, options.number)
    try:
        with watcher(config, world) as watching:
            part(world, watching)
    except BaseException as error:
        fail(error, world, environment.rank, topology(config).role(environment.rank))
    if options.on_agreed is None:
        leave(0)


def watcher(config: Config, world: World) -> Watcher:
    """The watcher of this rank, with a connection to the store for itself."""
    layout, beside = topology(config), world.another_connection()
    roles = [layout.role(rank) for rank in range(layout.world_size)]

    def fail_because(error: BaseException, rank: int) -> NoReturn:
        fail(error, beside, rank, roles[rank])

    timeout = config.backend.timeout_seconds
    ending = Ending(saves=config.checkpoint.every_steps != NEVER)
    return Watcher(beside.store, world.environment.rank, roles, ending, timeout, fail_because, leave)
