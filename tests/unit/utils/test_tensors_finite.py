"""NaN and Inf are found before the update of the step in which they reach a loss, and called by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bllpipe.config import load_config
from bllpipe.engines import Options, build, in_process
from bllpipe.errors import NonFiniteError
from bllpipe.messages import Target
from bllpipe.training.instrument import guard
from bllpipe.utils.tensors import describe, is_finite, require_finite


def test_what_is_finite() -> None:
    assert is_finite(torch.ones(3)) and is_finite(torch.tensor([2**62]))
    assert not is_finite(torch.tensor([1.0, float("nan")])) and not is_finite(torch.tensor(float("-inf")))


def test_a_description_counts() -> None:
    values = torch.zeros(2, 600)
    values[0, :3], values[1, 5] = float("nan"), float("inf")
    assert describe("alpha", values) == "alpha has 3 NaN and 1 Inf among its 1,200 values"
    assert describe("the loss", torch.tensor(float("inf"))) == "the loss is inf"


def test_the_first_of_many_is_named() -> None:
    tensors = {"a": torch.ones(1), "n": torch.ones(2, dtype=torch.int64), "b": torch.tensor([0.0, float("nan")])}
    with pytest.raises(NonFiniteError, match=re.escape("rank 1 (block 1), step 6: b has 1 NaN and 0 Inf among its 2")):
        require_finite(tensors, 1, "block 1", "step 6", received=[])
    require_finite({"a": tensors["a"]}, 0, "block 0", "step 0", received=[])


@pytest.fixture
def at_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are looked at as on a GPU."""
    monkeypatch.setattr(build, "guard", lambda actor, at_lines: guard(actor, at_lines=True))


def once(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
    """A loss that is infinite in step 4 and in no other, and harms no weight."""
    odd = torch.tensor(float("inf") if target.round.phase == "train" and target.round.step == 4 else 0.0)
    return {"pred": cross_entropy(scores.float(), target.label_B), "odd": scores.mean() * 0 + odd}


def never(alpha: Tensor, scores: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
    """A loss that is finite in training, and not in tests."""
    infinite = torch.tensor(0.0 if target.round.phase == "train" else float("inf"))
    return {"pred": cross_entropy(scores.float(), target.label_B) + infinite}


SMALL = ("engine=sequential", "blocks=2", "model.width=2", "steps=12", "data.batch_size=16", "method=own")


def found(folder: Path, loss: Any, *settings: str) -> str:
    """What ends a run with this loss."""
    name = f"objective.function={__name__}:{loss.__name__}"
    with pytest.raises(NonFiniteError) as ended:
        in_process.run_sequential(load_config(None, [*SMALL, name, *settings]), Options(run_dir=str(folder)))
    return str(ended.value)


def test_what_is_not_finite_once_is_found_at_the_next_line(at_lines: None, tmp_path: Path) -> None:
    told = found(tmp_path, once, "log.every_steps=4", "checkpoint.every_steps=3")
    assert told.startswith("rank 0 (block 0), checkpoint of step 6: "), "which comes before the line of step 8"
    told = found(tmp_path / "more", once, "log.every_steps=4", "checkpoint.every_steps=10")
    assert told.startswith("rank 0 (block 0), step 7: the mean of the loss term 'odd' is inf; lower optimizer.lr")


def test_no_checkpoint_is_written_behind_it(at_lines: None, tmp_path: Path) -> None:
    """Though all weights are finite, and no line has told yet."""
    told = found(tmp_path, once, "log.every_steps=100", "checkpoint.every_steps=3")
    assert "checkpoint of step 6: books.block 0.terms.odd is inf" in told
    written = [path.name for path in (tmp_path / "checkpoints").glob("step-*") if "partial" not in path.name]
    assert written == ["step-00000003"]


def test_tests_are_looked_at_too(at_lines: None, tmp_path: Path) -> None:
    told = found(tmp_path, never, "log.every_steps=4", "checkpoint.every_steps=0")
    assert "score" in told and "the mean of the loss term 'pred' is inf" in told


def test_on_a_cpu_the_step_itself_tells(tmp_path: Path) -> None:
    told = found(tmp_path, once, "log.every_steps=100")
    assert told.startswith("rank 0 (block 0), step 4: the loss term 'odd' is inf")
