"""What a rank takes from a checkpoint: what fits, by name, shape and format; what is left over is told in few words."""

from __future__ import annotations

import pytest
import torch

from bllpipe.engines.build import check_complete_state, in_groups, matching_tensors
from bllpipe.errors import CheckpointError


def test_what_has_the_same_name_and_form_fits_and_what_is_no_name_of_ours_stays() -> None:
    own = {"model.a": torch.zeros(2, 3), "heads.b.w": torch.zeros(2), "heads.c.w": torch.zeros(2)}
    found = {"model.a": torch.ones(2, 3), "heads.b.w": torch.ones(1), "heads.c.w": torch.ones(2).double()}
    assert matching_tensors(own, {**found, "ahead.x": torch.ones(1)}, "step-1").keys() == {"model.a", "ahead.x"}


@pytest.mark.parametrize("other", [torch.ones(3, 2), torch.ones(1), torch.ones(2, 3).half()])
def test_the_network_itself_must_be_the_same(other: torch.Tensor) -> None:
    """A tensor with one value once filled one with many."""
    words = (
        r"^step-1 holds model.a as .*\], but this run needs float32\[2, 3\]: it is of another network; give the keys"
    )
    with pytest.raises(CheckpointError, match=words):
        matching_tensors({"model.a": torch.zeros(2, 3)}, {"model.a": other}, "step-1")


def test_a_checkpoint_without_a_part_of_the_network_is_refused() -> None:
    """Such a part once started fresh, with a warning among others."""
    weights = ["model.layer1.0.a", "model.layer1.0.b", "model.fc.a", "heads.layer1.0.0.a", "model.fc.feedback_weight"]
    check_complete_state(weights, weights[:3], "step-1")
    words = r"^step-1 holds nothing for model.fc.a \(1\), model.layer1.0 \(1\), which this run needs: it is of another"
    with pytest.raises(CheckpointError, match=words):
        check_complete_state(weights, weights[:1], "step-1")


def test_names_are_told_by_unit() -> None:
    heads = [f"heads.layer1.1.{part}" for part in ("2.weight", "2.bias")]
    names = [*heads, *(f"optimizer.{name}.momentum_buffer" for name in heads), "feedback.layer1.1.sums_KC"]
    assert in_groups(names) == "feedback.layer1.1 (1), heads.layer1.1 (2), optimizer.heads.layer1.1 (2)"


def test_many_names_stay_one_line() -> None:
    text = in_groups(f"model.layer1.{unit}.weight" for unit in range(9))
    assert text.endswith("model.layer1.5 (1) and 3 more") and "\n" not in text
