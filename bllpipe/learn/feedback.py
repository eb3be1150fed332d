"""The feedback network g_k of one block: from labels alone to the message beta_k.

Its input is one-hot, so it is a table with one row a class, and it learns from the class sums S and counts n of a batch
alone. There are three ways to fill the table; each is an nn.Module with

    absorb(sums_KC, counts_K)    learn from the statistics of one batch
    table()                      beta_KC and known_K (1.0 where a class has a target)

Shapes: K classes, C channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from bllpipe.config.schema import FeedbackConfig, OptimizerConfig
from bllpipe.learn.distributions import FAMILIES, Family, negative_log_likelihood
from bllpipe.learn.optimizer import Optimizer
from bllpipe.utils.tensors import derived_seed


class Feedback(Protocol):
    """A feedback network, as a feedback loop uses it."""

    def absorb(self, sums_KC: Tensor, counts_K: Tensor) -> None: ...

    def table(self) -> tuple[Tensor, Tensor]: ...

    def state(self) -> dict[str, Tensor]:
        """The state that a checkpoint holds, by name; the tensors are not copies."""


class ClosedForm(nn.Module):
    """The least-squares optimum of one linear layer: W[c] = S_c / (n_c + ridge).

    With fixed Gaussians the loss of eq. 6 is convex in phi_k, and its minimum is the mean of the class; for other
    families the mean of the class maximises the likelihood. A batch may lack many classes, so sums and counts decay
    instead of being reset.
    """

    sums_KC: Tensor
    counts_K: Tensor

    def __init__(
        self, num_classes: int, channels: int, decay: float, ridge: float, family: Family = FAMILIES["gaussian"]
    ) -> None:
        super().__init__()
        self.decay, self.ridge, self.family = decay, ridge, family
        self.register_buffer("sums_KC", torch.zeros(num_classes, channels))
        self.register_buffer("counts_K", torch.zeros(num_classes))

    def absorb(self, sums_KC: Tensor, counts_K: Tensor) -> None:
        self.sums_KC.mul_(self.decay).add_(sums_KC)
        self.counts_K.mul_(self.decay).add_(counts_K)

    def table(self) -> tuple[Tensor, Tensor]:
        known_K = self.counts_K > 0
        beta_KC = self.family.message(self.sums_KC / (self.counts_K + self.ridge).unsqueeze(1))
        return torch.where(known_K.unsqueeze(1), beta_KC, 0.0), known_K.to(beta_KC.dtype)

    def state(self) -> dict[str, Tensor]:
        return dict(self.state_dict())


class Learned(nn.Module):
    """One or more layers that follow the gradient of their local loss with respect to phi_k (eq. 6).

    For fixed Gaussians it is KL(rho || alpha); for every family a quarter of the negative log-likelihood, which for
    Gaussians is the same.
    """

    seen_K: Tensor

    def __init__(self, network: nn.Module, num_classes: int, lr: float, momentum: float, family: Family) -> None:
        super().__init__()
        self.network, self.family = network, family
        self.register_buffer("seen_K", torch.zeros(num_classes, device=next(network.parameters()).device))
        settings = OptimizerConfig(momentum=momentum, nesterov=False, weight_decay=0.0)
        self._optimizer, self._lr = Optimizer(dict(network.named_parameters()), settings), lr

    def absorb(self, sums_KC: Tensor, counts_K: Tensor) -> None:
        beta_KC = self.network(_one_hot_rows(counts_K))
        loss = negative_log_likelihood(self.family, beta_KC, sums_KC, counts_K) / (4 * counts_K.sum())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step(self._lr)
        self.seen_K.logical_or_(counts_K > 0)

    @torch.no_grad()
    def table(self) -> tuple[Tensor, Tensor]:
        return self.network(_one_hot_rows(self.seen_K)), self.seen_K

    def state(self) -> dict[str, Tensor]:
        momenta = {f"optimizer.{name}": value for name, value in self._optimizer.state.items()}
        return {**self.state_dict(), **momenta}


class Fixed(nn.Module):
    """Random targets that never change: the control for the effect of learning the feedback."""

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.num_classes = num_classes

    def absorb(self, sums_KC: Tensor, counts_K: Tensor) -> None:
        """Ignores the statistics."""

    def table(self) -> tuple[Tensor, Tensor]:
        parameter = next(self.network.parameters())
        known_K = torch.ones(self.num_classes, device=parameter.device)
        return self.network(_one_hot_rows(known_K)), known_K

    def state(self) -> dict[str, Tensor]:
        return dict(self.state_dict())


def feedback_network(num_classes: int, channels: int, layers: int, hidden: int) -> nn.Module:
    """``layers`` linear layers from one-hot labels [B, K] to beta [B, C], with ReLU between them."""
    widths = [num_classes, *[hidden] * (layers - 1), channels]
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def make_feedback(
    config: FeedbackConfig,
    num_classes: int,
    channels: int,
    seed: int,
    name: str,
    device: torch.device,
    family: Family = FAMILIES["gaussian"],
) -> Feedback:
    """The feedback network of the block called ``name``, with ``channels`` channel means."""
    if config.update == "closed_form":
        return ClosedForm(num_classes, channels, config.decay, config.ridge, family).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "feedback", name))
        network = feedback_network(num_classes, channels, config.layers, config.hidden).to(device)
    if config.update == "sgd":
        return Learned(network, num_classes, config.lr, config.momentum, family)
    return Fixed(network, num_classes)


def _one_hot_rows(like_K: Tensor) -> Tensor:
    """The one-hot label of every class, [K, K], on the device of ``like_K``."""
    return torch.eye(like_K.shape[0], device=like_K.device)
