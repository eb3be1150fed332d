"""A block: consecutive units of the network that learn from a local loss, and from nothing behind them.

Shapes: B images, C channels, H x W positions, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from bllpipe.config.schema import Config, ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.distributions import FAMILIES, NORMALIZATIONS, alignment, channel_means, class_statistics
from bllpipe.learn.heads import make_head
from bllpipe.learn.losses import Objective, last_block, make_objective, takes_means
from bllpipe.learn.memory_format import as_channels_last, lies_channels_last, place
from bllpipe.learn.optimizer import Learner
from bllpipe.messages import Target
from bllpipe.models.checks import check_complete, trial_size
from bllpipe.models.units import Segment, Unit
from bllpipe.utils.tensors import derived_seed

AGAIN = "backward through the graph a second time"  # in what torch says of a graph that is gone


@dataclass(frozen=True)
class Outcome:
    """What one batch did to one block (scalars): the terms of its loss, how many images its head got right, and
    ``watch``, which computes what is looked at now and then but not minimised. ``ensemble_correct``: how many images
    all heads together got right, which only the last block knows, in tests with ``evaluate.ensemble``."""

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
    ) -> None:
        self.segment, self.local = segment, LocalLoss(head, objective)
        self.statistics = Statistics(config.objective, num_classes)
        self.means_BC: Tensor | None = None  # of the alpha under way, once its statistics are sent
        self.num_classes, self.config, self.is_last = num_classes, config, is_last
        self.is_captured = False  # then gradients lie where only the graphs know
        self.learner = Learner(_modules(segment, head, objective), config, total_steps)
        if not list(segment.parameters()):
            raise ConfigError(f"the block that ends with {segment.last_unit} has no parameters; cut somewhere else")
        if not any(parameter.requires_grad for parameter in self.learner.parameters.values()):
            raise ConfigError(
                f"the block that ends with {segment.last_unit} has nothing to train: all of its parameters are frozen, "
                f"and it has no local head; let some of them require gradients, or cut somewhere else"
            )
        self.x, self._training = torch.empty(0), False
        self.channels_last = lies_channels_last(config, self.learner.device)
        self._mode(True)

    @property
    def head(self) -> nn.Module:
        """The local head."""
        return self.local.head

    @property
    def objective(self) -> Objective:
        """The local loss."""
        return self.local.objective

    def forward(self, x: Tensor) -> Tensor:
        """alpha = f_k(x) (paper, eq. 1), in training mode; keeps what the local backward needs."""
        self._mode(True)
        self.x, self.means_BC = self._laid_out(x), None
        with self.learner.autocast():
            return self.segment(self.x)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def update(self, alpha: Tensor, target: Target, step: int) -> Outcome:
        """One step on the local loss of ``alpha``, which must come from ``forward``."""
        terms, _, hits = self.losses(alpha, target)
        self.backward(terms)
        lr = self.step_optimizer(step)
        return self.outcome(terms, alpha, hits, target, lr)

    def losses(
        self, alpha: Tensor, target: Target, scores_BK: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms of the local loss, the head's scores [B, K], and how many images it got right; ``scores_BK`` are
        the scores if they are known."""
        if torch.is_grad_enabled() and not alpha.requires_grad:
            alpha = alpha.detach().requires_grad_()  # of a frozen block: its head learns all the same
        with self.learner.autocast():
            return self.local(alpha, target, self.x, self.means_BC, scores_BK)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def backward(self, terms: Mapping[str, Tensor]) -> None:
        """The gradients of the sum of ``terms``, and of nothing before them."""
        self.learner.optimizer.zero_grad()
        try:
            torch.autograd.backward(list(terms.values()))
        except RuntimeError as error:
            if AGAIN not in str(error):
                raise
            raise ConfigError(
                f"the loss of the block that ends with {self.segment.last_unit} goes back through a batch whose "
                f"gradients were taken before: expected a graph of this batch alone; what a loss or a module keeps "
                f"from batch to batch needs .detach(), and torch.autograd.grad inside of a loss retain_graph=True"
            ) from error

    def step_optimizer(self, step: int) -> float:
        """One step along the gradients; returns its learning rate."""
        return self.learner.step(step)

    @torch.no_grad()
    def outcome(
        self,
        terms: Mapping[str, Tensor],
        alpha: Tensor,
        hits: Tensor,
        target: Target,
        lr: float,
        learned: bool = True,
    ) -> Outcome:
        """What the batch did, for the records; there are gradients if it ``learned``."""
        # the means are small, but alpha would keep its memory for as long as the outcome lives
        seen = alpha.detach() if self.means_BC is None else self.means_BC
        watch = partial(self._figures, seen, self.means_BC is not None, target, learned)
        return Outcome({name: term.detach() for name, term in terms.items()}, hits, lr, watch)

    def stats(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        """Class sums [K, C] and counts [K] of what alpha expects, for Gaussians its channel means, for the lane."""
        sums_KC, counts_K, self.means_BC = self.statistics(alpha, label_B)
        return sums_KC, counts_K

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """alpha in evaluation mode."""
        self._mode(False)
        self.x, self.means_BC = self._laid_out(x), None
        with self.learner.autocast():
            return self.segment(self.x)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    @torch.no_grad()
    def scores(self, alpha: Tensor) -> Tensor:
        """The local head's class scores [B, K] of a test batch."""
        with self.learner.autocast():
            return self.local.head(alpha)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    @torch.no_grad()
    def vote(self, scores_BK: Tensor, votes_BK: Tensor | None) -> Tensor | None:
        """``votes_BK`` of the heads before this one with its own class probabilities; None when nothing is counted."""
        return add_votes(votes_BK, scores_BK) if self.config.evaluate.ensemble else None

    @torch.no_grad()
    def score(self, alpha: Tensor, scores_BK: Tensor, target: Target, votes_BK: Tensor | None = None) -> Outcome:
        """The local loss and the local head's hits on a test batch; in the last block the hits of all ``votes_BK``. A
        loss of the user's own may take gradients itself, in the test as in training."""
        takes_gradients = self.config.method == "own"
        with torch.set_grad_enabled(takes_gradients):
            terms, _, hits = self.losses(alpha, target, None if takes_gradients else scores_BK)
        outcome = self.outcome(terms, alpha, hits, target, lr=0.0, learned=False)
        if votes_BK is None or not self.is_last:
            return outcome
        return replace(outcome, ensemble_correct=(votes_BK.argmax(dim=1) == target.label_B).sum())

    def _laid_out(self, x: Tensor) -> Tensor:
        return as_channels_last(x) if self.channels_last else x

    def _mode(self, train: bool) -> None:
        """Training or evaluation, for all parts: it takes a while, and seldom changes."""
        if train != self._training:
            self._training = train
            for part in (self.segment, self.local):  # head and objective are in the second one
                part.train(train)

    @torch.no_grad()
    def _figures(self, seen: Tensor, is_means: bool, target: Target, learned: bool) -> dict[str, Tensor]:
        """How alpha and beta are aligned, where there is a beta; and the gradients' norm, where there are any."""
        norm = {"gradient_norm": self.learner.gradient_norm()} if learned and not self.is_captured else {}
        if self.config.is_end_to_end:
            return norm
        message_BC = NORMALIZATIONS[self.config.objective.normalize](seen if is_means else channel_means(seen))
        return {"alignment": alignment(message_BC, target.beta_BC, target.known_B), **norm}


def add_votes(votes_BK: Tensor | None, scores_BK: Tensor) -> Tensor:
    """Soft voting: the class probabilities of one more head, added to those of the heads before it, float32 [B, K].
    The class of the largest sum is that of the largest mean."""
    probabilities_BK = scores_BK.float().softmax(dim=1)
    return probabilities_BK if votes_BK is None else votes_BK + probabilities_BK


def _modules(segment: Segment, head: nn.Module, objective: Objective) -> list[tuple[str, nn.Module]]:
    """Names are those of the whole network under ``model.``; a head is named after the unit that it reads."""
    parts = [("model", segment), (f"heads.{segment.last_unit}", head), (f"objectives.{segment.last_unit}", objective)]
    return [(prefix, part) for prefix, part in parts if isinstance(part, nn.Module)]


def make_block(
    segment: Segment,
    input_shape: Sequence[int],
    alpha_shape: Sequence[int],
    config: Config,
    num_classes: int,
    total_steps: int,
    is_last: bool,
    last_width: int | None = None,
) -> Block:
    """Adds what learning needs to a segment that makes ``alpha_shape`` of ``input_shape`` (both without the batch).
    ``last_width`` is how many channels the network ends with, for heads that have to know.

    The last block's alpha are class scores already: it needs no head, and its loss is the cross-entropy alone.
    """
    if is_last:
        return Block(segment, nn.Identity(), last_block(config.objective), config, num_classes, total_steps, is_last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "heads", segment.last_unit))
        head = make_head(alpha_shape, num_classes, config.objective, last_width)
        objective = make_objective(config, input_shape, alpha_shape, num_classes)
    device = next(iter(segment.state_dict().values()), torch.empty(0)).device
    if isinstance(objective, nn.Module):
        place(objective, config, device)
    return Block(segment, place(head, config, device), objective, config, num_classes, total_steps)


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
    """The shape of alpha, without the batch, for inputs of ``input_shape``; leaves the segment as it was.

    Raises ConfigError for lazy layers, and for what is not one tensor of numbers for each image: [C], tokens [T, C] or
    maps [C, H, W].
    """
    check_complete(segment, segment.last_unit)
    segment.eval()
    size = trial_size(segment)
    alpha: object = segment(torch.zeros(size, *input_shape, device=device))
    unit = segment.last_unit
    if not isinstance(alpha, Tensor):
        raise ConfigError(
            f"unit {unit} gives a {type(alpha).__name__}; needed is one tensor, as one message carries it: put what "
            f"chooses or joins its parts into the same module"
        )
    if not alpha.is_floating_point() or alpha.dim() not in (2, 3, 4) or len(alpha) != size:
        raise ConfigError(
            f"unit {unit} gives {_form(alpha)} for a batch of {size}; needed are numbers of shape [B, C], tokens "
            f"[B, T, C] or maps [B, C, H, W], the batch first: reshape them in the same module, or cut somewhere else"
        )
    return tuple(alpha.shape[1:])


def _form(alpha: Tensor) -> str:
    """``int64 [1, 2, 3]``."""
    return f"{str(alpha.dtype).removeprefix('torch.')} {list(alpha.shape)}"


class Statistics(nn.Module):
    """What a block tells its lane about a batch: class sums [K, C] and counts [K] of what alpha expects."""

    def __init__(self, config: ObjectiveConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes

    def forward(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums, the counts, and the channel means [B, C] that they were made of."""
        means_BC = channel_means(alpha.detach())
        message_BC = NORMALIZATIONS[self.config.normalize](means_BC)
        statistic_BC = FAMILIES[self.config.family].statistic(message_BC)
        return (*class_statistics(statistic_BC, label_B, self.num_classes), means_BC)


class LocalLoss(nn.Module):
    """Head and objective, from alpha to the terms of the loss and the hits."""

    def __init__(self, head: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.head, self.objective = head, objective

    def forward(
        self, alpha: Tensor, target: Target, x: Tensor, means_BC: Tensor | None, scores_BK: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms, the head's scores [B, K], and how many images it got right. ``means_BC`` of alpha, and the
        scores, are computed unless they are given."""
        if scores_BK is None:
            scores_BK = self.head(alpha)
        if means_BC is not None and takes_means(self.objective):
            terms = self.objective(alpha, scores_BK, target, x, means_BC)
        else:
            terms = self.objective(alpha, scores_BK, target, x)
        hits = (scores_BK.detach().argmax(dim=1) == target.label_B).sum()
        return terms, scores_BK, hits
