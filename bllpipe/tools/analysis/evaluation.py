"""Every exit of a run on the test set: its accuracy, its cost, and what early exits would save.

An exit is a local head, and at the end the classifier. FLOPs are those of convolutions and matrix products for one
image; one multiply-accumulate is two. Normalisations, activations and pools are not counted, as is usual. Parameters
that only training needs are counted separately.

Shapes: B images of a batch, N test images, E exits, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bllpipe.distributed.message_format import through_wire
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Block, add_votes
from bllpipe.messages import Round
from bllpipe.tools.analysis.finished_run import FinishedRun, evaluation_batches, load_blocks

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Predictions:
    """The class that each exit predicts for each test image, its confidence (the largest class probability), and the
    class that it and all exits before it predict together, by the mean of their class probabilities."""

    class_EN: Tensor
    confidence_EN: Tensor
    label_N: Tensor
    ensemble_class_EN: Tensor

    @property
    def accuracy(self) -> list[float]:
        """The accuracy of every exit, as a run computes it."""
        return self._accuracy(self.class_EN)

    @property
    def ensemble_accuracy(self) -> list[float]:
        """The accuracy of every exit together with those before it; ``evaluate.ensemble`` measures the last."""
        return self._accuracy(self.ensemble_class_EN)

    def _accuracy(self, class_EN: Tensor) -> list[float]:
        return [int(hits) / len(self.label_N) for hits in (class_EN == self.label_N).sum(dim=1)]


@dataclass(frozen=True)
class Exit:
    """Exit ``number``, behind unit ``after``. ``ensemble_accuracy`` is that of exits 0 to ``number`` together: the mean
    of their class probabilities. ``flops`` (for one image), ``macs`` and ``parameters`` are those of the network up to
    it and of its own head; the shares are the head's in its block with head."""

    number: int
    after: str
    test_accuracy: float
    ensemble_accuracy: float
    flops: int
    macs: int
    parameters: int
    head_flops: int
    head_flops_share: float
    head_parameters: int
    head_parameters_share: float
    training_only_parameters: int


@dataclass(frozen=True)
class EarlyExit:
    """Images leave at the first exit whose confidence reaches ``threshold``. ``left`` is the share of images by exit;
    ``mean_flops`` counts every head on an image's way, ``relative_cost`` compares them with the network alone."""

    threshold: float
    left: list[float]
    test_accuracy: float
    mean_flops: float
    relative_cost: float


@dataclass(frozen=True)
class Evaluation:
    """A run's exits, and its early exits by threshold. ``flops``, ``macs`` and ``parameters`` are those of the network
    without local heads; ``recorded_test_accuracy`` is what the run itself measured at this step. ``ensemble_accuracy``
    is that of all exits together."""

    run: str
    method: str
    engine: str
    step: int
    device: str
    test_images: int
    test_accuracy: float
    recorded_test_accuracy: float | None
    ensemble_accuracy: float
    flops: int
    macs: int
    parameters: int
    training_only_parameters: int
    exits: list[Exit]
    early_exits: list[EarlyExit]


def evaluate_run(run: FinishedRun, thresholds: Sequence[float] = THRESHOLDS) -> Evaluation:
    """Tests all exits of ``run``; ConfigError for a threshold that is no probability."""
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise ConfigError(f"--threshold {threshold:g} is no probability; expected numbers from 0 to 1")
    blocks = load_blocks(run)
    costs = block_costs(blocks, run.images.spec.image_shape)
    predictions = predict(run, blocks, run.wire_dtype)
    exits = _exits(blocks, costs, predictions)
    return Evaluation(
        run=run.path.resolve().name,
        method=run.config.method,
        engine=run.config.engine,
        step=run.checkpoint.step,
        device=run.device.type,
        test_images=len(predictions.label_N),
        test_accuracy=exits[-1].test_accuracy,
        recorded_test_accuracy=run.recorded_accuracy,
        ensemble_accuracy=exits[-1].ensemble_accuracy,
        flops=exits[-1].flops,
        macs=exits[-1].macs,
        parameters=exits[-1].parameters,
        training_only_parameters=sum(cost.training_only for cost in costs),
        exits=exits,
        early_exits=[leave_early(predictions, threshold, costs) for threshold in thresholds],
    )


def predict(run: FinishedRun, blocks: Sequence[Block], wire_dtype: torch.dtype) -> Predictions:
    """The test set through all blocks, with activations of ``wire_dtype`` between them."""
    classes, confidences, ensemble_classes, labels = [], [], [], []
    for x_BCHW, label_B in evaluation_batches(run):
        scores = exit_scores(run, blocks, x_BCHW, wire_dtype)
        scores_EBK = torch.stack(scores)
        classes.append(scores_EBK.argmax(dim=2).cpu())
        confidences.append(scores_EBK.float().softmax(dim=2).amax(dim=2).cpu())
        votes = accumulate(scores[1:], add_votes, initial=add_votes(None, scores[0]))  # as a run adds them
        ensemble_classes.append(torch.stack([*votes]).argmax(dim=2).cpu())
        labels.append(label_B.cpu())
    by_exit = (torch.cat(parts, dim=1) for parts in (classes, confidences, ensemble_classes))
    class_EN, confidence_EN, ensemble_class_EN = by_exit
    return Predictions(class_EN, confidence_EN, torch.cat(labels), ensemble_class_EN)


@torch.no_grad()
def exit_scores(run: FinishedRun, blocks: Sequence[Block], x: Tensor, wire_dtype: torch.dtype) -> list[Tensor]:
    """The class scores [B, K] of every exit, as the run computes them when it tests."""
    scores = []
    for block in blocks:
        alpha = block.infer(x)
        with run.autocast():
            scores.append(block.head.eval()(alpha))
        shards = Round("evaluate", 0, size=len(alpha)).shards(run.config.num_shards)  # a message each
        sent = torch.cat([through_wire(part, wire_dtype) for part in alpha.split([each.size for each in shards])])
        x = sent if run.config.precision.compute == "bf16" else sent.float()  # as the next block receives it
    return scores


def leave_early(predictions: Predictions, threshold: float, costs: Sequence[BlockCost]) -> EarlyExit:
    """Every image leaves at the first exit whose confidence reaches ``threshold``, or at the last one."""
    confident_EN = predictions.confidence_EN >= threshold
    confident_EN[-1] = True
    exit_N = confident_EN.int().argmax(dim=0)  # the first of them
    class_N = predictions.class_EN.gather(0, exit_N.unsqueeze(0)).squeeze(0)
    num_images = len(exit_N)
    left_E = torch.bincount(exit_N, minlength=len(costs)).tolist()
    until_E = accumulate(cost.flops + cost.head_flops for cost in costs)
    mean_flops = sum(left * flops for left, flops in zip(left_E, until_E, strict=True)) / num_images
    return EarlyExit(
        threshold=threshold,
        left=[left / num_images for left in left_E],
        test_accuracy=int((class_N == predictions.label_N).sum()) / num_images,
        mean_flops=mean_flops,
        relative_cost=share(mean_flops, sum(cost.flops for cost in costs)),
    )


def _exits(blocks: Sequence[Block], costs: Sequence[BlockCost], predictions: Predictions) -> list[Exit]:
    exits = []
    accuracies = zip(predictions.accuracy, predictions.ensemble_accuracy, strict=True)
    for number, (block, cost, (accuracy, together)) in enumerate(zip(blocks, costs, accuracies, strict=True)):
        passed = costs[: number + 1]
        flops = sum(each.flops for each in passed) + cost.head_flops
        exits.append(
            Exit(
                number=number,
                after=block.segment.last_unit,
                test_accuracy=accuracy,
                ensemble_accuracy=together,
                flops=flops,
                macs=flops // 2,
                parameters=sum(each.parameters for each in passed) + cost.head_parameters,
                head_flops=cost.head_flops,
                head_flops_share=cost.head_flops_share,
                head_parameters=cost.head_parameters,
                head_parameters_share=cost.head_parameters_share,
                training_only_parameters=cost.training_only,
            )
        )
    return exits


@dataclass(frozen=True)
class BlockCost:
    """FLOPs for one image and parameters of a block's segment and of its head; the last block's head has none of its
    own. ``training_only``: the parameters of its objective."""

    flops: int
    head_flops: int
    parameters: int
    head_parameters: int
    training_only: int

    @property
    def head_flops_share(self) -> float:
        return share(self.head_flops, self.flops + self.head_flops)

    @property
    def head_parameters_share(self) -> float:
        return share(self.head_parameters, self.parameters + self.head_parameters)


def block_costs(blocks: Sequence[Block], image_shape: Sequence[int]) -> list[BlockCost]:
    """The costs of every block for an image of ``image_shape`` [C, H, W]."""
    costs = []
    x = torch.zeros(1, *image_shape, device=blocks[0].learner.device)
    for block in blocks:
        alpha, flops = counted(block.infer, x)
        x = alpha.float()
        head_flops = counted(block.head.eval(), x)[1]
        objective = block.objective.parameters() if isinstance(block.objective, nn.Module) else ()
        sizes = (_size(block.segment.parameters()), _size(block.head.parameters()), _size(objective))
        costs.append(BlockCost(flops, head_flops, *sizes))
    return costs


@torch.no_grad()
def counted(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int]:
    """``function(x)`` and its FLOPs."""
    with FlopCounterMode(display=False) as counter:
        result = function(x)
    return result, int(counter.get_total_flops())


def share(part: float, whole: float) -> float:
    """``part`` of ``whole``; 0 of nothing."""
    return part / whole if whole else 0.0


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
