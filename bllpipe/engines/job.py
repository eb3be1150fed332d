"""What all ranks of a job agree on before the first step: sizes of the data, schedule, shapes, and where to resume.

Rank 0 posts its version and configuration to the store; every other rank compares its own with them before it sends
anything. A job that fails at the same step again and again is not restarted.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bllpipe.checkpoint import Checkpoint, open_checkpoint, remove_unfinished
from bllpipe.checkpoint.resume import Change, changes, changes_since, checkpoint_to_resume, choose_directory
from bllpipe.config import Config, to_mapping
from bllpipe.data.base import data_identity, describe_identity
from bllpipe.data.catalog import DataSpec
from bllpipe.distributed.message_format import VERSION, wire_dtype
from bllpipe.engines import Callback, Options, Output, topology
from bllpipe.errors import ConfigError, NoProgressError
from bllpipe.messages import Phase, Round, Store
from bllpipe.topology import Topology
from bllpipe.training.run_directory import RunDirectory, post_directory, posted_directory
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.training.stopping import StopAgreement
from bllpipe.utils.console import print_line, warn
from bllpipe.version import __version__

# Keys that may differ between ranks: each rank reads its own value.
OWN_KEYS = ("name", "data.path", "data.workers", "feedback.device")
OWN_SECTIONS = ("log.",)


class JobStore:
    """The store of one attempt, through which the ranks of a job exchange shapes of alpha, which only the rank that
    builds a block knows, and records that one rank gathers from all."""

    def __init__(self, store: Store) -> None:
        self.set, self.get, self.add = store.set, store.get, store.add
        self.check, self.compare_set = store.check, store.compare_set

    def set_shape(self, number: int, shape: Sequence[int]) -> None:
        """Posts the shape of the alpha of block or stage ``number``, without the batch."""
        self.set(f"shape/{number}", json.dumps(shape))

    def shape_of(self, number: int) -> tuple[int, ...]:
        """The shape that ``set_shape`` posts; waits for it."""
        return tuple(json.loads(self.get(f"shape/{number}")))

    def input_shape(self, number: int, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the input of block or stage ``number``, without the batch."""
        return image_shape if number == 0 else self.shape_of(number - 1)

    def post(self, kind: str, rank: int, record: object) -> None:
        """Posts the record of ``kind`` of one rank, as JSON."""
        self.set(f"{kind}/{rank}", json.dumps(record))

    def gather(self, kind: str, world_size: int) -> list[Any]:
        """The records of ``kind`` of all ranks, in order; waits for the slowest."""
        return [json.loads(self.get(f"{kind}/{rank}")) for rank in range(world_size)]


@dataclass(frozen=True)
class Job:
    """A run, the same in all ranks: its data. The ranks exchange everything else through a JobStore."""

    config: Config
    topology: Topology
    directory: RunDirectory
    attempt: str
    spec: DataSpec
    schedule: RunSchedule
    checkpoint: Checkpoint | None
    tested: bool = True  # whether the test after the checkpoint's step is done
    stop: StopAgreement = field(default_factory=StopAgreement)
    output: Output = "auto"
    callbacks: Sequence[Callback] = ()

    @property
    def start(self) -> int:
        """The number of training steps before this start."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def restarts(self) -> int:
        """How often the run was started again after a failure."""
        return int(self.attempt.partition("-")[0])

    def rounds(self, *phases: Phase) -> Iterator[Round]:
        """A new iterator over the remaining rounds, all of them or those of ``phases``: ``train`` and ``evaluate`` have
        messages."""
        rounds = self.schedule.rounds(self.start, self.tested)
        return (entry for entry in rounds if entry.phase in phases) if phases else rounds

    def steps(self, actor: str) -> Iterator[Round]:
        """The remaining rounds of ``actor``, which end early where all ranks agree to stop."""
        return self.stop.until_stop(actor, self.rounds(), saved=self.checkpoint is not None)

    @property
    def alpha_dtype(self) -> torch.dtype:
        """The dtype of the activations that ranks send."""
        return wire_dtype(self.config)


def agree(
    config: Config,
    options: Options,
    store: JobStore,
    job_store: Store,
    spec: DataSpec | None,
    attempt: int,
    stop: StopAgreement | None = None,
) -> Job:
    """The job that all ranks agree on. The rank with a ``spec``, which reads the images, decides. ``store`` is that of
    this ``attempt``; ``job_store`` outlives restarts.

    Raises ConfigError or CheckpointError in the rank that decides, and ConfigError in a rank that differs from it.
    """
    if spec is not None:
        _decide(config, options, store, job_store, spec, attempt)
        introduce(config, store)  # after the directory is known: a rank that differs fails with an entry in status.json
    else:
        compare_with_first(config, store)
    decided = json.loads(store.get("job"))
    config = replace(config, blocks=decided["blocks"])
    spec = DataSpec.from_json(decided["spec"])
    job = Job(
        config,
        topology(config),
        RunDirectory(Path(decided["directory"]), config.log.if_unwritable),
        decided["attempt"],
        spec,
        RunSchedule.of(config, spec.num_train, spec.num_test),
        # the rank that decided has read every byte; any other one reads the parts that it restores from
        open_checkpoint(Path(decided["checkpoint"]), sizes_only=True) if decided["checkpoint"] else None,
        decided["tested"],
        stop or StopAgreement(),
        options.output,
        options.callbacks,
    )
    if options.on_agreed is not None:
        options.on_agreed(job, store)
    return job


def _decide(config: Config, options: Options, store: Store, job_store: Store, spec: DataSpec, attempt: int) -> None:
    """Chooses directory and checkpoint, and posts them for the other ranks."""
    schedule = RunSchedule.of(config, spec.num_train, spec.num_test)
    if config.balanced is not None:
        from bllpipe.learn.balanced_cut import with_balanced_cut  # imports torch's FLOP counter

        config = with_balanced_cut(config, spec.image_shape, spec.num_classes)
    path, checkpoint = _place(config, options, job_store, attempt)
    other_data = data_change(checkpoint, spec) if checkpoint else None
    changed = changes_since(checkpoint, config, options.accept, path, other_data) if checkpoint else []
    options.lock.take(path)  # before a failure of this start could be written there
    post_directory(job_store, path)
    start, directory = checkpoint.step if checkpoint else 0, RunDirectory(path)
    tested = checkpoint is None or _is_tested(checkpoint, schedule, directory)
    check_progress(job_store, attempt, start, config.checkpoint.tries, directory)
    if start < schedule.last_step or not tested:
        _begin(directory, config, checkpoint, tested, changed, options.output)
    decided = {
        "directory": str(path.absolute()),
        "checkpoint": str(checkpoint.path.absolute()) if checkpoint else None,
        "tested": tested,
        "attempt": f"{attempt}-{uuid.uuid4().hex[:12]}",  # unique: files left by an earlier start have another one
        "spec": spec.to_json(),
        "blocks": config.blocks,
    }
    store.set("job", json.dumps(decided))


def _place(config: Config, options: Options, job_store: Store, attempt: int) -> tuple[Path, Checkpoint | None]:
    """The run directory and the checkpoint to resume from. Restarted ranks keep the directory of the first attempt."""
    posted = posted_directory(job_store) if attempt > 0 else None
    path = posted or choose_directory(config, options.resume, options.run_dir)
    if path.is_dir():  # before the newest checkpoint is looked for
        options.lock.take(path)
    return path, checkpoint_to_resume(options.resume, path, warn, restarted=posted is not None)


def data_change(checkpoint: Checkpoint, spec: DataSpec) -> Change | None:
    """The change from the data that ``checkpoint`` was trained on; None also for an older checkpoint, which does not
    name its data."""
    then, now = checkpoint.metadata()[0].get("data"), data_identity(spec)
    if not isinstance(then, dict) or all(then.get(key) in (value, None, "") or not value for key, value in now.items()):
        return None
    return Change("data", describe_identity(then), describe_identity(now))


def _is_tested(checkpoint: Checkpoint, schedule: RunSchedule, directory: RunDirectory) -> bool:
    """Whether the work of the checkpoint's step is done: its test, unless a stop came first, and at the last step the
    summary, unless the run was killed before it."""
    summarised = checkpoint.step != schedule.last_step or directory.has_ended(checkpoint.step)
    return summarised and all(metadata.get("tested", True) for metadata in checkpoint.metadata())


def _begin(
    directory: RunDirectory,
    config: Config,
    checkpoint: Checkpoint | None,
    tested: bool,
    changed: Sequence[Change],
    output: Output,
) -> None:
    """Writes the first files of the run directory; prints, in the form of ``output``, where the run resumes, and which
    accepted settings differ from those of the checkpoint."""
    start = checkpoint.step if checkpoint else 0
    remove_unfinished(directory.checkpoints)  # they may have filled the disk
    directory.begin(config, start, tests_again=not tested)
    if checkpoint is not None:
        if output == "json":
            print_line(json.dumps({"goes_on_from": start, "directory": str(directory.path)}))
        elif output != "quiet":
            print_line(f"{directory.path} resumes from step {start}")
        directory.add_resume(checkpoint.path.name, start, {change.key: [change.then, change.now] for change in changed})
    if lines := [f"\n  {change}" for change in changed if not change.is_harmless]:
        warn(f"resumes after step {start} with other settings, as accepted:{''.join(lines)}")
    directory.write_status("running", step=start)


def introduce(config: Config, store: Store) -> None:
    """Posts version and configuration of rank 0."""
    first = {"messages": VERSION, "bllpipe": __version__, "config": to_mapping(config), "given": _digests(config)}
    store.set("first", json.dumps(first))


def compare_with_first(config: Config, store: Store) -> None:
    """Raises ConfigError, with the values of both ranks, unless version and configuration are those of rank 0."""
    first: dict[str, Any] = json.loads(store.get("first"))
    theirs, ours = (
        f"version {messages} of the messages (bllpipe {version})"
        for messages, version in ((first.get("messages"), first.get("bllpipe")), (VERSION, __version__))
    )
    if theirs != ours:
        raise ConfigError(f"rank 0 has {theirs}, this rank {ours}; install the same bllpipe on all machines")
    differing = [
        f"\n  {change.key}: {change.then} in rank 0, {change.now} here"
        for change in changes(first["config"], to_mapping(config))
        if change.key not in OWN_KEYS and not change.key.startswith(OWN_SECTIONS)
    ]
    if differing:
        raise ConfigError(
            f"rank 0 has another configuration than this rank:{''.join(differing)}\n"
            f"start all ranks with the same config file and the same arguments"
        )
    posted, own = first.get("given", {}), _digests(config)
    if others := [name for name in ("model", "data") if posted.get(name) != own.get(name)]:
        raise ConfigError(
            f"rank 0 was given another {' and other '.join(others)} than this rank: every rank runs the script, and "
            f"what it draws at random differs; begin it with torch.manual_seed(0), or pass a function that builds the "
            f"model"
        )


def _digests(config: Config) -> dict[str, str]:
    """Digests of the objects that a script has passed; functions have none."""
    passed = {"model": config.model.user_model, "data": config.data.user_data}
    return {name: each.digest() for name, each in passed.items() if hasattr(each, "digest")}


def check_progress(job_store: Store, attempt: int, start: int, tries: int, directory: RunDirectory) -> None:
    """Records that ``attempt`` starts at step ``start``; NoProgressError if the last ``tries`` attempts did so too.

    All of them have failed, as this attempt follows them. An attempt without a record failed before this point, so it
    counts as one without progress.
    """
    starts: dict[str, int] = json.loads(job_store.get("starts")) if job_store.check(["starts"]) else {}
    last = [starts.get(str(number), start) for number in range(attempt - tries, attempt)]
    if attempt >= tries and all(step == start for step in last):
        raise NoProgressError(
            f"the last {tries} attempts all began at step {start} and failed before the next checkpoint, so this one "
            f"is not begun; the last failure was: {last_failure(directory)}\n"
            f"fix its cause and resume with --run-dir {directory.path} --resume auto; or save more often with "
            f"checkpoint.every_steps, or allow more attempts with checkpoint.tries"
        )
    job_store.set("starts", json.dumps({**starts, str(attempt): start}))


def last_failure(directory: RunDirectory) -> str:
    """The failure in status.json; the last line of a traceback."""
    status = directory.read_status()
    if status.get("status") != "failed":
        return "its ranks were killed before they could say why"
    reason = str(status.get("reason")).strip().splitlines()
    return f"rank {status.get('rank')} ({status.get('role')}): {reason[-1] if reason else 'no reason'}"
