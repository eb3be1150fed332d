"""A rank of a job in which one block is slow: it ends its first step only when others have ended their last. Every rank
writes down when it began and finished each step.

Started by torchrun with a run directory, the slow block, the last step, the actors that the slow block lets pass
(separated by commas), and the settings.
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
from bllpipe.training.loops import FeedbackLoop
from tests.support.waiting import wait_until

EVENTS: list[tuple[str, int, float]] = []


def noting(run_dir: str, slow_block: int, last_step: int, first: list[str]) -> None:
    """Wraps the block's and the lane's work so that this rank's events are written beside the run."""
    rank = int(os.environ["RANK"])
    path = Path(run_dir + f"-events-{rank}.json")
    forward, update, send = Block.forward, Block.step, FeedbackLoop.run
    count = {"forward": 0}

    def over(actor: str) -> Path:
        """A file that is there when this actor has ended its last step."""
        return Path(f"{run_dir}-over-{actor}")

    def noted_forward(self: Block, x: Tensor) -> Tensor:
        EVENTS.append(("began", count["forward"], time.monotonic()))
        count["forward"] += 1
        return forward(self, x)

    def noted_step(self: Block, total: Any, step: int) -> Any:
        if rank == slow_block and step == 0:
            wait_until(lambda: all(over(actor).exists() for actor in first))
        outcome = update(self, total, step)
        EVENTS.append(("updated", step, time.monotonic()))
        path.write_text(json.dumps(EVENTS))
        if step == last_step:
            over(f"block {rank}").touch()
        return outcome

    def noted_lane(self: FeedbackLoop, entry: Any) -> None:
        send(self, entry)
        if entry.phase == "train":
            EVENTS.append((f"lane {self.name}", entry.step, time.monotonic()))
            if entry.step == last_step:
                over(f"lane {self.name}").touch()
        elif entry.phase == "save":
            path.write_text(json.dumps(EVENTS))

    Block.forward, Block.step, FeedbackLoop.run = noted_forward, noted_step, noted_lane  # type: ignore[method-assign]


if __name__ == "__main__":
    noting(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","))
    run(load_config(None, sys.argv[5:]), Options(run_dir=sys.argv[1]))
