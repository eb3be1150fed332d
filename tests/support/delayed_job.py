"""A rank of a job in which messages are held up at random, several jobs in a row in the same processes.

Started by torchrun with the folder of the runs, a seed for each of them, and the settings.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bllpipe.config import load_config
from bllpipe.distributed.process_group import open_store
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.engines import Options
from bllpipe.engines.ranks import run_in_world, watchdog
from bllpipe.messages import Message
from bllpipe.topology import Edge


@dataclass
class Delayed:
    """A port that sometimes sleeps before it does its work."""

    port: Any
    dice: random.Random

    def _dawdle(self) -> None:
        if self.dice.random() < 0.15:
            time.sleep(self.dice.random() * 0.05)

    def send(self, message: Message) -> None:
        self._dawdle()
        self.port.send(message)

    def recv(self) -> Any:
        self._dawdle()
        return self.port.recv()


def main(folder: str, seeds: str, *settings: str) -> None:
    torch.set_num_threads(1)
    environment = RankEnvironment.read()
    assert environment is not None
    world = open_store(environment, 60)
    for seed in seeds.split(","):

        def delayed(port: Any, edge: Edge, seed: str = seed) -> Any:
            return Delayed(port, random.Random(f"{seed} {edge} {environment.rank}"))

        store = dist.PrefixStore(f"job-{seed}", world.raw_store)
        here: Any = replace(world, store=store, job_store=store, raw_store=store)
        config, options = load_config(None, settings), Options(run_dir=str(Path(folder) / seed))
        run_in_world(config, options, here, watchdog(config, options, here), delayed)


if __name__ == "__main__":
    main(*sys.argv[1:])
