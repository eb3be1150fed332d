"""The keys of how a run is carried out: messages, precision, GPUs, checkpoints, tests, logs. They do not say what is
learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bllpipe.config.fields import key


@dataclass(frozen=True)
class PipelineConfig:
    """The synchronous pipelines: gpipe, 1f1b, interleaved, zbv, dualpipev, deepspeed."""

    microbatches: int = key(4, "equal parts that every batch is split into; BatchNorm sees one at a time", least=1)


@dataclass(frozen=True)
class BackendConfig:
    """The backends of messages."""

    alpha: Literal["auto", "nccl", "gloo"] = key("auto", "activations; auto: nccl between distinct GPUs, else gloo")
    target: Literal["auto", "nccl", "gloo"] = key("auto", "targets; auto: gloo")
    stats: Literal["auto", "nccl", "gloo"] = key("auto", "statistics; auto: gloo")
    ring: int = key(2, "receive buffers an edge; slow links need 1 + round trip / time of a step", least=1)
    in_flight: int = key(2, "sends in flight an edge", least=1)
    timeout_seconds: float = key(600.0, "longest wait for a message before the run fails", least=0.1)


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats."""

    compute: Literal["fp32", "bf16"] = key("fp32", "bf16: forward and backward under autocast")
    wire: Literal["fp32", "bf16", "int8"] = key(
        "fp32", "format of alpha between ranks; int8: with a scale and an offset for each channel"
    )


@dataclass(frozen=True)
class GpuConfig:
    """How blocks compute on a GPU; without a GPU these keys have no effect."""

    tf32: bool = key(False, "fp32 convolutions and products in TF32: faster, with 10 bits of mantissa")
    capture: bool | Literal["blocks"] = key(
        False,
        "capture steps as CUDA graphs, once, and replay them; engine streams: one graph for all blocks, or with "
        "blocks one a block",
    )
    compile: bool = key(False, "torch.compile of every block and its head")
    deterministic: bool = key(False, "only kernels that give the same bits in every run")
    images: Literal["auto", "device", "host"] = key(
        "auto", "where images are stored and augmented; auto: on the GPU if they take at most a quarter of its memory"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """checkpoints/step-N in the run directory."""

    every_steps: int | Literal["never"] | None = key(
        200,
        "steps between checkpoints; null: once an epoch; 0: only at the end; never: none, not even when a signal stops "
        "the run, which then cannot be resumed",
        least=0,
    )
    keep: int = key(2, "newest checkpoints to keep", least=1)
    if_unwritable: Literal["fail", "go_on"] = key(
        "fail", "if a checkpoint cannot be written: fail, or go_on to the next one; without the last one a run fails"
    )
    tries: int = key(3, "failed attempts from one checkpoint after which the launcher restarts no more", least=1)


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
    to: list[str] = key([], "trackers that show the run while it trains: tensorboard, wandb, mlflow")
    plain_seconds: float = key(10.0, "seconds between progress lines when the output is not a terminal", least=0.1)
    if_unwritable: Literal["fail", "go_on"] = key(
        "go_on", "if metrics or spans cannot be written: go_on without them and warn, or fail"
    )


@dataclass(frozen=True)
class MetricsConfig:
    """Metrics of each rank for Prometheus."""

    port: int | None = key(
        None, "rank r serves its metrics at this port + r; 0: at any free port; null: off", least=0, most=65535
    )
    host: str = key("127.0.0.1", "address that the ports listen at; 0.0.0.0: every address of the machine")
    discovery: str | None = key(
        None, "directory for a copy of the run's prometheus.json, by which Prometheus finds all runs; null: none"
    )
    textfile: str | None = key(
        None, "directory of node-exporter's textfile collector, for metrics without a port; null: off"
    )


@dataclass(frozen=True)
class TraceConfig:
    """spans/rank-N.jsonl in the run directory: the spans of each rank, for bllpipe timeline."""

    first_step: int = key(0, "first step that is traced", least=0)
    num_steps: int = key(0, "steps that are traced, with the tests and checkpoints after them; 0: off", least=0)
