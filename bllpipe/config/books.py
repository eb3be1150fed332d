"""The keys that say what a run tells of itself, and what it keeps: they change nothing in what it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bllpipe.config.keys import key


@dataclass(frozen=True)
class EvaluateConfig:
    """The test set goes through the same pipeline."""

    every_epochs: int | Literal["never"] = key(
        1, "evaluate after every so many epochs; 0: only at the end; never: not at the end either", least=0
    )
    ensemble: bool = key(
        False, "also test all heads together (mean class probabilities); tests then send 4 bytes a class and image more"
    )


@dataclass(frozen=True)
class LogConfig:
    """metrics.jsonl and progress."""

    every_steps: int = key(20, "steps between two lines of metrics.jsonl a rank", least=1)
    plain_seconds: float = key(10.0, "seconds between progress lines when the output is not a terminal", least=0.1)
    if_unwritable: Literal["fail", "go_on"] = key(
        "go_on", "metrics or spans that the disk refuses: go_on without them and say so, or fail"
    )


@dataclass(frozen=True)
class MetricsConfig:
    """What a rank tells Prometheus of itself."""

    port: int | None = key(
        None, "rank r tells its figures at this port + r; 0: at any free one; null: off", least=0, most=65535
    )
    host: str = key("127.0.0.1", "address that the ports listen at; 0.0.0.0: every address of the machine")
    discovery: str | None = key(
        None, "directory for a copy of the run's prometheus.json, by which Prometheus finds all runs; null: none"
    )
    textfile: str | None = key(
        None, "directory of node-exporter's textfile collector, for figures without a port; null: off"
    )


@dataclass(frozen=True)
class TraceConfig:
    """spans/rank-N.jsonl in the run directory: who did what when, for bllpipe timeline."""

    first_step: int = key(0, "first step that is traced", least=0)
    num_steps: int = key(0, "steps that are traced, with the tests and checkpoints behind them; 0: off", least=0)


@dataclass(frozen=True)
class CheckpointConfig:
    """checkpoints/step-N in the run directory."""

    every_steps: int | Literal["never"] | None = key(
        200,
        "steps between checkpoints; null: once an epoch; 0: only at the end; never: none, not even when a signal stops "
        "the run, which then cannot go on",
        least=0,
    )
    keep: int = key(2, "newest checkpoints to keep", least=1)
    if_unwritable: Literal["fail", "go_on"] = key(
        "fail", "a checkpoint that the disk refuses: fail, or go_on to the next one; without the last one a run fails"
    )
    tries: int = key(3, "failed attempts from one checkpoint after which the launcher restarts no more", least=1)
