"""Local losses: what a block minimises, as named terms whose sum is its loss.

A loss is a function (alpha, scores_BK, target, x) -> terms, or an nn.Module of that form if it has parameters of its
own. A user-defined loss is such a function, named by ``objective.function``. It must not depend on another block:
gradients end at the block's input x.

  bll      KL(rho || alpha) (paper, eq. 5 and 6), and a predictive loss for the entropy term. The KL alone is smallest
           for an output that is constant within a class, so the predictive loss of the local head (Nokland & Eidnes
           2019, used in section 3 of the paper) is not optional; ``kl_weight`` 0 is the control that shows what the
           feedback adds
  predsim  predictive loss and similarity matching (Nokland & Eidnes 2019): features of one class become similar
  InfoPro  reconstruction (Wang et al. 2021): a greedy block drops whatever its own head does not use, unless it must
           still be able to reconstruct its input (``keep_weight``); and embeddings of one class become similar
           (``contrast_weight``)

Shapes: B images, C channels, H x W positions, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss, normalize

from bllpipe.config.schema import Config, ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.distributions import (
    FAMILIES,
    MESSAGES,
    NORMALIZATIONS,
    Family,
    Gaussian,
    known_means,
    num_channels,
    one_hot,
)
from bllpipe.learn.memory_format import without_autocast
from bllpipe.learn.user_loss import user_loss
from bllpipe.messages import Target
from bllpipe.utils.tensors import full_precision

# (alpha, scores_BK, target, x) -> named terms whose sum is the loss of the block; x is the input of the block.
Objective = Callable[[Tensor, Tensor, Target, Tensor], dict[str, Tensor]]
DECAY = 0.99  # of the learned variance, from step to step
LEAST_VARIANCE = 1e-4
SMALLEST = 1e-6
TEMPERATURE = 0.07  # of similarities in the contrastive loss
PROJECTED = 128  # numbers of a projection


@dataclass(frozen=True)
class LossContext:
    """What a loss needs to know of its block: the numbers of its message, which block it is, and the length of the
    run."""

    message_size: int
    number: int = 0
    total_steps: int = 1


def greedy(config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> Objective:
    """Decoupled greedy learning (Belilovsky et al. 2020): the local head's cross-entropy, and no feedback."""

    def terms(alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        return {"pred": config.pred_weight * predictive(config, scores_BK, target)}

    return terms


def last_block(config: ObjectiveConfig) -> Objective:
    """-log p(y | x) of eq. 3: the last block's class scores against the labels, alone."""

    def terms(alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        return {"pred": predictive(config, scores_BK, target)}

    return terms


class BlockLocal(nn.Module):
    """weight * KL + pred_weight * CE(head(alpha), y), with messages of ``config.family``. The weight at the start
    is that of the function ``kl_weight``."""

    takes_means = True

    def __init__(
        self, config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int, context: LossContext | None = None
    ) -> None:
        super().__init__()
        context = context or LossContext(num_channels(alpha_shape))
        self.config, self.takes_embedding = config, config.message == "embedding"
        self.learned = LearnedVariance(context.message_size) if config.family == "gaussian_learned" else None
        weight = kl_weight(config, context, num_classes)
        self.weight = weight if config.kl_final_fraction == 1 else ChangingWeight(weight, config, context.total_steps)

    def forward(
        self,
        alpha: Tensor,
        scores_BK: Tensor,
        target: Target,
        x: Tensor,
        means_BC: Tensor | None = None,
        embedding_BF: Tensor | None = None,
    ) -> dict[str, Tensor]:
        alpha_BC = NORMALIZATIONS[self.config.normalize](self._message(alpha, means_BC, embedding_BF))
        kl = posterior_kl(self._family(alpha_BC, target), alpha_BC, target.beta_BC, target.known_B)
        pred = predictive(self.config, scores_BK, target)
        weight = self.weight() if isinstance(self.weight, nn.Module) else self.weight
        return {"kl": weight * kl, "pred": self.config.pred_weight * pred}

    def _message(self, alpha: Tensor, means_BC: Tensor | None, embedding_BF: Tensor | None) -> Tensor:
        """Channel means that are known have no graph; all other messages have theirs."""
        if embedding_BF is not None:
            return full_precision(embedding_BF)
        if means_BC is None:
            return MESSAGES[self.config.message](alpha, self.config.tokens)
        return known_means(alpha, means_BC, self.config.tokens) if self.config.message == "means" else means_BC

    def _family(self, alpha_BC: Tensor, target: Target) -> Family:
        if self.learned is None:
            return FAMILIES[self.config.family]
        if self.training:
            self.learned.absorb(alpha_BC.detach() - target.beta_BC, target.known_B)
        return Gaussian(self.learned.variance_C.clamp(min=LEAST_VARIANCE))


class PredSim(nn.Module):
    """(1 - b) * CE(head(alpha), y) + b * MSE(R(conv3x3(alpha)), R(one-hot y)), b = ``sim_share``.

    R compares all images of the mini-batch, so a batch is never split. Tokens and vectors have no positions: a linear
    layer replaces the convolution.
    """

    def __init__(self, config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        channels = num_channels(alpha_shape)
        self.similarity = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            if len(alpha_shape) == 3
            else nn.Linear(channels, channels, bias=False)
        )

    def forward(self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        target_BB = similarity_matrix(one_hot(target.label_B, self.num_classes))
        sim = mse_loss(similarity_matrix(self.similarity(alpha)), target_BB)
        pred = predictive(self.config, scores_BK, target)
        return {"sim": self.config.sim_share * sim, "pred": (1 - self.config.sim_share) * pred}


OBJECTIVES: dict[str, Callable[[ObjectiveConfig, Sequence[int], int], Objective]] = {
    "bll": BlockLocal,
    "dgl": greedy,
    "predsim": PredSim,
    "own": user_loss,
}


def make_objective(
    config: Config,
    input_shape: Sequence[int],
    alpha_shape: Sequence[int],
    num_classes: int,
    context: LossContext | None = None,
    embedding_size: int = 0,
) -> Objective:
    """The local loss of ``config.method`` for a block that maps ``input_shape`` to ``alpha_shape``, and whose head's
    last layer reads ``embedding_size`` numbers."""
    settings = config.objective
    if config.method == "bll":
        objective: Objective = BlockLocal(settings, alpha_shape, num_classes, context)
    else:
        objective = OBJECTIVES[config.method](settings, alpha_shape, num_classes)
    if settings.contrast_weight:
        objective = ContrastLoss(objective, embedding_size, settings.contrast_weight)
    if settings.keep_weight:
        objective = ReconstructionLoss(objective, input_shape, alpha_shape, settings.keep_weight)
    return objective


def loss_terms(
    objective: Objective,
    alpha: Tensor,
    scores_BK: Tensor,
    target: Target,
    x: Tensor,
    means_BC: Tensor | None = None,
    embedding_BF: Tensor | None = None,
) -> dict[str, Tensor]:
    """The terms of ``objective``. An objective with ``takes_means`` gets the message of alpha, if it was computed
    before: channel means without their graph. One with ``takes_embedding`` gets the embedding of the head."""
    more: dict[str, Tensor | None] = {}
    if means_BC is not None and getattr(objective, "takes_means", False):
        more["means_BC"] = means_BC
    if getattr(objective, "takes_embedding", False):
        more["embedding_BF"] = embedding_BF
    with_more: Callable[..., dict[str, Tensor]] = objective
    return with_more(alpha, scores_BK, target, x, **more)


def leaf(alpha: Tensor, block: nn.Module, unit: str, is_training: bool) -> Tensor:
    """An alpha without a graph as a leaf of one: of a frozen block, whose head still learns, or in a test. Raises
    ConfigError in training if the block is not frozen, as its parameters would never change."""
    if is_training and any(parameter.requires_grad for parameter in block.parameters()):
        raise ConfigError(
            f"the block that ends with {unit}: expected an output that depends on its trainable parameters, got one "
            f"without a graph; use no torch.no_grad(), .detach() or argmax in its forward, or freeze it with "
            f"requires_grad_(False)"
        )
    return (alpha.clone() if alpha.is_inference() else alpha.detach()).requires_grad_()


def kl_weight(config: ObjectiveConfig, context: LossContext, num_classes: int) -> float:
    """The weight of the KL of one block at the start of the run."""
    divisors = {"none": 1, "channels": context.message_size, "classes": num_classes}
    divisors["both"] = context.message_size * num_classes
    try:
        weight = config.kl_weight * config.kl_block_factor**context.number / divisors[config.kl_scale]
    except OverflowError:
        weight = inf
    if weight == inf:
        raise ConfigError(
            f"objective.kl_block_factor is {config.kl_block_factor:g}, whose power in block {context.number} times "
            f"objective.kl_weight={config.kl_weight:g} is no finite number; use smaller ones"
        )
    return weight


def predictive(config: ObjectiveConfig, scores_BK: Tensor, target: Target) -> Tensor:
    """Cross-entropy of a head's class scores (Nokland & Eidnes 2019), nats, mean over the batch."""
    return cross_entropy(full_precision(scores_BK), target.label_B, label_smoothing=config.label_smoothing)


def posterior_kl(family: Family, alpha_BC: Tensor, beta_BC: Tensor, known_B: Tensor) -> Tensor:
    """KL(rho || alpha), nats, summed over the channels, mean over the batch.

    Samples with ``known_B`` 0 have no feedback message yet and contribute nothing.
    """
    return (family.divergence(alpha_BC, beta_BC) * known_B).mean()


class ChangingWeight(nn.Module):
    """``weight`` times a factor that goes linearly from 1 to ``kl_final_fraction``, in ``total_steps`` training steps,
    which it counts itself: a graph of a GPU replays the count, and a checkpoint holds it."""

    steps: Tensor

    def __init__(self, weight: float, config: ObjectiveConfig, total_steps: int) -> None:
        super().__init__()
        self.initial, self.fraction, self.total_steps = weight, config.kl_final_fraction, max(1, total_steps)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor:
        progress = (self.steps / self.total_steps).clamp(max=1)
        if self.training:
            self.steps.add_(1)
        return self.initial * (1 - (1 - self.fraction) * progress)


class LearnedVariance(nn.Module):
    """The variance of Gaussians per channel by maximum likelihood: the decayed mean of (a - b)^2.

    It has no gradient: a variance that followed the KL would grow without bound.
    """

    variance_C: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("variance_C", torch.ones(channels))

    @torch.no_grad()
    def absorb(self, error_BC: Tensor, known_B: Tensor) -> None:
        """Updates the variance with the distances a - b of one batch."""
        num_known = known_B.sum()
        batch_C = (error_BC.square() * known_B.unsqueeze(1)).sum(dim=0) / num_known.clamp(min=1)
        self.variance_C.lerp_(batch_C, (1 - DECAY) * (num_known > 0).to(batch_C.dtype))


def similarity_matrix(features: Tensor) -> Tensor:
    """R [B, B]: cosines between the samples, from -1 to 1.

    Features of maps [B, C, H, W] are the standard deviations over the positions, [B, C], or the values if there is
    one position; each sample is then centred over its features.
    """
    with without_autocast(features.device):
        features = full_precision(features)
        if features.dim() == 4 and features.shape[2:].numel() > 1:
            features = features.flatten(2).std(dim=2)
        centred_BF = features.flatten(1) - features.flatten(1).mean(dim=1, keepdim=True)
        unit_BF = normalize(centred_BF, dim=1)
        return (unit_BF @ unit_BF.T).clamp(-1, 1)


class ContrastLoss(nn.Module):
    """``objective``, and ``weight`` times the supervised contrastive loss of the head's embedding.

    A projection of two layers maps the embedding to unit vectors. Of each image's similarities to all others of the
    mini-batch, those to its own class shall be the largest (Khosla et al. 2020, at the temperature of Wang et al.
    2021). Images whose class has no other image in the batch contribute nothing.
    """

    takes_embedding = True

    def __init__(self, objective: Objective, embedding_size: int, weight: float) -> None:
        super().__init__()
        self.objective, self.weight = objective, weight
        self.takes_means = getattr(objective, "takes_means", False)
        layers = nn.Linear(embedding_size, PROJECTED), nn.ReLU(), nn.Linear(PROJECTED, PROJECTED)
        self.projection = nn.Sequential(*layers)

    def forward(
        self,
        alpha: Tensor,
        scores_BK: Tensor,
        target: Target,
        x: Tensor,
        means_BC: Tensor | None = None,
        embedding_BF: Tensor | None = None,
    ) -> dict[str, Tensor]:
        terms = loss_terms(self.objective, alpha, scores_BK, target, x, means_BC, embedding_BF)
        contrast = supervised_contrast(self.projection(embedding_BF), target.label_B)
        return {**terms, **_added("contrast", self.weight * contrast, terms)}


def supervised_contrast(projected_BF: Tensor, label_B: Tensor) -> Tensor:
    """The supervised contrastive loss, nats, mean over the images whose class has another image in the batch."""
    with without_autocast(projected_BF.device):
        unit_BF = normalize(full_precision(projected_BF), dim=1)
        same_BB = label_B.unsqueeze(0) == label_B.unsqueeze(1)
        itself_BB = torch.eye(len(label_B), dtype=torch.bool, device=label_B.device)
        logits_BB = (unit_BF @ unit_BF.T / TEMPERATURE).masked_fill(itself_BB, -torch.inf)
        log_share_BB = logits_BB.log_softmax(dim=1).masked_fill(itself_BB, 0.0)
        positive_BB = (same_BB & ~itself_BB).to(log_share_BB.dtype)
        num_B = positive_BB.sum(dim=1)
        loss_B = -(positive_BB * log_share_BB).sum(dim=1) / num_B.clamp(min=1)
        return loss_B.sum() / (num_B > 0).sum().clamp(min=1)


def _added(name: str, term: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One more term; ConfigError if a user-defined loss has one of this name."""
    if name in terms:
        raise ConfigError(
            f"a term of the objective is called {name!r}, as the one of objective.{name}_weight; use another name, or "
            f"--set objective.{name}_weight=0"
        )
    return {name: term}


class ReconstructionLoss(nn.Module):
    """``objective``, and ``weight`` times the share of the input's variance that a decoder of alpha cannot
    reconstruct.

    The decoder is a 1x1 convolution from alpha's channels to the input's, and bilinear interpolation.
    """

    def __init__(
        self, objective: Objective, input_shape: Sequence[int], alpha_shape: Sequence[int], weight: float
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or len(alpha_shape) != 3:
            raise ConfigError(
                f"objective.keep_weight: expected blocks that map images or feature maps to feature maps, got a block "
                f"from {list(input_shape)} to {list(alpha_shape)}; use --set objective.keep_weight=0"
            )
        self.objective, self.weight = objective, weight
        self.takes_means = getattr(objective, "takes_means", False)
        self.takes_embedding = getattr(objective, "takes_embedding", False)
        self.decoder = nn.Conv2d(alpha_shape[0], input_shape[0], 1)

    def forward(
        self,
        alpha: Tensor,
        scores_BK: Tensor,
        target: Target,
        x: Tensor,
        means_BC: Tensor | None = None,
        embedding_BF: Tensor | None = None,
    ) -> dict[str, Tensor]:
        x_BCHW = full_precision(x)
        decoded_BCHW = interpolate(
            full_precision(self.decoder(alpha)), size=x.shape[2:], mode="bilinear", align_corners=False
        )
        reconstruction = mse_loss(decoded_BCHW, x_BCHW) / x_BCHW.var().clamp(min=SMALLEST)
        terms = loss_terms(self.objective, alpha, scores_BK, target, x, means_BC, embedding_BF)
        return {**terms, **_added("keep", self.weight * reconstruction, terms)}
