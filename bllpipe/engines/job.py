"""What all ranks of a job agree on before the first step: the data's sizes, the plan, the shapes, where to go on."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from bllpipe.config import Config
from bllpipe.config.schema import PIPELINES
from bllpipe.engines import Options, Output, topology
from bllpipe.engines.faults import Fault, parse_faults
from bllpipe.engines.peers import compare_with_first, introduce
from bllpipe.engines.stuck import check_progress
from bllpipe.errors import ConfigError
from bllpipe.learn.block import alpha_shape
from bllpipe.learn.cuts import cut
from bllpipe.learn.network_checks import batch_norms_seen, check_batches, check_has_values, drawing
from bllpipe.learn.networks import last_width, network_units
from bllpipe.learn.placing import place
from bllpipe.learn.propagation import propagate
from bllpipe.learn.units import Segment, Unit
from bllpipe.ports import Phase, Round, Store
from bllpipe.run.checkpoint import Checkpoint, open_checkpoint, remove_unfinished
from bllpipe.run.data.spec import DataSpec
from bllpipe.run.differences import Change
from bllpipe.run.directory import RunDirectory
from bllpipe.run.ending import Ending
from bllpipe.run.itinerary import Plan
from bllpipe.run.notices import say, warn
from bllpipe.run.resuming import changes_since, checkpoint_to_resume, choose_directory
from bllpipe.topology import Topology
from bllpipe.wire.environment import fault_text, speaks_for_all


@dataclass(frozen=True)
class Job:
    """A run as every rank knows it."""

    config: Config
    topology: Topology
    store: Store
    directory: RunDirectory
    attempt: str
    spec: DataSpec
    plan: Plan
    checkpoint: Checkpoint | None
    tested: bool = True  # whether nothing is left to do of the step that the checkpoint was written after
    ending: Ending = field(default_factory=Ending)
    faults: Sequence[Fault] = ()
    output: Output = "auto"

    @property
    def start(self) -> int:
        """Training steps that are done already."""
        return self.checkpoint.step if self.checkpoint else 0

    def rounds(self) -> Iterator[Round]:
        """A fresh iterator over the rounds that are left."""
        return self.plan.rounds(self.start, self.tested)

    def steps(self, actor: str) -> Iterator[Round]:
        """The same as ``actor`` carries them out: they end early where all ranks agree to stop."""
        return self.ending.follow(actor, self.rounds(), saved=self.checkpoint is not None)

    def messages(self, *phases: Phase) -> Iterator[Round]:
        """The rounds that are left whose messages travel on an edge: ``train``, or ``train`` and ``evaluate``."""
        return (entry for entry in self.rounds() if entry.phase in phases)

    @property
    def alpha_dtype(self) -> torch.dtype:
        """The format of activations on the wire."""
        return torch.bfloat16 if self.config.precision.wire == "bf16" else torch.float32


def agree(
    config: Config,
    options: Options,
    store: Store,
    job_store: Store,
    spec: DataSpec | None,
    attempt: int,
    ending: Ending | None = None,
) -> Job:
    """The job as all ranks see it. The one that has a ``spec`` (it holds the images) decides, the others listen.

    Raises ConfigError or CheckpointError in the deciding rank, and ConfigError in one that does not suit it.
    """
    if spec is not None:
        _decide(config, options, store, job_store, spec, attempt)
        introduce(config, store)  # only now, so that a rank that does not suit it can say so in the run's own status
    else:
        compare_with_first(config, store)
    decided = json.loads(store.get("job"))
    config = replace(config, blocks=decided["blocks"])
    spec = DataSpec.from_json(decided["spec"])
    checkpoint = open_checkpoint(Path(decided["checkpoint"])) if decided["checkpoint"] else None
    plan = Plan.of(config, spec.num_train, spec.num_test)
    directory = RunDirectory(Path(decided["directory"]), config.log.if_unwritable)
    job = Job(
        config,
        topology(config),
        store,
        directory,
        decided["attempt"],
        spec,
        plan,
        checkpoint,
        decided["tested"],
        ending or Ending(),
        [fault for fault in parse_faults(fault_text()) if fault.attempt == attempt],
        options.output,
    )
    if options.on_agreed is not None:
        options.on_agreed(job)
    return job


def _decide(config: Config, options: Options, store: Store, job_store: Store, spec: DataSpec, attempt: int) -> None:
    """Chooses directory and checkpoint, and tells the other ranks."""
    plan = Plan.of(config, spec.num_train, spec.num_test)
    config = _with_cuts(config, spec)
    path, checkpoint = _place(config, options, job_store, attempt)
    changed = changes_since(checkpoint, config, options.accept, path) if checkpoint else []
    job_store.set("directory", str(path.absolute()))
    start, directory = checkpoint.step if checkpoint else 0, RunDirectory(path)
    tested = checkpoint is None or _is_tested(checkpoint, plan, directory)
    check_progress(job_store, attempt, start, config.checkpoint.tries, directory)
    if start < plan.last_step or not tested:
        _begin(directory, config, checkpoint, tested, changed, options.output)
    decided = {
        "directory": str(path.absolute()),
        "checkpoint": str(checkpoint.path.absolute()) if checkpoint else None,
        "tested": tested,
        "attempt": f"{attempt}-{uuid.uuid4().hex[:12]}",  # new for every start, so that leftovers are told apart
        "spec": spec.to_json(),
        "blocks": config.blocks,
    }
    store.set("job", json.dumps(decided))


def _is_tested(checkpoint: Checkpoint, plan: Plan, directory: RunDirectory) -> bool:
    """Whether nothing is left to do of the checkpoint's step: neither a test that a stop came before, nor the summary
    of a run that was killed behind its last checkpoint."""
    summarised = checkpoint.step != plan.last_step or directory.has_ended(checkpoint.step)
    return summarised and all(facts.get("tested", True) for facts in checkpoint.facts())


def _place(config: Config, options: Options, job_store: Store, attempt: int) -> tuple[Path, Checkpoint | None]:
    """The run directory and what to go on from. A restarted group stays in the directory of the attempt before it."""
    restarted = attempt > 0 and job_store.check(["directory"])
    if restarted:
        path = Path(job_store.get("directory").decode())
    else:
        path = choose_directory(config, options.resume, options.run_dir)
    return path, checkpoint_to_resume(options.resume, path, warn, restarted)


def _begin(
    directory: RunDirectory,
    config: Config,
    checkpoint: Checkpoint | None,
    tested: bool,
    changed: Sequence[Change],
    output: Output,
) -> None:
    """Writes what a run directory holds from the start on; says where it goes on, as ``output`` wants it, and what is
    accepted as different from the checkpoint."""
    start = checkpoint.step if checkpoint else 0
    remove_unfinished(directory.checkpoints)  # which may be what has filled the disk
    directory.begin(config, start, tests_again=not tested)
    if checkpoint is not None:
        if output != "quiet":
            say(_goes_on(directory, start, output))
        directory.add_resume(checkpoint.path.name, start, {change.key: [change.then, change.now] for change in changed})
    if lines := [f"\n  {change}" for change in changed if not change.is_harmless]:
        warn(f"goes on after step {start} with other settings, as accepted:{''.join(lines)}")
    directory.write_status("running", step=start)


def _goes_on(directory: RunDirectory, step: int, output: Output) -> str:
    if output == "json":
        return json.dumps({"goes_on_from": step, "directory": str(directory.path)})
    return f"{directory.path} goes on from step {step}"


def _with_cuts(config: Config, spec: DataSpec) -> Config:
    """``config`` with the cuts that ``blocks: balanced`` asks for, written out."""
    if config.balanced is None:
        return config
    from bllpipe.plan.balanced import resolved  # torch's counters, which few runs need

    return resolved(config, spec.image_shape, spec.num_classes)


def build_segment(job: Job, number: int, device: torch.device, kind: Literal["block", "stage"] = "block") -> Segment:
    """Block ``number``, or that stage of what learns end to end, on its device; tells the others the shape of its
    alpha. A network that is not cut is block 0, of every replica."""
    config, num_classes = job.config, job.spec.num_classes
    units, name = _units(job), f"{kind} {number}"
    parts = cut(units, config.cuts if kind == "block" else config.blocks)
    segment = Segment(parts[number], config.seed)
    if number == 0:  # units that come with bllpipe draw nothing
        warn_of_draws({unit.name: unit.layers[0].make() for unit in units if unit.is_built}, "the model")
    if device.type != "meta":
        check_has_values(segment, name)
    propagate(segment, config.method, num_classes, config.seed)
    segment = place(segment, config, device)  # only now, so that weights for the way back lie as the others do
    with batch_norms_seen(segment) as norms:
        shape = _output_shape(segment, input_shape(job, number), device, name)
    check_batches(norms, *_smallest_batches(job), name)
    if number == len(parts) - 1 and shape != (num_classes,):
        raise ConfigError(
            f"the last {kind} gives {list(shape)} for each image; needed are {num_classes} class scores: "
            f"let the network end with a layer that gives them"
        )
    job.store.set(f"shape/{number}", json.dumps(shape))
    return segment


def warn_of_draws(modules: Mapping[str, nn.Module], owner: str) -> None:
    """Names the modules of ``owner``, the user's own, in which a layer draws random numbers."""
    if (names := drawing(modules)) and speaks_for_all():
        warn(
            f"{', '.join(names)} of {owner} draws random numbers in training, which engines do in different orders: "
            f"another engine, or a run that goes on from a checkpoint, ends in other bits"
        )


def _smallest_batches(job: Job) -> tuple[int, int]:
    """Images of the smallest batch that goes through a network at once, in training and in the test."""
    config, num_test = job.config, job.spec.num_test
    size = config.data.batch_size
    parts = config.pipeline.microbatches if config.engine in PIPELINES else 1
    if config.engine == "ddp":
        parts = job.topology.num_blocks
    return size // parts, num_test % size or min(size, num_test)


def _output_shape(segment: Segment, given: tuple[int, ...], device: torch.device, name: str) -> tuple[int, ...]:
    try:
        return alpha_shape(segment, given, device)
    except ConfigError:
        raise
    except Exception as error:  # whatever a user's module may raise
        raise ConfigError(
            f"{name} ({segment.last_unit} last) cannot take {list(given)} from what is before it: {error}; "
            f"cut somewhere else, or change the network"
        ) from error


def input_shape(job: Job, number: int) -> tuple[int, ...]:
    """The shape of what block or stage ``number`` is given, without the batch."""
    return job.spec.image_shape if number == 0 else shape_of(job, number - 1)


def shape_of(job: Job, number: int) -> tuple[int, ...]:
    """The shape of the alpha of block or stage ``number``, without the batch."""
    return tuple(json.loads(job.store.get(f"shape/{number}")))


def unit_names(job: Job) -> list[str]:
    """The last unit of every block: what heads and lanes are called after."""
    return [block[-1].name for block in cut(_units(job), job.config.cuts)]


def width_for_heads(job: Job) -> int | None:
    """How many channels the network ends with, where a local head has to know."""
    return last_width(job.config, _units(job)) if job.config.objective.head == "strided" else None


def _units(job: Job) -> list[Unit]:
    return network_units(job.config.model, job.spec.image_shape[0], job.spec.num_classes, job.config.seed)
