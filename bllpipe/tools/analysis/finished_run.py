"""A run that has ended or stopped: its directory, its newest valid checkpoint, and its blocks with the weights in it.

Shapes: B images of a batch, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bllpipe.checkpoint import Checkpoint, find_checkpoint
from bllpipe.config import Config
from bllpipe.config.data_checks import WITHOUT_PATH
from bllpipe.config.fields import NEVER
from bllpipe.config.loader import load_stored_config
from bllpipe.data.base import ImageSet
from bllpipe.data.loader import ImageSource, label_batches
from bllpipe.data.registry import load_images, load_labels
from bllpipe.distributed.message_format import wire_dtype
from bllpipe.engines.job import data_change
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.learn.block import Block, build_segments, make_block
from bllpipe.learn.memory_format import autocast
from bllpipe.messages import Round
from bllpipe.models.partition import cut
from bllpipe.models.registry import last_width, network_units
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.utils.files import read_record

WEIGHTS = ("model.", "heads.", "objectives.")  # of the tensors in a checkpoint, without optimizer state


@dataclass(frozen=True)
class FinishedRun:
    """A run directory with its newest checkpoint; ``images`` is the data set that its config names."""

    path: Path
    config: Config
    checkpoint: Checkpoint
    images: ImageSet
    summary: Mapping[str, Any] | None

    @property
    def plan(self) -> RunSchedule:
        """The lengths of the whole run."""
        return RunSchedule.of(self.config, self.images.spec.num_train, self.images.spec.num_test)

    @property
    def recorded_accuracy(self) -> float | None:
        """The test accuracy in summary.json, unless it is that of another step than the checkpoint's; a stopped run
        was tested at an earlier step or never."""
        step = self.checkpoint.step
        if self.summary is None or self.summary.get("steps") != step or step != self.plan.total_steps:
            return None
        accuracy = self.summary.get("test_accuracy")
        return accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 1 else None

    @property
    def device(self) -> torch.device:
        """The device of the run, or the CPU if this machine has no GPU."""
        return torch.device("cuda" if self.config.device != "cpu" and torch.cuda.is_available() else "cpu")

    @property
    def wire_dtype(self) -> torch.dtype:
        """The format of activations between blocks."""
        return wire_dtype(self.config)

    def autocast(self) -> AbstractContextManager[Any]:
        """The scope of the run's ``precision.compute``."""
        return autocast(self.config, self.device)


def open_run(
    path: Path, warn: Callable[[str], None], data_path: str | None = None, accept_data: bool = False
) -> FinishedRun:
    """The run in ``path``, with its data, which are at ``data_path`` if they have moved since. Sets the number of
    threads of this process to that of a rank, because results depend on it.

    Raises ConfigError, also for other data than the checkpoint's unless ``accept_data``, DataError, or CheckpointError
    when there is no checkpoint; ``warn`` is called for damaged ones, and for other data that are accepted.
    """
    config = load_stored_config(str(path / "config.yaml"))
    if data_path is not None:
        if config.data.name in WITHOUT_PATH:
            raise ConfigError(
                f"--data-path is {data_path}, but {path} was trained on {config.data.name}, which reads no files; "
                f"leave it out"
            )
        config = replace(config, data=replace(config.data, path=data_path))
    checkpoint = find_checkpoint(path / "checkpoints", warn)
    if checkpoint is None and config.checkpoint.every_steps == NEVER:
        raise CheckpointError(
            f"{path} holds no checkpoint, as it was trained with checkpoint.every_steps=never; train it again with "
            f"--set checkpoint.every_steps=0"
        )
    if checkpoint is None:
        raise CheckpointError(f"{path} holds no checkpoint yet; resume the run: --run-dir {path} --resume auto")
    summary = read_record(path / "summary.json")[0] if (path / "summary.json").exists() else None
    torch.set_num_threads(config.cpu_threads)
    images = load_images(config.data, config.seed)
    if change := data_change(checkpoint, images.spec):
        if not accept_data:
            raise ConfigError(
                f"{checkpoint.path} was trained on other data:\n  {change}\n"
                f"name the old data with --data-path PATH, or add --accept data to go on with these"
            )
        warn(f"goes on with other data than those of {checkpoint.path.name}, as accepted:\n  {change}")
    return FinishedRun(path, config, checkpoint, images, summary)


def load_blocks(run: FinishedRun) -> list[Block]:
    """The blocks of ``run`` on its device, with the weights of its checkpoint.

    Raises CheckpointError when weights are missing or are those of another network.
    """
    weights = {name: value for prefix in WEIGHTS for name, value in run.checkpoint.mapped(prefix).items()}
    blocks = _fresh_blocks(run)
    for name, own in sorted(item for block in blocks for item in block.learner.weights().items()):
        if name in weights and own.shape != weights[name].shape:
            raise CheckpointError(
                f"{run.checkpoint.path} holds {name} as {list(weights[name].shape)}, but {run.path}/config.yaml and "
                f"the data make it {list(own.shape)}; give the config and the data back their old values"
            )
    if missing := [name for block in blocks for name in block.learner.load(weights)]:
        raise CheckpointError(
            f"{run.checkpoint.path} lacks {some(missing)}; expected a checkpoint of the network that "
            f"{run.path}/config.yaml describes"
        )
    return blocks


def evaluation_batches(run: FinishedRun) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images [B, C, H, W] on the run's device and labels [B] of the test set, in the run's own batches."""
    config, plan = run.config, run.plan
    sizes = [min(plan.batch_size, plan.num_test - first) for first in range(0, plan.num_test, plan.batch_size)]
    rounds = [Round("evaluate", run.checkpoint.step, 0, batch, size) for batch, size in enumerate(sizes)]
    source = ImageSource(run.images, iter(rounds), config.seed, config.data.augment)
    for _, label_B in label_batches(load_labels(config.data, config.seed), iter(rounds), config.seed):
        yield source.recv().alpha_BCHW.to(run.device), label_B.to(run.device)


def _fresh_blocks(run: FinishedRun) -> list[Block]:
    """The blocks before the first step."""
    config, spec, steps = run.config, run.images.spec, run.plan.total_steps
    units = network_units(replace(config.model, weights=None), spec.image_shape, spec.num_classes, config.seed)
    parts, width = cut(units, config.cuts), last_width(config, units)
    segments = build_segments(parts, config, spec.image_shape, run.device)
    return [
        make_block(
            segment, input_shape, output_shape, config, spec.num_classes, steps, number == len(parts) - 1, width, number
        )
        for number, (segment, input_shape, output_shape) in enumerate(segments)
    ]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and the number of the others; names in a file may be of any length."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if name.isprintable() else repr(name) for name in names[:most])[:500] + more
