"""Learning rates: known points of every schedule. Updates of parameters that lie in memory in odd ways."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bllpipe.config.schema import OptimizerConfig, ScheduleConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.optimizer import Optimizer, rate_factor


def rates(config: ScheduleConfig, steps: int = 100) -> list[float]:
    return [rate_factor(step, steps, config) for step in range(steps)]


def test_cosine_falls_from_one_to_its_end() -> None:
    found = rates(ScheduleConfig(name="cosine", final_fraction=0.1))
    assert found[0] == 1.0 and found[50] == pytest.approx(0.55) and found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(0.1, abs=1e-3)


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing() -> None:
    found = rates(ScheduleConfig(name="onecycle", peak_at=0.3, start_fraction=0.04))
    assert found[0] == pytest.approx(0.04) and found[30] == 1.0 and found[-1] < 0.01
    assert found[:31] == sorted(found[:31]) and found[30:] == sorted(found[30:], reverse=True)


def test_multistep_drops_at_its_milestones() -> None:
    found = rates(ScheduleConfig(name="multistep", milestones=[0.3, 0.6], gamma=0.2))
    assert found[29] == 1.0 and found[30] == pytest.approx(0.2) and found[60] == pytest.approx(0.04)


@pytest.mark.parametrize("name", ["constant", "cosine", "multistep"])
def test_warm_up_is_linear(name: str) -> None:
    config = ScheduleConfig(name=name, warmup_steps=10)  # type: ignore[arg-type]
    plain = ScheduleConfig(name=name)  # type: ignore[arg-type]
    for step in range(10):
        assert rate_factor(step, 100, config) == pytest.approx(rate_factor(step, 100, plain) * (step + 1) / 10)
    assert rate_factor(10, 100, config) == rate_factor(10, 100, plain)


VALUES = torch.arange(24.0).reshape(4, 6) / 24


def rows_of_a_larger_one(values: Tensor) -> Tensor:
    return torch.cat([values, torch.full_like(values, 7.0)], dim=1)[:, :6]


def every_second_column(values: Tensor) -> Tensor:
    return torch.stack([values, torch.full_like(values, 7.0)], dim=2)[..., 0]


def updated(values: Tensor, name: Any) -> Tensor:
    parameter = nn.Parameter(values)
    optimizer = Optimizer({"weight": parameter}, OptimizerConfig(name=name))
    for step in range(3):
        parameter.grad = torch.cos(VALUES + step)
        optimizer.step(0.1)
    return parameter.detach()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("placed", [rows_of_a_larger_one, every_second_column, lambda values: values.T.clone().T])
def test_parameters_with_gaps_in_memory_are_updated_as_any_other(placed: Any, name: str) -> None:
    """torch's fused updates go through memory in a row: they changed the tensor in the gaps."""
    values = placed(VALUES)
    torch.testing.assert_close(updated(values, name), updated(VALUES.clone(), name))
    if values._base is not None and values._base.numel() > values.numel():
        assert (values._base == 7).sum() == 24, "what lies in the gaps"


@pytest.mark.parametrize("values", [VALUES[:1].expand(4, 6), VALUES.flatten().as_strided((4, 6), (2, 1))])
def test_values_that_share_memory_are_refused(values: Tensor) -> None:
    """torch's fused updates write beyond its end, which ended the process."""
    with pytest.raises(ConfigError, match="expected memory for each of its 24 values, got (6|12), as"):
        Optimizer({"weight": nn.Parameter(values)}, OptimizerConfig())
    frozen = nn.Parameter(values, requires_grad=False)
    Optimizer({"weight": frozen, "none": nn.Parameter(VALUES[:0])}, OptimizerConfig())
