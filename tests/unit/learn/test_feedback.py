"""Feedback networks: optima, gradients, and classes that were never seen."""

import pytest
import torch
from torch.nn.functional import one_hot

from bllpipe.config.schema import FeedbackConfig
from bllpipe.learn.distributions import Gaussian, class_statistics
from bllpipe.learn.feedback import ClosedForm, Fixed, Learned, feedback_network, make_feedback
from bllpipe.learn.losses import posterior_kl

CPU = torch.device("cpu")


def batch(size: int = 40, classes: int = 5, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, channels, generator=generator), torch.randint(0, classes, (size,), generator=generator)


def test_closed_form_is_the_least_squares_solution() -> None:
    alpha_BC, label_B = batch()
    feedback = ClosedForm(5, 3, decay=0.0, ridge=0.0)
    feedback.absorb(*class_statistics(alpha_BC, label_B, 5))
    oracle = torch.linalg.lstsq(one_hot(label_B, 5).float(), alpha_BC).solution
    torch.testing.assert_close(feedback.table()[0], oracle)


def test_closed_form_minimises_the_kl_of_the_batch() -> None:
    alpha_BC, label_B = batch()
    feedback = ClosedForm(5, 3, decay=0.0, ridge=0.0)
    feedback.absorb(*class_statistics(alpha_BC, label_B, 5))
    beta_KC = feedback.table()[0]
    least = posterior_kl(Gaussian(), alpha_BC, beta_KC[label_B], torch.ones(len(label_B)))
    for _ in range(20):
        moved = beta_KC + 0.1 * torch.randn_like(beta_KC)
        assert posterior_kl(Gaussian(), alpha_BC, moved[label_B], torch.ones(len(label_B))) > least


def test_sums_decay_and_the_ridge_shrinks() -> None:
    feedback = ClosedForm(2, 1, decay=0.5, ridge=1.0)
    feedback.absorb(torch.tensor([[4.0], [0.0]]), torch.tensor([2.0, 0.0]))
    feedback.absorb(torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 1.0]))
    assert feedback.table()[0].tolist() == [[3.0 / 3.0], [3.0 / 2.0]]


@pytest.mark.parametrize("update", ["closed_form", "sgd"])
def test_a_class_never_seen_has_no_target(update: str) -> None:
    feedback = make_feedback(FeedbackConfig(update=update), 3, 2, 0, "layer1.0", CPU)  # type: ignore[arg-type]
    assert feedback.table()[1].tolist() == [0, 0, 0]
    feedback.absorb(torch.tensor([[1.0, 2.0], [0, 0], [3, 4]]), torch.tensor([1.0, 0.0, 2.0]))
    assert feedback.table()[1].tolist() == [1, 0, 1]
    assert torch.isfinite(feedback.table()[0]).all()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_learned_feedback_follows_the_gradient_of_the_kl(layers: int) -> None:
    alpha_BC, label_B = batch()
    config = FeedbackConfig(update="sgd", layers=layers, hidden=16, lr=0.5, momentum=0.0)
    feedback = make_feedback(config, 5, 3, 0, "layer1.0", CPU)
    assert isinstance(feedback, Learned)
    before = {name: p.detach().clone() for name, p in feedback.network.named_parameters()}
    kl = posterior_kl(Gaussian(), alpha_BC, feedback.network(one_hot(label_B, 5).float()), torch.ones(len(label_B)))
    gradients = dict(zip(before, torch.autograd.grad(kl, list(feedback.network.parameters())), strict=True))
    feedback.absorb(*class_statistics(alpha_BC, label_B, 5))
    for name, p in feedback.network.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.5 * gradients[name])


def test_learned_feedback_converges_to_the_class_means() -> None:
    alpha_BC, label_B = batch()
    feedback = make_feedback(FeedbackConfig(update="sgd", lr=1.0), 5, 3, 0, "layer1.0", CPU)
    stats = class_statistics(alpha_BC, label_B, 5)
    for _ in range(400):
        feedback.absorb(*stats)
    torch.testing.assert_close(feedback.table()[0], stats[0] / stats[1].unsqueeze(1), atol=1e-2, rtol=0)


def test_fixed_feedback_never_changes_and_knows_every_class() -> None:
    feedback = make_feedback(FeedbackConfig(update="fixed", layers=2), 5, 3, 0, "layer1.0", CPU)
    assert isinstance(feedback, Fixed)
    before = feedback.table()[0].clone()
    feedback.absorb(torch.ones(5, 3), torch.ones(5))
    assert torch.equal(feedback.table()[0], before) and feedback.table()[1].tolist() == [1] * 5


def test_seed_and_name_decide_the_weights() -> None:
    def table(seed: int, name: str) -> torch.Tensor:
        return make_feedback(FeedbackConfig(update="fixed"), 5, 3, seed, name, CPU).table()[0]

    assert torch.equal(table(1, "layer1.0"), table(1, "layer1.0"))
    assert not torch.equal(table(1, "layer1.0"), table(2, "layer1.0"))
    assert not torch.equal(table(1, "layer1.0"), table(1, "layer2.0"))


def test_network_widths() -> None:
    shapes = [tuple(p.shape) for p in feedback_network(10, 64, layers=3, hidden=32).parameters() if p.dim() == 2]
    assert shapes == [(32, 10), (32, 32), (64, 32)]
