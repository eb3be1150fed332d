"""Each head learns from the prediction of the head before, in the blocks of one process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.belief_passing import WEIGHT, BeliefPassing
from bllpipe.errors import ConfigError
from bllpipe.messages import Round, Target
from tests.support import jobs


@pytest.fixture(autouse=True)
def nothing_before() -> Iterator[None]:
    BeliefPassing.made, BeliefPassing.latest = 0, None
    yield
    BeliefPassing.made, BeliefPassing.latest = 0, None


def batch(*labels: int) -> Target:
    label_B = torch.tensor(labels)
    return Target(
        Round("train", 1), beta_BC=torch.zeros(len(labels), 3), known_B=torch.zeros(len(labels)), label_B=label_B
    )


def test_the_divergence_by_hand_has_no_gradient_to_the_head_before() -> None:
    first, second = (BeliefPassing(None, [3, 4, 4], 2) for _ in range(2))
    alpha, target = torch.zeros(1, 3, 4, 4), batch(0)
    before_BK = torch.tensor([[math.log(3.0), 0.0]], requires_grad=True)  # 3/4 and 1/4
    after_BK = torch.zeros(1, 2, requires_grad=True)  # 1/2 and 1/2
    assert set(first(alpha, before_BK, target, alpha)) == {"pred"}
    belief = second(alpha, after_BK, target, alpha)["belief"]
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert belief.item() == pytest.approx(WEIGHT * by_hand)
    belief.backward()
    assert before_BK.grad is None and after_BK.grad is not None
    torch.testing.assert_close(after_BK.grad, WEIGHT * torch.tensor([[0.5 - 0.75, 0.5 - 0.25]]))


def test_blocks_in_another_order_are_refused() -> None:
    first, _, third = (BeliefPassing(None, [3, 4, 4], 2) for _ in range(3))
    alpha, scores = torch.zeros(1, 3, 4, 4), torch.zeros(1, 2)
    first(alpha, scores, batch(0), alpha)
    with pytest.raises(ValueError, match="block 2 after block 0: .* use --set engine=sequential"):
        third(alpha, scores, batch(0), alpha)


def test_another_batch_is_refused() -> None:
    first, second = (BeliefPassing(None, [3, 4, 4], 2) for _ in range(2))
    alpha, scores = torch.zeros(1, 3, 4, 4), torch.zeros(1, 2)
    first(alpha, scores, batch(0), alpha)
    with pytest.raises(ValueError, match="block 1 after block 0: expected the block before with the same batch"):
        second(alpha, scores, batch(1), alpha)


def test_a_block_that_is_twice_in_a_row_is_refused() -> None:
    """Blocks of threads run in any order; the second time it was taken for the first block, without a term."""
    first, second = (BeliefPassing(None, [3, 4, 4], 2) for _ in range(2))
    alpha, scores = torch.zeros(1, 3, 4, 4), torch.zeros(1, 2)
    for block in (first, second, first, second):
        assert ("belief" in block(alpha, scores, batch(0), alpha)) == (block is second)
    with pytest.raises(ValueError, match="block 1 after block 1: .* use --set engine=sequential"):
        second(alpha, scores, batch(0), alpha)


def test_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank took its block for the first one, and no block had the term."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "5", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match="expected all blocks in one process, got ranks; use --set engine=seq"):
        BeliefPassing(None, [3, 4, 4], 2)


def test_a_run_logs_the_term_of_every_block_but_the_first_and_the_last(tmp_path: Path) -> None:
    settings = "method=own", "objective.function=benchmarks.belief_passing:BeliefPassing", "engine=sequential"
    jobs.in_this_process(tmp_path, *settings, *jobs.RESNET, "blocks=4", "steps=4", "log.every_steps=2")
    lines = [line for line in jobs.metrics(tmp_path) if line["phase"] == "train" and "pred" in line]
    assert {line["rank"]: "belief" in line for line in lines} == {0: False, 1: True, 2: True, 3: False}
