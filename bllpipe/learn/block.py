"""A block: consecutive units of the network that learn from a local loss alone.

Shapes: B images, C channels, H x W positions, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from bllpipe.config.schema import Config, ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.distributions import (
    FAMILIES,
    NORMALIZATIONS,
    alignment,
    cell_means,
    channel_means,
    class_statistics,
    num_channels,
)
from bllpipe.learn.heads import check_norms, classify, embed, make_head, message_size
from bllpipe.learn.losses import LossContext, Objective, last_block, leaf, loss_terms, make_objective
from bllpipe.learn.memory_format import as_channels_last, place, uses_channels_last
from bllpipe.learn.optimizer import Learner
from bllpipe.learn.running_buffers import RunningBuffers
from bllpipe.messages import Target, copied
from bllpipe.models.registry import check_complete, trial_size, units_after
from bllpipe.models.units import Segment, Unit, one_row_each
from bllpipe.utils.tensors import derived_seed, full_precision
from bllpipe.utils.tree_sum import Sums

TERM, CORRECT, ENSEMBLE_CORRECT = "term.", "correct", "ensemble correct"  # names in sums over shards
SECOND_BACKWARD = "backward through the graph a second time"  # in torch's message about a freed graph


@dataclass(frozen=True)
class Outcome:
    """The result of one batch in one block (scalars): the terms of its loss, the number of images that its head
    classified correctly, and ``watch``, which computes metrics that are logged but not minimised. ``ensemble_correct``:
    images that all heads together classified correctly, known to the last block in tests with
    ``evaluate.ensemble``."""

    terms: dict[str, Tensor]
    correct: Tensor
    lr: float = 0.0
    watch: Callable[[], dict[str, Tensor]] = dict
    ensemble_correct: Tensor | None = None


class Block:
    """f_k with its local head, objective and optimiser."""

    def __init__(
        self,
        segment: Segment,
        head: nn.Module,
        objective: Objective,
        config: Config,
        num_classes: int,
        total_steps: int,
        is_last: bool = False,
        message_size: int = 0,
    ) -> None:
        self.segment, self.local = segment, LocalLoss(head, objective, config.objective.message)
        self.message_size = message_size
        self.statistics = Statistics(config.objective, num_classes, self._message)
        self.means_BC: Tensor | None = None  # the message of the current alpha, once its statistics are sent
        self.num_classes, self.config, self.is_last = num_classes, config, is_last
        self.is_captured = False  # then gradients live in the memory of the graphs
        unit = segment.last_unit  # names are those of the whole network under "model."; a head is named by its unit
        parts = [("model", segment), (f"heads.{unit}", head), (f"objectives.{unit}", objective)]
        modules = [(prefix, part) for prefix, part in parts if isinstance(part, nn.Module)]
        self.learner = Learner(modules, config, total_steps)
        if not list(segment.parameters()):
            raise ConfigError(f"the block that ends with {unit} has no parameters; cut somewhere else")
        if not any(parameter.requires_grad for parameter in self.learner.parameters.values()):
            raise ConfigError(
                f"the block that ends with {unit} has nothing to train: all of its parameters are frozen, and it has "
                f"no local head; let some of them require gradients, or cut somewhere else"
            )
        self.running_buffers = RunningBuffers(self.learner.modules, config.num_passes)
        self.x, self._training = torch.empty(0), False
        self._watch: Callable[[], dict[str, Tensor]] | None = None  # of the first shard of the current batch
        self.channels_last = uses_channels_last(config, self.learner.device)
        self._set_mode(True)

    @property
    def head(self) -> nn.Module:
        return self.local.head

    @property
    def objective(self) -> Objective:
        return self.local.objective

    def forward(self, x: Tensor) -> Tensor:
        """alpha = f_k(x) (paper, eq. 1), in training mode; saves what the local backward needs."""
        self._set_mode(True)
        self.running_buffers.begin_shard()
        return self._alpha(x)

    def _alpha(self, x: Tensor) -> Tensor:
        self.x, self.means_BC = as_channels_last(x) if self.channels_last else x, None
        with self.learner.autocast():
            return one_row_each(self.segment(self.x), x, self.segment)

    def learn(self, alpha: Tensor, target: Target, share: float = 1.0) -> Sums:
        """What a step adds up over the shards of its batch: the gradients of the local loss of ``alpha``, the output of
        ``forward`` for a shard with a ``share`` of the images, the terms of the loss, and the hits."""
        terms, _, hits = self.losses(alpha, target)
        terms = _weighted(terms, share)
        self.backward(terms)
        self._watch_first(alpha, target, share, learned=True)
        return {**self.learner.gradients(), **self.running_buffers.moves(), **_sums(terms, hits)}

    def step(self, total: Sums, step: int) -> Outcome:
        """Training step ``step`` along ``total``, the sum over all shards of what ``learn`` returned."""
        self.learner.set_gradients(total)
        self.running_buffers.move(total)
        return self.outcome(total, self.step_optimizer(step))

    def update(self, alpha: Tensor, target: Target, step: int) -> Outcome:
        """One step on the local loss of ``alpha``, the output of ``forward`` for a batch of one shard."""
        return self.step(self.learn(alpha, target), step)

    def losses(
        self, alpha: Tensor, target: Target, scores_BK: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms of the local loss, the head's scores [B, K], and the number of images that it classified
        correctly; ``scores_BK`` are the scores if they were computed before."""
        if torch.is_grad_enabled() and not alpha.requires_grad:
            alpha = leaf(alpha, self.segment, self.segment.last_unit, self._training)
        if self.means_BC is None and self._is_embedding(alpha):
            self.means_BC = self._message(alpha)  # once: a head's normalisations count its batches
        with self.learner.autocast():
            return self.local(alpha, target, self.x, self.means_BC, scores_BK)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def backward(self, terms: Mapping[str, Tensor]) -> None:
        """The gradients of the sum of ``terms``; those of the step before are dropped."""
        self.learner.optimizer.zero_grad()
        try:
            torch.autograd.backward(list(terms.values()))
        except RuntimeError as error:
            if SECOND_BACKWARD not in str(error):
                raise
            raise ConfigError(
                f"the loss of the block that ends with {self.segment.last_unit}: expected a graph of this batch "
                f"alone, got one whose gradients were computed before; use .detach() for what a loss or a module keeps "
                f"from batch to batch, and retain_graph=True for torch.autograd.grad inside a loss"
            ) from error

    def step_optimizer(self, step: int) -> float:
        """One step along the gradients; returns its learning rate."""
        return self.learner.step(step)

    def outcome(self, total: Sums, lr: float = 0.0) -> Outcome:
        """The result of the batch, for the metrics: ``total`` is the sum over its shards."""
        terms = {name.removeprefix(TERM): value for name, value in total.items() if name.startswith(TERM)}
        assert self._watch is not None, "a batch has a first shard"
        watch, self._watch = self._watch, None
        return Outcome(terms, total[CORRECT], lr, watch, total.get(ENSEMBLE_CORRECT))

    @torch.no_grad()
    def _watch_first(self, alpha: Tensor, target: Target, share: float, learned: bool) -> None:
        """Metrics that are not minimised are those of the first shard of a batch; there are gradients if it
        ``learned``."""
        if self._watch is None:
            # the message is small, while alpha would keep its memory for as long as the outcome lives
            kept = alpha.detach() if self.means_BC is None else self.means_BC.detach()
            target = target if share == 1 else copied(target)  # the message of the next shard may overwrite it
            self._watch = partial(self._watched_metrics, kept, self.means_BC is not None, target, learned)

    def stats(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Class sums [K, C] and counts [K] of the statistic of alpha (for Gaussians its channel means), for the
        feedback loop of this block."""
        sums_KC, counts_K, self.means_BC = self.statistics(alpha, label_B)
        return sums_KC, counts_K

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """alpha in evaluation mode."""
        self._set_mode(False)
        return self._alpha(x)

    @torch.no_grad()
    def scores(self, alpha: Tensor) -> Tensor:
        """The local head's class scores [B, K] of a test batch."""
        with self.learner.autocast():
            return self.local.head(alpha)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    @torch.no_grad()
    def vote(self, scores_BK: Tensor, votes_BK: Tensor | None) -> Tensor | None:
        """``votes_BK`` of the heads before this one plus its class probabilities; None without
        ``evaluate.ensemble``."""
        return add_votes(votes_BK, scores_BK) if self.config.evaluate.ensemble else None

    @torch.no_grad()
    def score(
        self, alpha: Tensor, scores_BK: Tensor, target: Target, votes_BK: Tensor | None = None, share: float = 1.0
    ) -> Sums:
        """What is added up over the shards of a test batch, for ``outcome``: the terms of the local loss for a shard
        with a ``share`` of the images, and the local head's hits; in the last block also the hits of ``votes_BK``. A
        user-defined loss may compute gradients itself, in tests as in training."""
        takes_gradients = self.config.method == "own"
        with torch.set_grad_enabled(takes_gradients):
            terms, _, hits = self.losses(alpha, target, None if takes_gradients else scores_BK)
        self._watch_first(alpha, target, share, learned=False)
        sums = _sums(_weighted(terms, share), hits)
        if votes_BK is not None and self.is_last:
            sums[ENSEMBLE_CORRECT] = (votes_BK.argmax(dim=1) == target.label_B).sum()
        return sums

    def _set_mode(self, train: bool) -> None:
        """Training or evaluation mode, for all parts. The call is slow, and the mode seldom changes."""
        if train != self._training:
            self._training = train
            for part in (self.segment, self.local):  # head and objective are in the second one
                part.train(train)

    def _message(self, alpha: Tensor) -> Tensor:
        """The message of alpha, [B, C], float32 except the embedding of a head under autocast. Channel means have no
        graph: their gradient does not depend on them."""
        if self._is_embedding(alpha):
            with self.learner.autocast():
                return embed(self.head, alpha)
        tokens = self.config.objective.tokens
        if self.config.objective.message == "cells":
            return cell_means(alpha, tokens)
        return channel_means(alpha.detach(), tokens)

    def _is_embedding(self, alpha: Tensor) -> bool:
        """Whether the message is the embedding of the head; tokens and vectors are their own, but for a mean."""
        return self.config.objective.message == "embedding" and alpha.dim() == 4

    @torch.no_grad()
    def _watched_metrics(self, kept: Tensor, is_means: bool, target: Target, learned: bool) -> dict[str, Tensor]:
        """The alignment of alpha and beta, if there is a beta, and the norm of the gradients, if there are any."""
        norm = {"gradient_norm": self.learner.gradient_norm()} if learned and not self.is_captured else {}
        if self.config.is_end_to_end:
            return norm
        read_BC = kept if is_means else self._message(kept)
        message_BC = NORMALIZATIONS[self.config.objective.normalize](full_precision(read_BC))
        return {"alignment": alignment(message_BC, target.beta_BC, target.known_B), **norm}


def _weighted(terms: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The part of a mean over the batch that comes from a shard with a ``share`` of its images."""
    return dict(terms) if share == 1 else {name: term * share for name, term in terms.items()}


def _sums(terms: Mapping[str, Tensor], hits: Tensor) -> Sums:
    return {**{f"{TERM}{name}": term.detach() for name, term in terms.items()}, CORRECT: hits}


def add_votes(votes_BK: Tensor | None, scores_BK: Tensor) -> Tensor:
    """Soft voting: the class probabilities of one more head plus those of the heads before it, float32 [B, K]. The
    class of the largest sum is that of the largest mean."""
    probabilities_BK = full_precision(scores_BK).softmax(dim=1)
    return probabilities_BK if votes_BK is None else votes_BK + probabilities_BK


def make_block(
    segment: Segment,
    input_shape: Sequence[int],
    alpha_shape: Sequence[int],
    config: Config,
    num_classes: int,
    total_steps: int,
    is_last: bool,
    last_width: int | None = None,
    number: int = 0,
    on_head: Callable[[nn.Module], object] = lambda head: None,
) -> Block:
    """Block ``number``, of a segment that maps ``input_shape`` to ``alpha_shape`` (both without the batch), with its
    head, objective and optimiser. ``last_width`` is the number of channels at the end of the network, for strided
    heads. ``on_head`` gets the head before there is an optimiser.

    The alpha of the last block are class scores: it has no head, and its loss is the cross-entropy alone.
    """
    if config.objective.tokens == "auto":  # a user-defined loss compares the means over tokens with beta
        chosen: Literal["class", "mean"] = "class" if segment.has_class_token and config.method != "own" else "mean"
        config = replace(config, objective=replace(config.objective, tokens=chosen))
    if is_last:
        size, loss = num_channels(alpha_shape), last_block(config.objective)
        return Block(segment, nn.Identity(), loss, config, num_classes, total_steps, is_last, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "heads", segment.last_unit))
        shapes = input_shape, alpha_shape
        local, size = make_local_loss(config, *shapes, num_classes, last_width, segment.last_unit, number, total_steps)
    device = next(iter(segment.state_dict().values()), torch.empty(0)).device
    if isinstance(local.objective, nn.Module):
        place(local.objective, config, device)
    on_head(head := place(local.head, config, device))
    return Block(segment, head, local.objective, config, num_classes, total_steps, message_size=size)


def make_local_loss(
    config: Config,
    input_shape: Sequence[int],
    alpha_shape: Sequence[int],
    num_classes: int,
    last_width: int | None,
    unit: str,
    number: int = 0,
    total_steps: int = 1,
) -> tuple[LocalLoss, int]:
    """Head and objective of the block ``number`` whose last unit is ``unit``, and the size of its message."""
    settings = config.objective
    head = make_head(alpha_shape, num_classes, settings, last_width, units_after(config, unit))
    check_norms(head, alpha_shape, config.data.batch_size // config.num_passes, unit)
    size = message_size(settings, alpha_shape, head)
    context = LossContext(size, number, total_steps)
    embedding = replace(settings, message="embedding")
    embedding_size = message_size(embedding, alpha_shape, head) if settings.contrast_weight else 0
    objective = make_objective(config, input_shape, alpha_shape, num_classes, context, embedding_size)
    return LocalLoss(head, objective, settings.message), size


def build_segments(
    parts: Iterable[Sequence[Unit]], config: Config, input_shape: tuple[int, ...], device: torch.device
) -> Iterator[tuple[Segment, tuple[int, ...], tuple[int, ...]]]:
    """Consecutive parts of a network on ``device``, the first of which takes ``input_shape``: each as a segment, with
    the shapes of its input and of its alpha (both without the batch)."""
    for part in parts:
        segment = place(Segment(part, config.seed), config, device)
        output_shape = alpha_shape(segment, input_shape, device)
        yield segment, input_shape, output_shape
        input_shape = output_shape


@torch.no_grad()
def alpha_shape(segment: Segment, input_shape: Sequence[int], device: torch.device) -> tuple[int, ...]:
    """The shape of alpha, without the batch, for inputs of ``input_shape``; no state of the segment changes.

    Raises ConfigError for lazy layers, and unless the output is one floating-point tensor: [C], tokens [T, C] or maps
    [C, H, W] for each image.
    """
    unit, size = segment.last_unit, trial_size(segment)
    check_complete(segment, unit)
    segment.eval()
    alpha: object = segment(torch.zeros(size, *input_shape, device=device))
    if not isinstance(alpha, Tensor):
        raise ConfigError(
            f"unit {unit}: expected one tensor as its output, as a message carries one, got a {type(alpha).__name__}; "
            f"use a module that selects or concatenates its parts"
        )
    if not alpha.is_floating_point() or alpha.dim() not in (2, 3, 4) or len(alpha) != size:
        raise ConfigError(
            f"unit {unit}: expected floating-point [B, C], tokens [B, T, C] or maps [B, C, H, W], the batch first, got "
            f"{str(alpha.dtype).removeprefix('torch.')} {list(alpha.shape)} for a batch of {size}; use a reshape in "
            f"the same module, or cut somewhere else"
        )
    return tuple(alpha.shape[1:])


class Statistics(nn.Module):
    """What a block sends to its feedback loop: class sums [K, C] and counts [K] of the statistic of alpha.
    ``read`` maps alpha to its message [B, C]."""

    def __init__(self, config: ObjectiveConfig, num_classes: int, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.config, self.num_classes, self.read = config, num_classes, read

    def forward(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums, the counts, and the message [B, C] of alpha."""
        means_BC = self.read(alpha)
        message_BC = NORMALIZATIONS[self.config.normalize](full_precision(means_BC.detach()))
        statistic_BC = FAMILIES[self.config.family].statistic(message_BC)
        return (*class_statistics(statistic_BC, label_B, self.num_classes), means_BC)


class LocalLoss(nn.Module):
    """Head and objective, from alpha to the terms of the loss and the hits."""

    def __init__(self, head: nn.Module, objective: Objective, message: str = "means") -> None:
        super().__init__()
        self.head, self.objective, self.message = head, objective, message
        self.takes_embedding = getattr(objective, "takes_embedding", False)

    def forward(
        self, alpha: Tensor, target: Target, x: Tensor, means_BC: Tensor | None, scores_BK: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms, the head's scores [B, K], and the number of images that it classified correctly. The message
        ``means_BC`` of alpha, and the scores, are computed here unless they are passed."""
        embedding_BF = self._embedding(alpha, means_BC) if self.takes_embedding else None
        if scores_BK is None:
            scores_BK = self.head(alpha) if embedding_BF is None else classify(self.head, embedding_BF)
        terms = loss_terms(self.objective, alpha, scores_BK, target, x, means_BC, embedding_BF)
        hits = (scores_BK.detach().argmax(dim=1) == target.label_B).sum()
        return terms, scores_BK, hits

    def _embedding(self, alpha: Tensor, means_BC: Tensor | None) -> Tensor:
        """The head's embedding, which the statistics have computed already, with its graph, where it is the message."""
        is_message = self.message == "embedding" and alpha.dim() == 4
        return embed(self.head, alpha) if means_BC is None or not is_message else means_BC
