"""The type and the range of each value, and impossible combinations of keys; every error says what to type."""

from __future__ import annotations

import difflib
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bllpipe.config.data_checks import check_data
from bllpipe.config.fields import NEVER, USER_OBJECT
from bllpipe.config.networks import DEPTHS
from bllpipe.config.scaling import check_divisible, check_shards
from bllpipe.config.schema import END_TO_END, PIPELINES, SYNCHRONOUS, TRACKERS, TWO_STAGES, Config
from bllpipe.errors import ConfigError

NAME = r"[^/\0\ud800-\udfff]{0,100}"  # of a folder
FUNCTION = r"[\w.]+:\w+"
STREAMS = 32  # in torch's pool of a GPU; the next one is the first again
MAX_CAPTURED_BLOCKS = STREAMS // 3
LAST_PORT = 65535
NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
MAX_SHOWN = 200  # characters of a value in a message
MAX_INTEGER = 2**63 - 1  # in files and messages


def check(config: Config) -> None:
    """Raises ConfigError for the first impossible combination."""
    for check_section in (
        _check_name,
        _check_length,
        _check_method,
        _check_blocks,
        _check_pipeline,
        _check_replicas,
        check_shards,
        _check_model,
        _check_objective,
        _check_message,
        check_data,
        _check_optimizer,
        _check_feedback,
        _check_evaluate,
        _check_wire,
        _check_backends,
        _check_gpu,
        _check_metrics,
        _check_trackers,
    ):
        check_section(config)


def _check_name(config: Config) -> None:
    name = config.name
    if name is not None and (name in (".", "..") or not re.fullmatch(NAME, name)):
        raise ConfigError(
            f"name is {shown(name)}; expected the name of a folder in runs/, such as digits-1; use another "
            f"one, or for any other place --run-dir"
        )


def _check_length(config: Config) -> None:
    if config.steps is not None and config.stop_at is not None and config.stop_at > config.steps:
        raise ConfigError(
            f"stop_at is {config.stop_at}, but the run has only {config.steps} steps; lower stop_at or raise steps"
        )
    if config.stop_at is not None and config.checkpoint.every_steps == NEVER:
        raise ConfigError(
            f"stop_at is {config.stop_at}, which ends with a checkpoint, but checkpoint.every_steps is never; "
            f"use --set checkpoint.every_steps=0, or leave stop_at out"
        )
    if config.steps is not None:
        check_warmup(config, config.steps)


def check_warmup(config: Config, total_steps: int) -> None:
    """Raises ConfigError for a warm-up that is longer than the run, which would never reach its peak rate; called when
    the number of steps is known."""
    schedule = config.schedule
    if schedule.name != "onecycle" and schedule.warmup_steps > total_steps:  # onecycle has its own warm-up
        raise ConfigError(
            f"schedule.warmup_steps is {schedule.warmup_steps}, but the run has only {total_steps} steps and would end "
            f"before its peak rate; use --set schedule.warmup_steps={total_steps // 10}, or train longer"
        )


def _check_method(config: Config) -> None:
    if config.engine in SYNCHRONOUS:
        if config.method != "bp":
            other = "single" if config.is_end_to_end else "ranks"
            raise ConfigError(
                f"engine {config.engine} is for method bp only, but method is {config.method}; "
                f"use --set engine={other}, or --set method=bp"
            )
    elif config.is_end_to_end and config.engine != "single":
        raise ConfigError(
            f"method {config.method} learns end to end, but engine {config.engine} trains blocks; "
            f"use --set engine=single"
        )
    if not config.is_end_to_end and config.engine == "single":
        raise ConfigError(
            f"engine single holds the whole network, but method {config.method} learns in blocks; "
            f"use --set engine=sequential, or one of --set method={'|'.join(END_TO_END)}"
        )


def _check_blocks(config: Config) -> None:
    blocks = config.blocks
    if isinstance(blocks, int):
        if blocks < 1:
            raise ConfigError(f"blocks is {blocks}; expected at least 1")
        return
    if isinstance(blocks, str):
        if not re.fullmatch(r"balanced( [1-9][0-9]{0,5})?", blocks):
            raise ConfigError(
                f"blocks is {shown(blocks)}; expected a number of blocks, a list of cuts such as [4, 8, 12], "
                f"balanced, or balanced with a number of blocks: --set blocks='balanced 8'"
            )
        return
    numbers = [place for place in blocks if isinstance(place, int)]
    if not blocks or len(set(blocks)) < len(blocks):
        raise ConfigError(f"blocks is {blocks}; expected cuts at different places, for example [4, 8, 12]")
    if any(later <= earlier for earlier, later in pairwise([0, *numbers])):
        raise ConfigError(f"blocks is {blocks}; expected numbers of units that grow from 1, for example [4, 8, 12]")


def _check_pipeline(config: Config) -> None:
    engine, stages, microbatches = config.engine, config.num_parts, config.pipeline.microbatches
    if engine not in PIPELINES:
        return
    if engine in TWO_STAGES and stages % 2:
        raise ConfigError(f"engine {engine} has two stages a rank, but blocks gives {stages}; use an even number")
    if engine in ("1f1b", "dualpipev") and microbatches < stages:
        raise ConfigError(
            f"engine {engine} with {stages} stages needs as many microbatches, but pipeline.microbatches is "
            f"{microbatches}; use --set pipeline.microbatches={stages} or more"
        )
    per_round = stages // 2
    if engine == "interleaved" and microbatches % max(1, microbatches // per_round):
        raise ConfigError(
            f"engine interleaved on {per_round} ranks cannot divide {microbatches} microbatches into equal rounds; "
            f"use --set pipeline.microbatches={microbatches // per_round * per_round}"
        )
    check_divisible(config, microbatches, "microbatches")


def _check_replicas(config: Config) -> None:
    if config.engine != "ddp":
        return
    if not isinstance(config.blocks, int):
        raise ConfigError(
            f"engine ddp has no cuts: expected its number of replicas as blocks, got {config.blocks}; "
            f"use --set blocks={config.num_parts}"
        )
    check_divisible(config, config.blocks, "replicas")


def _check_model(config: Config) -> None:
    name = config.model.name
    if re.fullmatch(rf"{FUNCTION}|(torchvision|timm):[\w.-]+", name):
        return
    if name not in DEPTHS:
        close = difflib.get_close_matches(name, DEPTHS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"model.name is {shown(name)}; expected one of {', '.join(DEPTHS)}, torchvision:NAME, timm:NAME or "
            f"package.module:function{hint}"
        )
    if config.model.args:
        raise ConfigError(
            f"model.args are for torchvision:NAME, timm:NAME and package.module:function; {name} has model.width and "
            f"model.stem"
        )


def _check_objective(config: Config) -> None:
    function, is_user_loss = config.objective.function, config.method == "own"
    if is_user_loss and function is None:
        raise ConfigError(
            "method own expected a user-defined loss, got none; use --set objective.function=package.module:function, "
            "or --set method=bll"
        )
    if function is not None and not is_user_loss:
        raise ConfigError(
            f"objective.function is {shown(function)}, but method is {config.method}; use --set method=own, or leave "
            f"it out"
        )
    if function is not None and not re.fullmatch(FUNCTION, function):
        raise ConfigError(f"objective.function is {shown(function)}; expected package.module:function")


def _check_message(config: Config) -> None:
    message = config.objective.message
    if message != "means" and config.method != "bll":
        raise ConfigError(
            f"objective.message is {message}, but method {config.method} compares no message with beta; leave it out, "
            f"or use --set method=bll"
        )
    if config.objective.head == "auglocal" and ":" in config.model.name:
        raise ConfigError(
            f"objective.head is auglocal, which takes residual units of {', '.join(DEPTHS)}, but model.name is "
            f"{shown(config.model.name)}; use --set objective.head=strided"
        )


def _check_optimizer(config: Config) -> None:
    optimizer, milestones = config.optimizer, config.schedule.milestones
    if optimizer.name == "sgd" and optimizer.nesterov and optimizer.momentum == 0:
        raise ConfigError("optimizer.nesterov needs momentum; use --set optimizer.nesterov=false")
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise ConfigError(f"optimizer.betas is {optimizer.betas}; expected two numbers from 0 to below 1")
    inside = all(0 < milestone < 1 for milestone in milestones)
    if not inside or any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ConfigError(f"schedule.milestones is {milestones}; expected growing fractions between 0 and 1")


def _check_feedback(config: Config) -> None:
    feedback = config.feedback
    if feedback.update == "closed_form" and feedback.layers > 1:
        raise ConfigError(
            f"feedback.layers is {feedback.layers}, but closed_form solves a single linear layer; "
            f"use --set feedback.update=sgd"
        )
    if (feedback.ranks or 0) > config.num_blocks:
        raise ConfigError(
            f"feedback.ranks is {feedback.ranks}, but the feedback has one loop a block, {config.num_blocks} in all; "
            f"use --set feedback.ranks={config.num_blocks} or less"
        )


def _check_evaluate(config: Config) -> None:
    weights = {f"objective.{name}": getattr(config.objective, name) for name in ("keep_weight", "contrast_weight")}
    for key, value in {"evaluate.ensemble": config.evaluate.ensemble, **weights}.items():
        if value and config.is_end_to_end:
            found, none = ("true", "false") if value is True else (value, 0)
            raise ConfigError(
                f"{key} is {found}, but method {config.method} trains the whole network, which has no local heads; use "
                f"--set {key}={none}, or a local method such as --set method=bll"
            )


def _check_gpu(config: Config) -> None:
    captures = ("ranks", "sequential", "streams", "single")
    if config.gpu.capture and config.engine not in captures:
        raise ConfigError(
            f"gpu.capture is for engines {', '.join(captures)}, but engine is {config.engine}; "
            f"use --set gpu.capture=false"
        )
    if config.gpu.capture and config.engine == "streams" and config.num_blocks > MAX_CAPTURED_BLOCKS:
        raise ConfigError(
            f"engine streams captures with three streams a block, of which torch has {STREAMS} a GPU, but blocks gives "
            f"{config.num_blocks}; use at most {MAX_CAPTURED_BLOCKS}, or --set gpu.capture=false"
        )


def _check_wire(config: Config) -> None:
    if config.precision.wire != "int8":
        return
    if config.engine in PIPELINES:
        raise ConfigError(
            f"precision.wire is int8, but stages of engine {config.engine} send gradients too, which 8 bits do not "
            f"hold; use --set precision.wire=bf16"
        )
    if config.engine == "streams":
        raise ConfigError(
            "precision.wire is int8, but blocks of engine streams share the memory of one GPU, so messages need not be "
            "small; use --set precision.wire=bf16, or --set engine=sequential"
        )


def _check_backends(config: Config) -> None:
    kinds = {"alpha": config.backend.alpha, "target": config.backend.target, "stats": config.backend.stats}
    for kind, choice in kinds.items():
        if choice != "nccl":
            continue
        if config.engine in SYNCHRONOUS:
            raise ConfigError(
                f"backend.{kind} is nccl, but engine {config.engine} always uses nccl between GPUs; use auto"
            )
        if config.engine != "ranks":
            raise ConfigError(f"backend.{kind} is nccl, but engine {config.engine} has one process; use auto")
        if config.device == "cpu":
            raise ConfigError(f"backend.{kind} is nccl, but device is cpu; use --set backend.{kind}=gloo")


def _check_metrics(config: Config) -> None:
    metrics, ranks = config.metrics, max(config.num_parts, sum(config.block_replicas)) + (config.feedback.ranks or 1)
    if metrics.port is not None and metrics.port + ranks - 1 > LAST_PORT:
        raise ConfigError(
            f"metrics.port is {metrics.port}, but {ranks} ranks need ports up to {metrics.port + ranks - 1} "
            f"and the last one is {LAST_PORT}; use --set metrics.port={LAST_PORT - ranks + 1} or less"
        )
    if metrics.port is None and metrics.discovery is not None:
        raise ConfigError(
            f"metrics.discovery is {metrics.discovery!r}, but without a port there is nothing to discover; "
            f"use --set metrics.port=9500, or leave it out"
        )


def _check_trackers(config: Config) -> None:
    names = config.log.to
    for name in names:
        if name not in TRACKERS:
            close = difflib.get_close_matches(name, TRACKERS, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"log.to names the tracker {shown(name)}; expected {', '.join(TRACKERS)}{hint}")
        if names.count(name) > 1:
            raise ConfigError(f"log.to names {name} twice; use it once")


def shown(value: Any) -> str:
    """``value`` in a message, cut to ``MAX_SHOWN`` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


@cache
def field_types(section: type) -> dict[str, Any]:
    """The declared type of every key, and of every section of keys, of a config section."""
    types = get_type_hints(section)
    return {field.name: types[field.name] for field in fields(section) if USER_OBJECT not in field.metadata}


def convert(value: Any, kind: Any, key: str, limits: Mapping[str, Any]) -> Any:
    """``value`` as a ``kind`` within its limits; ConfigError with ``key``, the value and what is expected."""
    if isinstance(value, str) and not _fits(value, kind) and (literals := _literals(kind)):
        close = difflib.get_close_matches(value, literals, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{key} is {shown(value)}; expected {describe(kind)}{hint}")
    if not _fits(value, kind):
        hint = f"; for a text use quotes inside quotes: --set '{key}=\"...\"'" if _fits("", kind) else ""
        hint = f"; use --set '{key}=[{value}]'" if isinstance(value, str) and kind == list[str] else hint
        raise ConfigError(f"{key} is {shown(value)} ({_kind_of(value)}); expected {describe(kind)}{hint}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_limits(value, key, limits)
    is_float = kind is float or (float in get_args(kind) and int not in get_args(kind))
    if is_float and isinstance(value, int):
        return float(value)
    if isinstance(value, list) and kind in (list[float], list[float] | None):
        return [float(item) for item in value]
    return value


def describe(kind: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is list:
        return f"a list, each {describe(arguments[0])}"
    return "text keys and values" if origin is dict else NAMES[kind]


def _literals(kind: Any) -> list[str]:
    """The literal strings of a ``kind``, alone or in a union with numbers and lists."""
    if get_origin(kind) is Literal:
        return [argument for argument in get_args(kind) if isinstance(argument, str)]
    is_union = get_origin(kind) in (Union, types.UnionType)
    return [word for argument in get_args(kind) for word in _literals(argument)] if is_union else []


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _check_limits(value: int | float, key: str, limits: Mapping[str, Any]) -> None:
    least, most = limits.get("least"), limits.get("most")
    if least is not None and value < least:
        raise ConfigError(f"{key} is {shown(value)}; expected at least {least:g}")
    if most is not None and value > most:
        raise ConfigError(f"{key} is {shown(value)}; expected at most {most:g}")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ConfigError(f"{key} is {shown(value)}; expected a number of at most 63 bits")


def _kind_of(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "keys and values"
    return "a number" if isinstance(value, float) else NAMES.get(type(value), type(value).__name__)
