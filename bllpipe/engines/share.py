"""The part of a network that one rank of a synchronous engine trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Outcome
from bllpipe.learn.learner import Learner
from bllpipe.learn.placing import as_channels_last, lies_channels_last
from bllpipe.learn.units import Segment


class Share:
    """Segments that learn together. Names are those of the whole network under ``model.``, as blocks have them, so that
    a checkpoint fits every engine.

    ``add_up`` sums a scalar over the ranks that hold the other parameters: what is clipped is the gradient norm of the
    whole network.
    """

    def __init__(
        self, segments: Sequence[Segment], config: Config, total_steps: int, add_up: Callable[[Tensor], Tensor]
    ) -> None:
        for segment in segments:
            if not list(segment.parameters()):
                raise ConfigError(f"the stage that ends with {segment.last_unit} has no parameters; cut somewhere else")
            if not any(parameter.requires_grad for parameter in segment.parameters()):
                raise ConfigError(
                    f"the stage that ends with {segment.last_unit} has nothing to train: all of its parameters are "
                    f"frozen; let some of them require gradients, or cut somewhere else"
                )

        def norm(gradients: Sequence[Tensor]) -> Tensor:
            return add_up(nn.utils.get_total_norm(gradients).square()).sqrt()

        self.segments, self.config = segments, config
        self.learner = Learner([("model", segment) for segment in segments], config, total_steps, norm)
        self.channels_last = lies_channels_last(config, self.learner.device)

    def mode(self, train: bool) -> None:
        """Training or evaluation mode, for all segments."""
        for segment in self.segments:
            segment.train(train)

    def laid_out(self, x: Tensor) -> Tensor:
        """Images or activations as the convolutions of this run want them in memory."""
        return as_channels_last(x) if self.channels_last else x

    def zero_grad(self) -> None:
        """Forgets the gradients of the step before."""
        self.learner.optimizer.zero_grad()

    def step(self, step: int) -> float:
        """Training step ``step`` with the gradients at hand; returns the learning rate."""
        return self.learner.step(step)

    def loss(self, scores_BK: Tensor, label_B: Tensor) -> Tensor:
        """Cross-entropy, nats, mean over what it is given: a batch, a microbatch or a replica's share."""
        return cross_entropy(scores_BK.float(), label_B, label_smoothing=self.config.objective.label_smoothing)

    @torch.no_grad()
    def outcome(self, scores_BK: Tensor, label_B: Tensor, loss: Tensor, lr: float = 0.0) -> Outcome:
        """The books of a batch."""
        return Outcome({"pred": loss.detach()}, (scores_BK.argmax(dim=1) == label_B).sum(), lr)
