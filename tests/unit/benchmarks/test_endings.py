"""The benchmark of how jobs end: a job that is refused, and one that is killed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from benchmarks import endings
from benchmarks.endings import Case


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_row_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n" * endings.STEPS)
    monkeypatch.setattr(endings, "steps", lambda run_dir, count=endings.steps: count(tmp_path))
    stays = (sys.executable, "-c", "import time; time.sleep(3600)")
    refused = (sys.executable, "-c", "raise SystemExit(2)")
    cases = (Case("refused", refused), Case("killed", stays, number=signal.SIGKILL))
    monkeypatch.setattr(endings, "CASES", cases)
    assert endings.main(["--repetitions", "1", "--json", str(tmp_path / "out.json")]) == 0
    assert "killed" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(each["case"], each["seconds"]["n"]) for each in results] == [("refused", 1), ("killed", 1)]
    assert all(each["seconds"]["median"] > 0 for each in results)


def test_a_job_that_never_comes_so_far_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "TIMEOUT", 0.05)
    with pytest.raises(SystemExit, match="expected the job to change its state within 0.05 s; it has not"):
        endings.wait(lambda: False)
