"""The part of a network that one rank of a synchronous engine trains: its parameters by name, and their optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Outcome
from bllpipe.learn.optimizers import Optimizer
from bllpipe.learn.schedule import rate_factor
from bllpipe.learn.units import Segment

PREFIX = "optimizer."


class Share:
    """Segments with one optimiser. Names are those of the whole network under ``model.``, as blocks have them, so that
    a checkpoint fits every engine.

    ``add_up`` sums a scalar over the ranks that hold the other parameters: what is clipped is the gradient norm of the
    whole network.
    """

    def __init__(
        self, segments: Sequence[Segment], config: Config, total_steps: int, add_up: Callable[[Tensor], Tensor]
    ) -> None:
        self.segments, self.config, self.total_steps, self.add_up = segments, config, total_steps, add_up
        self.parameters = {f"model.{name}": p for segment in segments for name, p in segment.named_parameters()}
        for segment in segments:
            if not list(segment.parameters()):
                raise ConfigError(f"the stage that ends with {segment.last_unit} has no parameters; cut somewhere else")
        self.optimizer = Optimizer(self.parameters, config.optimizer)

    def mode(self, train: bool) -> None:
        """Training or evaluation mode, for all segments."""
        for segment in self.segments:
            segment.train(train)

    def step(self, step: int) -> float:
        """Training step ``step`` with the gradients at hand; returns the learning rate."""
        lr = self.config.optimizer.lr * rate_factor(step, self.total_steps, self.config.schedule)
        if self.config.optimizer.clip_norm is not None:
            self._clip(self.config.optimizer.clip_norm)
        self.optimizer.step(lr)
        return lr

    def loss(self, scores_BK: Tensor, label_B: Tensor) -> Tensor:
        """Cross-entropy, nats, mean over what it is given: a batch, a microbatch or a replica's share."""
        return cross_entropy(scores_BK.float(), label_B, label_smoothing=self.config.objective.label_smoothing)

    @torch.no_grad()
    def outcome(self, scores_BK: Tensor, label_B: Tensor, loss: Tensor, lr: float = 0.0) -> Outcome:
        """The books of a batch."""
        return Outcome({"pred": loss.detach()}, (scores_BK.argmax(dim=1) == label_B).sum(), lr)

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers, the live ones."""
        return {
            f"model.{name}": value
            for segment in self.segments
            for name, value in segment.state_dict(keep_vars=True).items()
        }

    def state(self) -> dict[str, Tensor]:
        """``weights`` and the optimiser's state: everything that a resumed run needs."""
        return {**self.weights(), **{f"{PREFIX}{name}": value for name, value in self.optimizer.state.items()}}

    def load(self, state: Mapping[str, Tensor]) -> list[str]:
        """Takes what belongs to this share from ``state``; returns the names of weights that it did not find."""
        own = self.weights()
        with torch.no_grad():
            for name in own.keys() & state.keys():
                own[name].copy_(state[name])
        self.optimizer.load({key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)})
        return sorted(own.keys() - state.keys())

    def autocast(self) -> torch.autocast:
        """The run's own precision of computing."""
        device = next(iter(self.parameters.values())).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision.compute == "bf16")

    def _clip(self, most: float) -> None:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = self.add_up(nn.utils.get_total_norm(gradients).square()).sqrt()
        nn.utils.clip_grads_with_norm_(self.parameters.values(), most, norm)
