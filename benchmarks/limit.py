"""The limit of a pipeline on this machine: the rate of its slowest block without messages.

All blocks, each in its own process, repeat their steps at the same time with a constant input.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.report import Timing, table, write
from bllpipe.config import Config, load_config
from bllpipe.distributed.cuda_streams import streams_on
from bllpipe.engines.devices import set_up
from bllpipe.learn.block import Block, alpha_shape, make_block
from bllpipe.learn.cuda_graphs import speed_up
from bllpipe.learn.memory_format import place
from bllpipe.messages import Round, Target
from bllpipe.models.partition import cut
from bllpipe.models.registry import last_width, network_units
from bllpipe.models.units import Segment
from bllpipe.utils.process import keep_freed_memory

CPU = torch.device("cpu")
IMAGE, CLASSES = (3, 32, 32), 10
TIMEOUT = 300  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints a row a block."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__)
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--n", type=int, default=30, help="steps that count")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    timings = measure(load_config(options.config, options.overrides), options.n, options.warmup)
    batch = load_config(options.config, options.overrides).data.batch_size
    results = [
        {"block": number, "step": timing, "images_per_second": batch / timing.median}
        for number, timing in enumerate(timings)
    ]
    print(
        table(
            ["block", "step", "images/s"], [[r["block"], r["step"], f"{r['images_per_second']:.1f}"] for r in results]
        )
    )
    print(f"limit: {batch / max(timing.median for timing in timings):.1f} images/s in batches of {batch}")
    write(options.json, __doc__.splitlines()[0], vars(options), results)
    return 0


def measure(config: Config, n: int, warmup: int) -> list[Timing]:
    """The step of every block while all of them run."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    start = context.Barrier(config.num_blocks)
    arguments = (config, n, warmup, start, answers)
    processes = [
        context.Process(target=_process, args=(number, *arguments), daemon=True) for number in range(config.num_blocks)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=TIMEOUT) for _ in processes)
    return [Timing.of(found[number][warmup:]) for number in range(config.num_blocks)]


def _process(number: int, config: Config, n: int, warmup: int, start: Any, answers: Any) -> None:
    torch.set_num_threads(config.cpu_threads)
    keep_freed_memory()
    device = torch.device("cuda", number) if config.device == "cuda" else CPU
    set_up(config, device)
    block, x, target = block_alone(number, config, config.data.batch_size, device)
    streams = streams_on(device)
    start.wait(TIMEOUT)
    seconds = []
    for step in range(n + warmup):
        began = time.perf_counter()
        block.update(block.forward(x), target, step)
        streams.synchronize()
        seconds.append(time.perf_counter() - began)
    answers.put((number, seconds))
    start.wait(TIMEOUT)  # no process stops before all have finished, so that the load of the cores stays the same


def block_alone(
    number: int, config: Config, batch: int, device: torch.device = CPU
) -> tuple[Block, torch.Tensor, Target]:
    """Block ``number`` with an input and a target of the right shapes, for ``batch`` images."""
    units = network_units(config.model, IMAGE, CLASSES, config.seed)
    parts, width = cut(units, config.cuts), last_width(config, units)
    segments = [place(Segment(part, config.seed), config, device) for part in parts[: number + 1]]
    shapes: list[tuple[int, ...]] = [IMAGE]
    for segment in segments:
        shapes.append(alpha_shape(segment, shapes[-1], device))
    is_last = number == len(parts) - 1
    block = speed_up(make_block(segments[-1], shapes[-2], shapes[-1], config, CLASSES, 1000, is_last, width), config)
    beta_BC, known_B = torch.randn(batch, block.message_size, device=device), torch.ones(batch, device=device)
    target = Target(Round("train", 0, size=batch), beta_BC, known_B, torch.randint(CLASSES, (batch,), device=device))
    return block, torch.randn(batch, *shapes[-2], device=device), target


if __name__ == "__main__":
    sys.exit(main())
