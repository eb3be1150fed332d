"""Faults on purpose: what may be said of them, and that nothing happens unless somebody allows it."""

from __future__ import annotations

import pytest

from bllpipe.distributed.torchrun import fault_text
from bllpipe.errors import ConfigError
from bllpipe.tools.fault_injection import Fault, parse_faults, trigger


def test_several_faults() -> None:
    text = "rank=2,step=7,point=update,action=kill; rank=0,point=rename,action=sleep,attempt=3,seconds=5;"
    assert parse_faults(text) == [
        Fault(2, "update", "kill", step=7),
        Fault(0, "rename", "sleep", attempt=3, seconds=5.0),
    ]
    assert parse_faults("") == []


def test_when_a_fault_is_due() -> None:
    assert [Fault(0, "update", "kill", step=3).is_due(step) for step in (2, 3, 4)] == [False, True, False]
    assert Fault(0, "update", "kill").is_due(9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank=2,point=update", "is not understood; BLLPIPE_FAULT is rank=R"),
        ("rank=2,point=update,action=kill,where=here", "is not understood"),
        ("rank=two,point=update,action=kill", "the fault's rank is 'two'; expected a whole number; BLLPIPE_FAULT is"),
        ("rank=2,point=updat,action=kill", "did you mean 'update'"),
        ("rank=2,point=update,action=dance", "known are kill, stop"),
        ("rank=2,point=update,action=nan", "nan and inf go with the points input, alpha"),
        ("rank=2,point=alpha,action=kill", "nan and inf go with the points input, alpha"),
    ],
)
def test_what_cannot_be_asked_for(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_faults(text)


def test_faults_must_be_allowed() -> None:
    asked = {"BLLPIPE_FAULT": "rank=0,point=update,action=kill"}
    assert fault_text({}) == ""
    assert fault_text({**asked, "BLLPIPE_ALLOW_FAULTS": "1"}) == asked["BLLPIPE_FAULT"]
    with pytest.raises(ConfigError, match="faults are not allowed; unset it, or set BLLPIPE_ALLOW_FAULTS=1"):
        fault_text(asked)


def test_a_fault_that_raises_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="a fault on purpose: Fault\\(rank=2, point='update', action='raise'"):
        trigger(Fault(2, "update", "raise"))
    assert "fault on purpose: raise rank 2 at update" in capsys.readouterr().err
