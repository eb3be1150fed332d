"""Whether a run fits its nodes, and the job scripts that bllpipe writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bllpipe import cli
from bllpipe.config import load_config
from bllpipe.errors import ConfigError
from bllpipe.slurm.__main__ import main
from bllpipe.slurm.job_script import check_fit, num_ranks, ranks_of_nodes
from tests.support.waiting import PATIENCE

REPOSITORY = Path(__file__).parents[3]
BP = ("method=bp", "engine=1f1b")
NOT_ENOUGH = [
    ([], 1, 3, "4 blocks need 4 GPUs, but 1 node with 3 GPUs each have 3; use --nodes 2, or --set blocks=3, or --set"),
    (["blocks=8"], 2, 3, "8 blocks need 8 GPUs, but 2 nodes with 3 GPUs each have 6; use --nodes 3, or --set blocks=6"),
    (
        ["blocks=1", "feedback.device=cuda"],
        1,
        1,
        "1 block and the feedback, .* need 2 GPUs, .* use --nodes 2, or --set b",
    ),
    (["feedback.device=cuda"], 1, 4, "4 blocks and the feedback, .* need 5 GPUs, .* --nodes 2, or --set blocks=3, or"),
    (
        [*BP, "blocks=4"],
        1,
        2,
        "4 ranks need 4 GPUs, but 1 node with 2 GPUs each have 2; .* --set blocks=2$",
    ),
    (["method=bp", "engine=zbv", "blocks=8"], 1, 2, "4 ranks need 4 GPUs, but .* have 2; use --nodes 2$"),
    (
        ["blocks=2", "replicas=[3, 2]", "data.batch_size=66"],
        1,
        4,
        "2 blocks with 5 replicas need 5 GPUs, .* have 4; use --nodes 2, or --set backend.alpha=gloo to let",
    ),
    ([*BP, "backend.alpha=gloo"], 1, 2, "4 ranks need 4 GPUs, .* --set blocks=2$"),
]


@pytest.mark.parametrize(("overrides", "nodes", "gpus", "message"), NOT_ENOUGH)
def test_too_few_gpus(overrides: list[str], nodes: int, gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_fit(load_config(None, overrides), nodes, gpus)


@pytest.mark.parametrize(
    ("overrides", "nodes", "gpus"),
    [
        ([], 1, 4),
        (["feedback.device=cuda"], 1, 5),
        (["blocks=8"], 2, 4),
        (["device=cpu"], 1, 1),
        (["backend.alpha=gloo"], 1, 1),
        ([], 5, 0),
        ([], 1, None),
        (["device=cuda"], 1, None),
        (["method=bp", "engine=single"], 1, 1),
        (["engine=threads"], 1, 1),
    ],
)
def test_enough_gpus(overrides: list[str], nodes: int, gpus: int | None) -> None:
    check_fit(load_config(None, overrides), nodes, gpus)


@pytest.mark.parametrize("key", ["device", "feedback.device"])
def test_gpus_on_nodes_that_have_none(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key} is cuda, but the nodes have no GPUs; use .* --set {key}=cpu"):
        check_fit(load_config(None, [f"{key}=cuda"]), 1, 0)


@pytest.mark.parametrize(("overrides", "nodes", "ranks"), [([], 6, 5), (["engine=threads"], 2, 1)])
def test_more_nodes_than_ranks(overrides: list[str], nodes: int, ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"^{ranks} ranks? cannot be spread over {nodes} nodes; use --nodes {ranks}"):
        check_fit(load_config(None, overrides), nodes, None)


@pytest.mark.parametrize(("nodes", "ranks"), [(1, [9]), (2, [4, 5]), (3, [3, 3, 3]), (4, [2, 2, 2, 3])])
def test_what_is_left_over_goes_to_the_last_nodes(nodes: int, ranks: list[int]) -> None:
    assert ranks_of_nodes(num_ranks(load_config(None, ["blocks=8"])), nodes) == ranks


@pytest.mark.parametrize(
    ("settings", "ranks"),
    [(["blocks=5"], 6), (["blocks=2", "replicas=[2, 1]"], 4), (["replicas=2", "device=cpu"], 9)],
)
def test_what_a_job_asks_before_it_starts_ranks(
    settings: list[str], ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["2", "3", "--run-dir", "runs/a b", "--resume", "auto", *words]) == 0
    assert capsys.readouterr().out == f"{ranks} runs/a b\n"


@pytest.mark.parametrize(
    ("settings", "options", "ranks"),
    [
        ([], [], 9),  # eight GPUs, and the feedback on a CPU
        (["feedback.device=cuda"], [], 8),
        (["device=cpu"], ["--ranks", "13"], 13),
        ([], ["--ranks", "7"], 7),
    ],
)
def test_a_job_has_a_rank_for_every_gpu_if_replicas_are_auto(
    settings: list[str], options: list[str], ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for setting in ["replicas=auto", *settings] for word in ("--set", setting)]
    assert cli.main(["slurm", *words, *options, "--nodes", "2", "--out", str(tmp_path / "job.sh")]) == 0
    assert f"for {ranks} ranks; submit it with" in capsys.readouterr().out
    last = (tmp_path / "job.sh").read_text().splitlines()[-1]
    assert last.endswith(f'--ranks {ranks} "$@"') is bool(options)
    assert main(["2", "4", "--run-dir", "runs/a", "--resume", "auto", *words, *options]) == 0
    assert capsys.readouterr().out == f"{ranks} runs/a\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "device=cpu"], "replicas is auto, but there are no GPUs to count the ranks by; use --ranks N"),
        (["--ranks", "4"], "--ranks is 4, but blocks and feedback need at least 5"),
        (["--ranks", "12"], "--ranks asks for 11 GPUs, but 2 nodes with 4 GPUs each have 8; leave --ranks out, or"),
        (["--set", "replicas=2", "--ranks", "9"], "--ranks is 9, but the number of ranks of this run, 9, follows from"),
    ],
)
def test_ranks_that_a_job_cannot_have(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["slurm", "--set", "replicas=auto", *words, "--nodes", "2"]) == 2
    assert message in capsys.readouterr().err


def test_a_script_for_replicas_reserves_cpus_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two replicas of four blocks and the feedback rank are nine ranks: four on one node, five on the other."""
    words = ["--set", "replicas=2", "--nodes", "2", "--out", str(tmp_path / "job.sh")]
    assert cli.main(["slurm", *words]) == 0
    assert "for 9 ranks; submit it with" in capsys.readouterr().out
    found = directives((tmp_path / "job.sh").read_text())
    assert (found["ntasks-per-node"], found["cpus-per-task"]) == ("1", "10"), "two CPUs a rank; torchrun starts ranks"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "never"], "--resume is never, but a job that SLURM may restart .*; remove --resume"),
        (["--resume", "auto", "--max-restarts", "3"], "submit with PET_MAX_RESTARTS=3 sbatch"),
        (["--resume", "auto", "--stop-seconds", "90"], "submit with TORCH_ELASTIC_SHUTDOWN_TIMEOUT=90 sbatch"),
        (["--resume", "auto", "--set", "blocks=9"], "the network has only 8 units"),
        (["--resume", "auto", "--set", "blocks=5"], "5 blocks need 5 GPUs"),
    ],
)
def test_what_a_job_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["1", "4", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_written_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "blocks=8", "--set", "cpu_threads=2", "--nodes", "2", "--time", "1-02:00:00"]
    words += ["--partition", "booster", "--account", "a.b-c"]
    assert cli.main(["slurm", *words, "--out", str(tmp_path / "job.sh")]) == 0
    assert f"for 9 ranks; submit it with: sbatch {tmp_path}/job.sh" in capsys.readouterr().out
    assert directives((tmp_path / "job.sh").read_text()) == {
        "job-name": "bllpipe",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "15",
        "time": "1-02:00:00",
        "signal": "TERM@300",
        "requeue": "",
        "open-mode": "append",
        "output": "bllpipe-%j.out",
        "partition": "booster",
        "account": "a.b-c",
    }
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True, timeout=PATIENCE)


def test_nodes_without_gpus_and_little_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["slurm", "--gpus-per-node", "0", "--time", "00:02:00"]) == 0
    found = directives(capsys.readouterr().out)
    assert "gpus-per-node" not in found and found["signal"] == "TERM@30"


def test_arguments_stay_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Spaces, quotes, variables, commands and lines mean nothing to the shell."""
    strange = 'it\'s $HOME; $(touch no)\n#SBATCH --nodes=9 "a" `b`'
    config = tmp_path / "a 'config'.yaml"
    config.write_text("blocks: 2\n")
    words = ["--config", str(config), "--set", f"name={json.dumps(strange)}"]
    assert cli.main(["slurm", *words, "--run-dir", strange]) == 0
    script = capsys.readouterr().out
    assert directives(script)["nodes"] == "1"
    call = script[script.index("\nrun_bllpipe ") :]
    shell = ["bash", "-c", f"run_bllpipe() {{ printf '%s\\0' \"$@\"; }}\n{call}"]
    done = subprocess.run(shell, capture_output=True, text=True, check=True, timeout=PATIENCE, cwd=tmp_path)
    assert done.stdout.split("\0")[:-1] == [*words, "--run-dir", strange]
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "blocks=5"], "5 blocks need 5 GPUs, but 1 node with 4 GPUs each have 4; use --nodes 2, or"),
        (["--set", "blocks=9"], "the network has only 8 units"),
        (["--nodes", "0"], "--nodes is 0; expected at least 1; use --nodes 1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node is -1; expected at least 0; use --gpus-per-node 0"),
        (["--time", "2h"], "--time is '2h'; expected HH:MM:SS or D-HH:MM:SS, such as --time 04:00:00"),
        (["--time", "00:00:59"], "--time is 00:00:59; expected at least a minute; use --time 00:01:00"),
        (["--partition", "a\n#SBATCH --x"], r"--partition is 'a\\n#SBATCH --x'; expected a name of letters"),
        (["--account", "a b"], "--account is 'a b'; expected a name of letters"),
        (["--out", "."], "is a directory; expected the name of a file"),
    ],
)
def test_what_cannot_be_written(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["slurm", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_neither_writing_nor_asking_imports_torch() -> None:
    code = "import sys, bllpipe.slurm.job_script, bllpipe.slurm.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=REPOSITORY)


@pytest.mark.parametrize("name", ["one_node", "four_gpus", "nodes", "array"])
def test_scripts_ask_for_what_they_need(name: str) -> None:
    """The embedded run fits each of them, as it is."""
    text = (REPOSITORY / f"launch/slurm_{name}.sh").read_text()
    found = directives(text)
    assert found["signal"] == "TERM@300" and "requeue" in found and found["open-mode"] == "append"
    assert not {"partition", "account", "mail-user"} & found.keys(), "that is a site's or a user's"
    overrides = ["feedback.device=cuda"] if name == "one_node" else []
    check_fit(load_config(None, overrides), int(found["nodes"]), int(found["gpus-per-node"]))


def directives(script: str) -> dict[str, str]:
    """What sbatch reads: the #SBATCH lines before the first command."""
    head = re.split(r"\n(?!#|\n)", script, maxsplit=1)[0]
    words = re.findall(r"^#SBATCH --(\S+)$", head, re.MULTILINE)
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}
