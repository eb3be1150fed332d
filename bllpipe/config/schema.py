"""Every key of a run's configuration, with its default, its range and its meaning.

The defaults are the embedded run: handwritten digits, a small ResNet in four blocks, gloo on CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

END_TO_END = ("bp", "fa", "usf", "dfa")
TWO_STAGES = ("interleaved", "zbv", "dualpipev")  # pipelines in which every rank holds two stages
TORCH_PIPELINES = ("gpipe", "1f1b", *TWO_STAGES)
PIPELINES = (*TORCH_PIPELINES, "deepspeed")
SYNCHRONOUS = (*PIPELINES, "ddp")
DEFAULT_BALANCED = 4  # blocks for ``balanced`` without a number
NEVER = "never"  # a value of keys for intervals
USER_OBJECT = "user_object"  # in the metadata of a field that is not a key
DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
LAST_STAGE = 8  # its width divided by that of the first: each of four stages doubles it


def user_object() -> Any:
    """A field for an object that a script passes in place of a name. It is not a key: no file reads or stores it."""
    return field(default=None, repr=False, compare=False, metadata={USER_OBJECT: True})


def key(default: Any, doc: str, *, least: float | None = None, most: float | None = None) -> Any:
    """A config key: its default, its meaning in one line, and the closed range it may take."""
    metadata = {"doc": doc, "least": least, "most": most}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """The network that is cut into blocks."""

    name: str = key(
        "resnet18", "resnet18/34/50/101/152, or package.module:function that returns an ordered list of modules"
    )
    width: int = key(16, "channels of the stem; 64 is the ResNet of the papers", least=1)
    stem: Literal["cifar", "half", "imagenet"] = key(
        "cifar", "cifar: 3x3, no max-pool; half: the same with stride 2; imagenet: 7x7 stride 2 and max-pool"
    )
    args: dict[str, Any] = key({}, "keyword arguments for package.module:function")
    user_model: Any = user_object()  # (in_channels, num_classes, **args) -> modules


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images; a pure function of seed, epoch and step."""

    crop_padding: int = key(1, "pad by this many zero pixels on each side and crop at random; 0: off", least=0)
    flip: bool = key(False, "mirror left and right at random")
    rotation: float = key(10.0, "rotate by at most this many degrees either way; 0: off", least=0, most=180)


@dataclass(frozen=True)
class DataConfig:
    """Where images and labels come from."""

    name: Literal["digits", "cifar10", "cifar100", "fashion_mnist", "imagefolder", "npz", "synthetic", "given"] = key(
        "digits", "digits, cifar10, cifar100, fashion_mnist, imagefolder, npz, synthetic; given: passed by a script"
    )
    path: str | None = key(None, "folder or file of the data; digits and synthetic need none")
    batch_size: int = key(64, "images in a global mini-batch", least=1)
    image_size: int = key(32, "imagefolder and synthetic: height and width of images", least=1)
    workers: int = key(0, "imagefolder: processes that decode images; 0: the rank itself decodes", least=0)
    mean: list[float] | None = key(None, "subtracted from every channel (pixels in 0..1); null: known or measured")
    std: list[float] | None = key(None, "divides every channel; null: known or measured")
    synthetic_images: int = key(1024, "synthetic: training images; the test set has a quarter as many", least=1)
    synthetic_classes: int = key(10, "synthetic: number of classes", least=2)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    user_data: Any = user_object()  # bllpipe.data.base.UserData


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimiser of this kind for every block."""

    name: Literal["sgd", "adamw"] = key("sgd", "sgd or adamw")
    lr: float = key(0.05, "peak learning rate", least=0)
    momentum: float = key(0.9, "sgd: momentum", least=0, most=1)
    nesterov: bool = key(True, "sgd: Nesterov's form of momentum")
    betas: list[float] = key([0.9, 0.999], "adamw: decay of the two moments")
    weight_decay: float = key(5e-4, "weight decay", least=0)
    decay_norm_and_bias: bool = key(False, "decay normalisations and biases too")
    clip_norm: float | None = key(None, "clip the gradient norm of each block to this; null: off", least=0)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run; all blocks share it."""

    name: Literal["constant", "cosine", "onecycle", "multistep"] = key(
        "onecycle", "constant, cosine, onecycle or multistep"
    )
    warmup_steps: int = key(0, "constant, cosine, multistep: linear warm-up over this many steps", least=0)
    final_fraction: float = key(0.0, "cosine, onecycle: fraction of the peak at the end", least=0, most=1)
    peak_at: float = key(0.3, "onecycle: where in the run the peak lies", least=0, most=1)
    start_fraction: float = key(0.04, "onecycle: fraction of the peak at the start", least=0, most=1)
    milestones: list[float] = key([0.3, 0.6, 0.8], "multistep: fractions of the run after which the rate drops")
    gamma: float = key(0.2, "multistep: factor of each drop", least=0, most=1)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The local loss of every block but the last: kl_weight * KL + pred_weight * cross-entropy of a local head."""

    function: str | None = key(
        None, "own: package.module:function (alpha, scores, target, x) -> terms, or a module class that makes one"
    )
    kl_weight: float = key(1.0, "bll: weight of KL(rho || alpha), nats summed over the channels", least=0)
    pred_weight: float = key(1.0, "bll, dgl: weight of the local head's cross-entropy", least=0)
    sim_share: float = key(0.99, "predsim: share of the similarity-matching loss, the rest predicts", least=0, most=1)
    keep_weight: float = key(
        0.0, "weight of the reconstruction loss: the input of the block, decoded from alpha (InfoPro)", least=0
    )
    family: Literal["gaussian", "gaussian_learned", "bernoulli", "categorical"] = key(
        "gaussian", "bll: distribution of alpha and beta; gaussian: of variance 1; gaussian_learned: one a channel"
    )
    normalize: Literal["none", "sample", "batch"] = key(
        "none", "bll: channel means as they are, or with mean 0 and variance 1 within each sample or over the batch"
    )
    head: Literal["linear", "mlp", "conv", "narrow", "gap", "strided"] = key(
        "linear",
        "linear (on a pool), mlp (hidden layer on it), conv (3x3, then linear), narrow (1x1, then conv), gap, strided "
        "(3x3 with stride 2 to the network's last width, then gap)",
    )
    head_features: int = key(4096, "all but gap and strided: pool alpha to at most this many features", least=1)
    head_hidden: int = key(256, "mlp: width of the hidden layer; narrow: most channels of its convolutions", least=1)
    head_layers: int = key(1, "conv, narrow: 3x3 convolutions; all but the first have stride 2", least=1)
    head_width: int | None = key(
        None,
        "strided: channels at the end; null: as many as the network has there, without a bottleneck's expansion",
        least=1,
    )
    head_reduce: int | None = key(None, "strided: channels of a 1x1 convolution that comes first; null: none", least=1)
    head_scale: bool = key(False, "multiply the F features of the head's linear layer by sqrt(128 / F)")
    head_lr: float = key(1.0, "factor on the learning rate of the heads' parameters", least=0)
    label_smoothing: float = key(0.0, "label smoothing of every cross-entropy", least=0, most=1)
    user_loss: Any = user_object()  # what ``function`` names


@dataclass(frozen=True)
class FeedbackConfig:
    """The label-only network that computes the targets beta."""

    update: Literal["closed_form", "sgd", "fixed"] = key(
        "closed_form", "closed_form (least squares), sgd (on the same KL), fixed (random, never changes)"
    )
    lag: int = key(1, "steps between the last statistics that a feedback loop has absorbed and its target", least=1)
    layers: int = key(1, "sgd, fixed: linear layers, with ReLU between", least=1)
    hidden: int = key(128, "sgd, fixed: width between the layers", least=1)
    decay: float = key(0.9, "closed_form: decay of the class sums and counts a step", least=0, most=1)
    ridge: float = key(1e-3, "closed_form: ridge added to the class counts", least=0)
    lr: float = key(0.1, "sgd: learning rate", least=0)
    momentum: float = key(0.9, "sgd: momentum", least=0, most=1)
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "where the feedback rank computes; auto: a GPU of its own, else the CPU"
    )


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
    ring: int = key(2, "receive buffers an edge", least=1)
    in_flight: int = key(2, "sends in flight an edge", least=1)
    timeout_seconds: float = key(600.0, "longest wait for a message before the run fails", least=0.1)


@dataclass(frozen=True)
class PrecisionConfig:
    """Number formats."""

    compute: Literal["fp32", "bf16"] = key("fp32", "bf16: forward and backward under autocast")
    wire: Literal["fp32", "bf16"] = key("fp32", "format of alpha between ranks")


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


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str | None = key(None, "name of the run directory under runs/; null: made from data, model and method")
    method: Literal["bll", "dgl", "predsim", "own", "bp", "fa", "usf", "dfa"] = key(
        "bll",
        "local: bll, dgl (local heads alone), predsim, own (objective.function); "
        "end to end: bp (single, ddp, pipelines), fa, usf, dfa (single)",
    )
    engine: Literal[
        "ranks",
        "threads",
        "sequential",
        "streams",
        "single",
        "ddp",
        "gpipe",
        "1f1b",
        "interleaved",
        "zbv",
        "dualpipev",
        "deepspeed",
    ] = key(
        "ranks",
        "local: ranks, threads, sequential, streams (one GPU); whole network: single, ddp (blocks: replicas); "
        "pipelines (blocks: stages): one a rank gpipe, 1f1b, deepspeed, two a rank interleaved, zbv, dualpipev",
    )
    seed: int = key(0, "seed of weights, order and augmentation", least=0)
    epochs: int = key(20, "passes over the training data", least=1)
    steps: int | None = key(None, "training steps; null: epochs decide", least=1)
    stop_at: int | None = key(
        None, "end after this step with a checkpoint; the schedule still spans the whole run", least=1
    )
    blocks: int | str | list[int | str] = key(
        4,
        "number of blocks; or cuts, by number of residual units ([4, 8, 12]) or by name ([layer1.2, layer2.3]); or "
        "balanced, or balanced 8: equal operations",
    )
    replicas: int | list[int] = key(1, "ranks: ranks that share a block; one number for all, or one each: [2, 1, 1, 1]")
    shards: int | None = key(
        None,
        "equal parts of a batch, which pass the blocks one by one; results depend on their number; null: the largest "
        "number of replicas",
        least=1,
    )
    norm: Literal["shard", "sync"] = key("shard", "BatchNorm of every shard by itself, or of the whole batch")
    reduce: Literal["ordered", "native"] = key(
        "ordered", "sums over replicas; ordered: the same bits for any replicas; native: the backend's all-reduce"
    )
    device: Literal["auto", "cpu", "cuda"] = key("auto", "where the blocks compute; auto: GPUs if there are any")
    cpu_threads: int = key(1, "CPU threads of each rank; results depend on their number", least=1)
    channels_last: bool | Literal["auto"] = key(
        "auto",
        "memory format of convolutions' weights and activations; auto: channels_last on GPUs only, as the results of "
        "a CPU depend on it",
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    gpu: GpuConfig = field(default_factory=GpuConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    @property
    def block_replicas(self) -> tuple[int, ...]:
        """The number of replicas of every block."""
        return tuple(self.replicas) if isinstance(self.replicas, list) else (self.replicas,) * self.num_blocks

    @property
    def num_shards(self) -> int:
        """``shards`` as a number."""
        return self.shards or max(self.block_replicas)

    @property
    def num_passes(self) -> int:
        """The parts of a batch with statistics of BatchNorm of their own: the shards, or the whole batch."""
        return self.num_shards if self.norm == "shard" else 1

    @property
    def is_end_to_end(self) -> bool:
        """Whether the network is trained end to end, without a feedback rank."""
        return self.method in END_TO_END

    @property
    def cuts(self) -> int | str | list[int | str]:
        """``blocks``; an end-to-end network is one block, though its stages may be on several ranks."""
        return 1 if self.is_end_to_end else self.blocks

    @property
    def num_parts(self) -> int:
        """``blocks`` as a number: of blocks, stages or replicas."""
        return self.balanced or (self.blocks if isinstance(self.blocks, int) else len(self.blocks) + 1)

    @property
    def balanced(self) -> int | None:
        """The number of blocks for ``blocks: balanced``; None for any other value."""
        return int(self.blocks.partition(" ")[2] or DEFAULT_BALANCED) if isinstance(self.blocks, str) else None

    @property
    def num_blocks(self) -> int:
        return 1 if self.is_end_to_end else self.num_parts


def residual_units(name: str) -> list[tuple[int, int]]:
    """(stage, index in the stage) of every residual unit, both from 0; a cut never divides a unit."""
    return [(stage, index) for stage, depth in enumerate(DEPTHS[name]) for index in range(depth)]


def unit_name(stage: int, index: int) -> str:
    """The name of a residual unit in torchvision, and in cuts."""
    return f"layer{stage + 1}.{index}"
