"""Losses of a script's own: what tests allow as training does, and what is refused before a record or a message is
spoiled."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bllpipe
from bllpipe import cli
from bllpipe.learn.losses import ReconstructionLoss
from bllpipe.learn.user_loss import RECORD_FIELDS, UserLoss
from bllpipe.messages import Round, Target
from tests.support.networks.api import DATA, seeded_network, towards_class

SMALL = {"data.batch_size": 32, "log.every_steps": 1}
TARGET = Target(Round("train", 0, size=4), torch.randn(4, 5), torch.ones(4), torch.tensor([0, 1, 2, 0]))
Terms = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def trained(objective: Any, **more: Any) -> bllpipe.Run:
    return bllpipe.train(seeded_network(), DATA, blocks=[1, 2], epochs=2, objective=objective, settings=SMALL, **more)


def penalty(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
    pred = cross_entropy(scores, target.label_B)
    (slope,) = torch.autograd.grad(pred, alpha, create_graph=True)
    return {"pred": pred, "slope": slope.square().sum()}


def slope_of_scores(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
    (slope,) = torch.autograd.grad(scores.logsumexp(1).sum(), scores, create_graph=True)
    return {"pred": cross_entropy(scores, target.label_B), "sure": 0.1 * slope.square().mean()}


def weighed(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
    """Terms as large as their gradients, which are not gone through."""
    pred, size = cross_entropy(scores, target.label_B), alpha.square().mean()
    one, other = (torch.autograd.grad(term, alpha, retain_graph=True)[0].norm() for term in (pred, size))
    return {"pred": pred, "size": size * (one / other.clamp(min=1e-6)).detach()}


class Penalised(nn.Module):
    """Takes the gradient with respect to a parameter of its own."""

    def __init__(self, config: Any, alpha_shape: Any, num_classes: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
        pred = cross_entropy(scores * self.temperature, target.label_B)
        (slope,) = torch.autograd.grad(pred, self.temperature, create_graph=True)
        return {"pred": pred, "slope": slope.square()}


@pytest.mark.parametrize("objective", [penalty, slope_of_scores, weighed, Penalised])
def test_a_loss_may_take_gradients_in_training_and_in_the_test(objective: Any) -> None:
    runs = [trained(objective, engine=engine) for engine in ("sequential", "threads")]
    assert runs[0].state_sha256 == runs[1].state_sha256
    tests = [json.loads(line) for line in (runs[0].directory / "metrics.jsonl").read_text().splitlines()]
    tested = [line for line in tests if line["phase"] == "evaluate" and line["rank"] == 0]
    trained_names = next(line for line in tests if line["phase"] == "train" and line["rank"] == 0).keys()
    names = {"pred", "slope", "sure", "size"} & trained_names
    assert tested and all(names <= line.keys() for line in tested)


def test_a_gradient_inside_a_loss_in_front_of_a_frozen_block() -> None:
    model = seeded_network()
    model[0].requires_grad_(False)
    run = bllpipe.train(model, DATA, blocks=[1, 2], epochs=2, objective=penalty, settings=SMALL)
    assert run.block_accuracy[0] > 0


def test_a_test_may_return_what_has_no_gradient() -> None:
    class Otherwise(nn.Module):
        def __init__(self, *about: Any) -> None:
            super().__init__()

        def forward(self, alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
            pred = cross_entropy(scores, target.label_B)
            return {"pred": pred if self.training else pred.detach()}

    assert trained(Otherwise).accuracy > 0


def named(name: Any) -> Any:
    return lambda alpha, scores, target, x: {name: cross_entropy(scores, target.label_B)}


@pytest.mark.parametrize("name", sorted(RECORD_FIELDS))
def test_a_term_cannot_have_the_name_of_a_field(name: str) -> None:
    scores = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(bllpipe.ConfigError, match=f"a term is called '{name}', but metrics.jsonl has a field of this"):
        UserLoss(named(name), "given:loss")(TARGET.beta_BC, scores, TARGET, TARGET.beta_BC)


def test_the_fields_are_those_that_a_run_writes() -> None:
    settings = {**SMALL, "evaluate.ensemble": True}
    run = bllpipe.train(seeded_network(), DATA, blocks=2, epochs=2, objective=towards_class, settings=settings)
    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    written = {name for line in lines for name in line} - {"near", "pred"}
    assert written == RECORD_FIELDS - {"test_accuracy"}, "which the progress line adds"


@pytest.mark.parametrize("name", ["two\nlines", "not UTF-8 \udc80", "\x1b[31mred"])
def test_a_name_can_be_printed_and_stored(name: str) -> None:
    """A checkpoint could not be written with one of these."""
    with pytest.raises(bllpipe.ConfigError, match="a term is called .*; expected letters that can be printed"):
        trained(named(name))


@pytest.mark.parametrize("name", ["", 3, None, ("a", "b")])
def test_a_name_is_text(name: Any) -> None:
    with pytest.raises(bllpipe.ConfigError, match="expected text as the name of a term, got"):
        trained(named(name))


def test_names_of_ones_own_stay_free() -> None:
    run = trained(named("Step 1/loss"))
    assert '"Step 1/loss": ' in (run.directory / "metrics.jsonl").read_text()


def test_two_terms_called_keep() -> None:
    keeping = ReconstructionLoss(named("keep"), (3, 4, 4), (2, 4, 4), 1.0)
    maps, scores = torch.randn(4, 2, 4, 4), torch.randn(4, 3, requires_grad=True)
    with pytest.raises(bllpipe.ConfigError, match=r"a term of the objective is called 'keep', as .*keep_weight=0"):
        keeping(maps, scores, TARGET, torch.randn(4, 3, 4, 4))


def step_as_a_name(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
    return {"step": cross_entropy(scores, target.label_B)}


def test_check_and_the_run_refuse_in_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["engine=sequential", "steps=2", "blocks=2", "model.name=tests.support.networks.api:digit_network"]
    settings += ["method=own", f"objective.function={__name__}:step_as_a_name"]
    words = [part for word in settings for part in ("--set", word)]
    said = []
    for command in ("train", "check"):
        assert cli.main([command, *words]) == 2
        said.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert said[0].partition("(the only process): ")[2] == said[1].removeprefix("bllpipe: ")
    assert re.search("a term is called 'step'", said[1])


class Remembering(nn.Module):
    """Keeps the graph of the batch before."""

    def __init__(self, *about: Any) -> None:
        super().__init__()
        self.before: Tensor | None = None

    def forward(self, alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
        pred = cross_entropy(scores, target.label_B)
        drift = pred if self.before is None else (alpha.mean() - self.before).square()
        self.before = alpha.mean()
        return {"pred": pred, "drift": drift}


def spent(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
    pred = cross_entropy(scores, target.label_B)
    torch.autograd.grad(pred, alpha)
    return {"pred": pred}


@pytest.mark.parametrize("objective", [Remembering, spent])
def test_a_graph_that_is_gone(objective: Any) -> None:
    message = r"the loss of the block that ends with [01]: expected a graph of this batch alone, got one"
    with pytest.raises(bllpipe.ConfigError, match=f"{message} .*; use .detach"):
        trained(objective)


def test_another_error_of_autograd_is_the_users() -> None:
    def broken(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
        scores.register_hook(lambda gradient: gradient[:, :1] @ gradient)
        return {"pred": cross_entropy(scores, target.label_B)}

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trained(broken)


def in_place(change: Any) -> Any:
    def loss(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
        change(alpha, scores, target, x)
        return {"pred": cross_entropy(scores, target.label_B)}

    return loss


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda alpha, scores, target, x: alpha.relu_(), "alpha"),
        (lambda alpha, scores, target, x: scores.div_(2), "scores"),
        (lambda alpha, scores, target, x: x.zero_(), "x"),
        (lambda alpha, scores, target, x: target.beta_BC.mul_(2), "target.beta_BC"),
        (lambda alpha, scores, target, x: target.label_B.clamp_(max=1), "target.label_B"),
        (lambda alpha, scores, target, x: (alpha.mul_(2), x.mul_(2)), "alpha and x"),
        (lambda alpha, scores, target, x: alpha.detach_(), "alpha"),
    ],
)
def test_what_a_loss_is_given_is_not_its_own(change: Any, names: str) -> None:
    with pytest.raises(
        bllpipe.ConfigError, match=f"changes {names} in place, which the pipeline reads too; use a function"
    ):
        trained(in_place(change))


class WithoutArguments(nn.Module):
    def forward(self, alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
        return {"pred": cross_entropy(scores, target.label_B)}


class WithoutScores(nn.Module):
    def __init__(self, *about: Any) -> None:
        super().__init__()

    def forward(self, alpha: Tensor) -> Terms:
        return {"pred": alpha.mean()}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            lambda scores, label: {},
            r"too many positional arguments; .* use the parameters \(alpha, scores, target, x\)",
        ),
        (lambda alpha, scores, target, x, y: {}, "missing a required argument: 'y'; expected a function"),
        (WithoutArguments, r"too many positional .* use the parameters \(config, alpha_shape, num_classes\)"),
        (WithoutScores, r"too many positional arguments; .* use the parameters \(alpha, scores, target, x\)"),
    ],
)
def test_a_loss_that_cannot_be_called(objective: Any, message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=f"cannot be called: {message}"):
        trained(objective)


def test_a_loss_that_switches_gradients_off_switches_them_for_itself() -> None:
    def switching(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
        pred = cross_entropy(scores, target.label_B)
        torch.set_grad_enabled(False)
        return {"pred": pred}

    assert trained(switching).state_sha256 == trained(named("pred")).state_sha256


def test_a_complex_term() -> None:
    def loss(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> Terms:
        return {"pred": torch.fft.fft(scores).sum()}

    with pytest.raises(bllpipe.ConfigError, match="term 'pred': expected a real number, got a complex one; use its"):
        trained(loss)
