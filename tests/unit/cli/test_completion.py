"""A real bash completes the commands, and the keys of a config."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bllpipe import cli
from tests.support.waiting import PATIENCE


def test_bash_completes_commands_options_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "bllpipe.bash"
    script.write_text(capsys.readouterr().out)
    expected = (
        (["wat"], "watch"),
        (["watch", "--out"], "--output"),
        (["data", "ver"], "verify"),
        (["train", "--set", "optimizer.l"], "optimizer.lr"),
        (["check", "--config", "a.yaml", "--set", "feedback.up"], "feedback.update"),
    )
    for words, wanted in expected:
        line = " ".join(["bllpipe", *words])
        program = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; COMP_LINE='{line}'; "
            f"COMP_POINT={len(line)}; "
            "function=$(complete -p bllpipe | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $function bllpipe "
            f"{words[-1]} x; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=PATIENCE)
        assert wanted in done.stdout.split(), (line, done.stderr)
