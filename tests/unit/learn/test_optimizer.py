"""Learning rates: known points of every schedule."""

import pytest

from bllpipe.config.schema import ScheduleConfig
from bllpipe.learn.optimizer import rate_factor


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
