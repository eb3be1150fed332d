"""A rank of a job in which one block is slow; every rank writes down when it began and finished each step.

Started by torchrun with a run directory, the slow block, the seconds it loses in every step, and the settings.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from bllpipe.config import load_config
from bllpipe.engines import Options
from bllpipe.engines.ranks import run
from bllpipe.learn.block import Block
from bllpipe.run.loops import LaneLoop

EVENTS: list[tuple[str, int, float]] = []


def noting(run_dir: str, slow_block: int, seconds: float) -> None:
    """Wraps the block's and the lane's work so that this rank's events are written beside the run."""
    rank = int(os.environ["RANK"])
    path = Path(run_dir + f"-events-{rank}.json")
    forward, update, send = Block.forward, Block.update, LaneLoop.run
    count = {"forward": 0}

    def noted_forward(self: Block, x: Tensor) -> Tensor:
        EVENTS.append(("began", count["forward"], time.monotonic()))
        count["forward"] += 1
        return forward(self, x)

    def noted_update(self: Block, alpha: Tensor, target: Any, step: int) -> Any:
        if rank == slow_block:
            time.sleep(seconds)
        outcome = update(self, alpha, target, step)
        EVENTS.append(("updated", step, time.monotonic()))
        path.write_text(json.dumps(EVENTS))
        return outcome

    def noted_lane(self: LaneLoop, entry: Any) -> None:
        send(self, entry)
        if entry.phase == "train":
            EVENTS.append((f"lane {self.name}", entry.step, time.monotonic()))
        elif entry.phase == "save":
            path.write_text(json.dumps(EVENTS))

    Block.forward, Block.update, LaneLoop.run = noted_forward, noted_update, noted_lane  # type: ignore[method-assign]


if __name__ == "__main__":
    noting(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    run(load_config(None, sys.argv[4:]), Options(run_dir=sys.argv[1]))
