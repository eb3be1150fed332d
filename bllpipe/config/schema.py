"""Every key of a run's configuration, with its default, its range and its meaning.

The defaults are the embedded run: handwritten digits, a small ResNet in four blocks, gloo on CPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bllpipe.config.fields import key, user_object
from bllpipe.config.running import (
    BackendConfig,
    CheckpointConfig,
    EvaluateConfig,
    GpuConfig,
    LogConfig,
    MetricsConfig,
    PipelineConfig,
    PrecisionConfig,
    TraceConfig,
)

END_TO_END = ("bp", "fa", "usf", "dfa")
TWO_STAGES = ("interleaved", "zbv", "dualpipev")  # pipelines in which every rank holds two stages
TORCH_PIPELINES = ("gpipe", "1f1b", *TWO_STAGES)
PIPELINES = (*TORCH_PIPELINES, "deepspeed")
SYNCHRONOUS = (*PIPELINES, "ddp")
DEFAULT_BALANCED = 4  # blocks for ``balanced`` without a number
TRACKERS = ("tensorboard", "wandb", "mlflow")  # packages, and extras, of the same names


@dataclass(frozen=True)
class ModelConfig:
    """The network that is cut into blocks."""

    name: str = key(
        "resnet18",
        "resnet18/34/50/101/152; torchvision:NAME or timm:NAME, such as torchvision:convnext_tiny; or "
        "package.module:function that returns a network or an ordered list of modules",
    )
    width: int = key(16, "the ResNets of bllpipe: channels of the stem; 64 is the ResNet of the papers", least=1)
    stem: Literal["cifar", "half", "imagenet"] = key(
        "cifar",
        "the ResNets of bllpipe: cifar: 3x3, no max-pool; half: the same with stride 2; imagenet: 7x7 stride 2 and "
        "max-pool",
    )
    args: dict[str, Any] = key({}, "keyword arguments for a network of torchvision or timm, or package.module:function")
    weights: str | None = key(
        None,
        "safetensors file with a pretrained network's state_dict; of another number of classes: all but the classifier",
    )
    recompute: Literal["none", "units"] = key(
        "none", "units: keep the inputs of units alone, and compute the units again in the backward pass"
    )
    user_model: Any = user_object()  # (in_channels, num_classes, **args) -> modules


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images; a pure function of seed, epoch and step, for a recipe of the image."""

    crop_padding: int = key(1, "pad by this many zero pixels on each side and crop at random; 0: off", least=0)
    flip: bool = key(False, "mirror left and right at random")
    rotation: float = key(10.0, "rotate by at most this many degrees either way; 0: off", least=0, most=180)
    recipe: Literal["none", "cifar", "imagenet", "trivial"] = key(
        "none",
        "in place of the keys above: cifar (crop, flip), imagenet (random resized crop, flip), trivial (the same, "
        "TrivialAugment, random erasing)",
    )


@dataclass(frozen=True)
class DataConfig:
    """Where images and labels come from."""

    name: Literal[
        "digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "imagefolder", "npz", "synthetic", "given"
    ] = key(
        "digits",
        "digits, cifar10, cifar100, mnist, fashion_mnist, imagefolder, npz, synthetic; given: passed by a script",
    )
    path: str | None = key(None, "folder or file of the data; digits and synthetic need none")
    batch_size: int = key(64, "images in a global mini-batch", least=1)
    image_size: int = key(32, "imagefolder and synthetic: height and width of images", least=1)
    workers: int = key(
        0,
        "processes that decode images, or run a recipe; 0: the rank itself decodes, and a recipe has one process",
        least=0,
    )
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
    kl_scale: Literal["none", "channels", "classes", "both"] = key(
        "none", "bll: divide kl_weight by the size of the message (channels), by the number of classes, or by both"
    )
    kl_block_factor: float = key(1.0, "bll: factor of kl_weight from block to block; below 1 it falls", least=0)
    kl_final_fraction: float = key(1.0, "bll: fraction of kl_weight at the end of the run, reached linearly", least=0)
    message: Literal["means", "cells", "embedding"] = key(
        "means", "bll: what beta is about: channel means of alpha; those in each of 2x2 cells; the head's embedding"
    )
    pred_weight: float = key(1.0, "bll, dgl: weight of the local head's cross-entropy", least=0)
    sim_share: float = key(0.99, "predsim: share of the similarity-matching loss, the rest predicts", least=0, most=1)
    keep_weight: float = key(
        0.0, "weight of the reconstruction loss: the input of the block, decoded from alpha (InfoPro)", least=0
    )
    contrast_weight: float = key(0.0, "weight of the contrastive loss of the head's embedding (InfoPro)", least=0)
    family: Literal["gaussian", "gaussian_learned", "bernoulli", "categorical"] = key(
        "gaussian", "bll: distribution of alpha and beta; gaussian: of variance 1; gaussian_learned: one a channel"
    )
    normalize: Literal["none", "sample", "batch"] = key(
        "none", "bll: channel means as they are, or with mean 0 and variance 1 within each sample or over the batch"
    )
    head: Literal["linear", "mlp", "conv", "narrow", "gap", "strided", "auglocal"] = key(
        "linear",
        "linear (on a pool), mlp (hidden layer on it), conv (3x3, then linear), narrow (1x1, then conv), gap, strided "
        "(3x3 with stride 2 to the network's last width, then gap), auglocal (residual units like later ones, gap); of "
        "tokens and vectors always linear",
    )
    tokens: Literal["auto", "class", "mean"] = key(
        "auto",
        "alpha [B, T, C]: head and message read the class token (the first one), or the mean of all tokens; auto: "
        "class, if tracing shows that the network itself reads the first token alone in the end",
    )
    head_features: int = key(4096, "linear, mlp, conv, narrow: pool alpha to at most this many features", least=1)
    head_hidden: int = key(256, "mlp: width of the hidden layer; narrow: most channels of its convolutions", least=1)
    head_layers: int = key(1, "conv, narrow: 3x3 convolutions; all but the first have stride 2", least=1)
    head_width: int | None = key(
        None,
        "strided: channels at the end; null: as many as the network has there, without a bottleneck's expansion",
        least=1,
    )
    head_reduce: int | None = key(None, "strided: channels of a 1x1 convolution that comes first; null: none", least=1)
    head_units: int = key(2, "auglocal: residual units, evenly spaced among those after the block", least=1)
    head_scale: bool | Literal["auto"] = key(
        "auto", "multiply the F features that the head reads, if more than 128, by sqrt(128 / F); auto: for linear only"
    )
    head_lr: float = key(1.0, "factor on the learning rate of the heads' parameters", least=0)
    label_smoothing: float = key(0.0, "label smoothing of every cross-entropy", least=0, most=1)
    user_loss: Any = user_object()  # what ``function`` names

    @property
    def is_head_scaled(self) -> bool:
        return self.head == "linear" if self.head_scale == "auto" else self.head_scale


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
    ranks: int | None = key(
        None, "ranks: ranks that share the feedback loops of all blocks; null: one for 64 ranks of blocks", least=1
    )
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "where the feedback rank computes; auto: a GPU of its own, else the CPU"
    )


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
    replicas: int | list[int] | Literal["auto"] = key(
        1,
        "ranks: ranks that share a block; one number for all, one each: [2, 1, 1, 1], or auto: counted for the ranks "
        "that are started",
    )
    shards: int | None = key(
        None,
        "equal parts of a batch, which pass the blocks one by one; results depend on their number; null: the largest "
        "number of replicas, or the next one that divides the batch if they are auto",
        least=1,
    )
    norm: Literal["shard", "sync"] = key("shard", "BatchNorm of every shard by itself, or of the whole batch")
    reduce: Literal["ordered", "native"] = key(
        "ordered", "sums over replicas; ordered: the same bits for any replicas; native: the backend's all-reduce"
    )
    sharding: Literal["none", "fsdp"] = key(
        "none", "fsdp: each replica of a block holds a slice of its parameters, gradients and optimizer state"
    )
    placement: Literal["auto", "block", "pipeline"] = key(
        "auto",
        "order of ranks over nodes: all replicas of a block together (block), or the blocks of a replica (pipeline); "
        "auto: fewer bytes between nodes",
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
        """The number of replicas of every block; one each while they are ``auto``."""
        if self.replicas == "auto":
            return (1,) * self.num_blocks
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
