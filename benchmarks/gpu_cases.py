"""The runs that the GPU benchmark compares: which network, in which batches, trained how.

Both sides are offered the same: as it is, captured, compiled, compiled and captured. What BLL is compared with is the
fastest that backpropagation makes of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

BLL = ("method=bll", "engine=streams")
BP = ("method=bp", "engine=single")
# What the configs in configs/ train with: a strided head, which bears the rates of BP, in ResNet-50 behind a 1x1
# convolution; a KL that is small, as it is summed over 64 to 1,024 channels; and blocks of equal operations, whose cuts
# are written out here, by network and number of blocks, as to count operations takes seconds of every run.
HEAD = ("objective.head=strided", "objective.kl_weight=0.01")
OF_MODEL = {"resnet18": HEAD, "resnet50": (*HEAD, "objective.head_reduce=128")}
CUTS = {
    ("resnet18", 4): "[layer1.0, layer2.0, layer3.0]",
    ("resnet18", 8): "[layer1.0, layer1.1, layer2.0, layer2.1, layer3.0, layer3.1, layer4.0]",
    ("resnet50", 4): "[layer2.0, layer3.0, layer3.5]",
}
COMPILED, CAPTURED, BLOCKS = "gpu.compile=true", "gpu.capture=true", "gpu.capture=blocks"
# The most informative first. gpu.* has no effect on a CPU, so some of them are the same there.
VARIANTS = {
    "bp captured": (*BP, CAPTURED),
    "bll one graph": (*BLL, CAPTURED),
    "bll blocks": (*BLL, BLOCKS),
    "bp eager": BP,
    "bll eager": BLL,
    "bll in turn": ("method=bll", "engine=sequential", CAPTURED),
    "bp compiled captured": (*BP, COMPILED, CAPTURED),
    "bll one graph compiled": (*BLL, COMPILED, CAPTURED),
    "bp compiled": (*BP, COMPILED),
    "bll blocks compiled": (*BLL, COMPILED, BLOCKS),
}
MODELS = ("resnet50", "resnet18")
BATCHES = (128, 32, 512, 64, 256, 16)
COMPILED_BATCHES = (128, 32)  # the compiler takes a minute a network and batch

LINE_STEPS = 100  # a line of metrics is no part of the one graph, for as many wavefront steps as there are blocks
WARM_UP_LAPS = 1  # graphs are captured in it, kernels are chosen there
FULL = (
    "model.width=64",
    "data.name=synthetic",
    "data.image_size=32",
    "data.synthetic_images=4096",
    "data.augment.crop_padding=4",
    "data.augment.flip=true",
    "data.augment.rotation=0",
    "precision.compute=bf16",
    "evaluate.every_epochs=never",
    "checkpoint.every_steps=never",
    "log.plain_seconds=3600",
)
SMALL = ("model.width=2", "data.synthetic_images=64", "data.image_size=8")  # a rehearsal
SPOILED = ("data.name=npz", "data.path=spoiled-on-purpose.npz")


@dataclass(frozen=True)
class Scale:
    """Device and size of all cases. Cases whose names contain ``spoiled`` have data that do not exist: they fail, which
    rehearses that the others run all the same."""

    device: str = "cuda"
    quick: bool = False
    overrides: tuple[str, ...] = ()
    spoiled: str | None = None

    def limit(self, seconds: float) -> float:
        """How long a part may take that takes at most ``seconds`` on a GPU. CPUs that rehearse it may be busy."""
        return 10 * seconds if self.quick else seconds


@dataclass(frozen=True)
class Case:
    """One run: ``laps`` intervals of ``lap_steps`` steps are measured after ``WARM_UP_LAPS`` others."""

    variant: str
    model: str
    batch: int
    settings: tuple[str, ...] = field(compare=False)
    device: str = "cuda"
    lap_steps: int = LINE_STEPS
    laps: int = 3

    @property
    def name(self) -> str:
        return f"{self.model} B={self.batch} {self.variant}"

    @property
    def side(self) -> str:
        """``bp`` or ``bll``."""
        return self.variant.split()[0]

    @property
    def is_compiled(self) -> bool:
        return "compiled" in self.variant

    @property
    def steps(self) -> int:
        return self.lap_steps * (WARM_UP_LAPS + self.laps)


Group = tuple[Case, ...]  # cases whose repetitions are interleaved


def make_case(scale: Scale, model: str, batch: int, variant: str) -> Case:
    """A case; a large batch has fewer intervals, as each takes longer, and a rehearsal is small."""
    batch = max(2, batch // 16) if scale.quick else batch
    lap_steps, laps = (2, 2) if scale.quick else (LINE_STEPS, 2 if batch > 128 else 3)
    settings = tuple(_settings(scale, model, batch, VARIANTS[variant], lap_steps))
    case = Case(variant, model, batch, settings, scale.device, lap_steps, laps)
    is_spoiled = scale.spoiled is not None and scale.spoiled in case.name
    return replace(case, settings=(*settings, *SPOILED)) if is_spoiled else case


def groups(scale: Scale, models: Sequence[str], batches: Sequence[int], variants: Sequence[str]) -> list[Group]:
    """All cases of the arguments; compiled ones come last."""
    ordinary = [variant for variant in variants if "compiled" not in variant]
    compiled = [variant for variant in variants if "compiled" in variant]
    few = [batch for batch in batches if batch in COMPILED_BATCHES or scale.quick]
    found = [
        tuple(make_case(scale, model, batch, variant) for variant in chosen)
        for sizes, chosen in ((batches, ordinary), (few, compiled))
        for batch in sizes
        for model in models
    ]
    return [group for group in found if group]


def _settings(scale: Scale, model: str, batch: int, variant: Sequence[str], lap_steps: int) -> Iterator[str]:
    yield from FULL
    yield from SMALL if scale.quick else ()
    yield from variant
    yield from OF_MODEL[model] if BLL[0] in variant else ()
    yield f"model.name={model}"
    yield f"blocks={CUTS[model, 4]}"
    yield f"data.batch_size={batch}"
    yield f"device={scale.device}"
    yield f"log.every_steps={lap_steps}"
    yield from scale.overrides
