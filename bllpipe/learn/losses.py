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
           still be able to reconstruct its input

Shapes: B images, C channels, H x W positions, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss, normalize

from bllpipe.config.schema import Config, ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.distributions import (
    FAMILIES,
    NORMALIZATIONS,
    Family,
    Gaussian,
    channel_means,
    known_means,
    num_channels,
    one_hot,
)
from bllpipe.learn.memory_format import without_autocast
from bllpipe.messages import Target
from bllpipe.models.registry import imported
from bllpipe.utils.tensors import full_precision

# (alpha, scores_BK, target, x) -> named terms whose sum is the loss of the block; x is the input of the block.
Objective = Callable[[Tensor, Tensor, Target, Tensor], dict[str, Tensor]]
DECAY = 0.99  # of the learned variance, from step to step
LEAST_VARIANCE = 1e-4
SMALLEST = 1e-6
EXPECTED = "expected a dict of scalar tensors whose sum is the loss"
EXAMPLE = 'use {"pred": cross_entropy(scores, label)}'
# The other fields of a line of metrics.jsonl and of the progress of a run.
RECORD_FIELDS = (
    {"phase", "step", "epoch", "rank", "role", "actor"}
    | {"loss", "accuracy", "test_accuracy", "ensemble_accuracy", "lr", "alignment", "gradient_norm"}
    | {"images_per_second", "waiting", "resident_bytes", "training_seconds"}
)


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
    """kl_weight * KL + pred_weight * CE(head(alpha), y), with messages of ``config.family``."""

    takes_means = True

    def __init__(self, config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.learned = LearnedVariance(num_channels(alpha_shape)) if config.family == "gaussian_learned" else None

    def forward(
        self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor, means_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        means_BC = channel_means(alpha) if means_BC is None else known_means(alpha, means_BC)
        alpha_BC = NORMALIZATIONS[self.config.normalize](means_BC)
        kl = posterior_kl(self._family(alpha_BC, target), alpha_BC, target.beta_BC, target.known_B)
        pred = predictive(self.config, scores_BK, target)
        return {"kl": self.config.kl_weight * kl, "pred": self.config.pred_weight * pred}

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


def user_loss(config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> Objective:
    """The user-defined loss, imported by ``objective.function`` or passed as an object: a function (alpha, scores_BK,
    target, x) -> terms, or a subclass of nn.Module, which every block instantiates: (config, alpha_shape,
    num_classes)."""
    loss: Callable[..., Any] = config.user_loss or imported("objective.function", str(config.function))
    is_class = isinstance(loss, type) and issubclass(loss, nn.Module)
    return UserLoss(loss(config, alpha_shape, num_classes) if is_class else loss, str(config.function))


OBJECTIVES: dict[str, Callable[[ObjectiveConfig, Sequence[int], int], Objective]] = {
    "bll": BlockLocal,
    "dgl": greedy,
    "predsim": PredSim,
    "own": user_loss,
}


def make_objective(
    config: Config, input_shape: Sequence[int], alpha_shape: Sequence[int], num_classes: int
) -> Objective:
    """The local loss of ``config.method`` for a block that maps ``input_shape`` to ``alpha_shape``."""
    objective = OBJECTIVES[config.method](config.objective, alpha_shape, num_classes)
    if not config.objective.keep_weight:
        return objective
    return ReconstructionLoss(objective, input_shape, alpha_shape, config.objective.keep_weight)


def loss_terms(
    objective: Objective, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor, means_BC: Tensor | None
) -> dict[str, Tensor]:
    """The terms of ``objective``. An objective with ``takes_means`` gets the channel means [B, C] of alpha, without
    their graph, if these were computed before."""
    if means_BC is None or not getattr(objective, "takes_means", False):
        return objective(alpha, scores_BK, target, x)
    with_means: Callable[..., dict[str, Tensor]] = objective
    return with_means(alpha, scores_BK, target, x, means_BC)


def predictive(config: ObjectiveConfig, scores_BK: Tensor, target: Target) -> Tensor:
    """Cross-entropy of a head's class scores (Nokland & Eidnes 2019), nats, mean over the batch."""
    return cross_entropy(full_precision(scores_BK), target.label_B, label_smoothing=config.label_smoothing)


def posterior_kl(family: Family, alpha_BC: Tensor, beta_BC: Tensor, known_B: Tensor) -> Tensor:
    """KL(rho || alpha), nats, summed over the channels, mean over the batch.

    Samples with ``known_B`` 0 have no feedback message yet and contribute nothing.
    """
    return (family.divergence(alpha_BC, beta_BC) * known_B).mean()


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
        self.decoder = nn.Conv2d(alpha_shape[0], input_shape[0], 1)

    def forward(
        self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor, means_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        x_BCHW = full_precision(x)
        decoded_BCHW = interpolate(
            full_precision(self.decoder(alpha)), size=x.shape[2:], mode="bilinear", align_corners=False
        )
        reconstruction = mse_loss(decoded_BCHW, x_BCHW) / x_BCHW.var().clamp(min=SMALLEST)
        terms = loss_terms(self.objective, alpha, scores_BK, target, x, means_BC)
        if "keep" in terms:
            raise ConfigError(
                "a term of the objective is called 'keep', as the one of objective.keep_weight; use another name, or "
                "--set objective.keep_weight=0"
            )
        return {**terms, "keep": self.weight * reconstruction}


class UserLoss(nn.Module):
    """A user-defined loss ``terms``, whose result is checked."""

    def __init__(self, terms: Objective, name: str) -> None:
        super().__init__()
        self.terms, self.name = terms, name

    def forward(self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        inputs = {"alpha": alpha, "scores": scores_BK, "x": x, "target.label_B": target.label_B}
        inputs |= {"target.beta_BC": target.beta_BC, "target.known_B": target.known_B}
        versions = {name: tensor._version for name, tensor in inputs.items()}
        terms = self.terms(alpha, scores_BK, target, x)
        if changed := [name for name, tensor in inputs.items() if tensor._version != versions[name]]:
            raise ConfigError(
                f"objective.function={self.name} changes {' and '.join(changed)} in place, which the pipeline reads "
                f"too; use a function that returns a new tensor, such as alpha.relu() for alpha.relu_()"
            )
        if not isinstance(terms, Mapping) or not terms:
            kind = "an empty dict" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
            raise ConfigError(f"objective.function={self.name}: {EXPECTED}, got {kind}; {EXAMPLE}")
        needs_gradient = self.training and torch.is_grad_enabled()
        for name, term in terms.items():
            if problem := _problem(name, term, needs_gradient):
                raise ConfigError(f"objective.function={self.name}: {problem}")
        return dict(terms)


def _problem(name: object, term: object, needs_gradient: bool) -> str | None:
    """What is wrong with a term of a user-defined loss. Its name becomes a field of metrics.jsonl."""
    if not isinstance(name, str) or not name:
        return f"expected text as the name of a term, got {name!r:.40}; use a word, such as 'pred'"
    if name in RECORD_FIELDS:
        return (
            f"a term is called {name!r}, but metrics.jsonl has a field of this name; use another one, such as "
            f"'{name}_term'"
        )
    if not isinstance(term, Tensor):
        return f"{EXPECTED}, got a {type(term).__name__} as term {name!r}; {EXAMPLE}"
    if term.dim():
        return f"term {name!r}: expected a scalar, got the shape {list(term.shape)}; use its .mean()"
    if term.is_complex():
        return f"term {name!r}: expected a real number, got a complex one; use its .abs()"
    if needs_gradient and not term.requires_grad:
        return (
            f"term {name!r} depends on no parameter of the block; use a function of alpha or scores, without .detach() "
            f"or .item()"
        )
    return None
