"""Training from a script: the bits of the command line, with objects where a config has names."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import bllpipe
from bllpipe import launch
from bllpipe.api.train import TrainArguments, build_config
from bllpipe.config import load_config, to_mapping
from bllpipe.data.registry import digits
from bllpipe.engines.job import compare_with_first, introduce
from bllpipe.learn.balanced_cut import with_balanced_cut
from tests.support.networks.api import DATA, network, seeded_network, split, towards_class

SMALL = {"data.batch_size": 32, "optimizer.lr": 0.1}
DIGITS = {"model.width": 4, "steps": 3, "evaluate.every_epochs": 0}


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run directories without a name go into runs/ of the working directory."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield
    os.chdir(before)


def on_the_command_line(run_dir: Path, *settings: str) -> bllpipe.Run:
    words = [word for setting in ("engine=sequential", *settings) for word in ("--set", setting)]
    assert launch.main([*words, "--run-dir", str(run_dir)]) == 0
    return bllpipe.Run(run_dir)


def test_names_are_those_of_the_command_line(tmp_path: Path) -> None:
    by_words = on_the_command_line(tmp_path / "words", *(f"{key}={value}" for key, value in DIGITS.items()))
    by_name = bllpipe.train("resnet18", "digits", settings=DIGITS)
    assert by_name.state_sha256 == by_words.state_sha256
    assert by_name.directory.name == "digits-resnet18-bll" and by_name.directory.parent.name == "runs"


def test_objects_in_their_place_train_the_same_bits(tmp_path: Path) -> None:
    """The digits' own bytes, a function that is built under the run's seed, and a local loss."""
    model, loss = (f"tests.support.networks.api:{name}" for name in ("digit_network", "towards_class"))
    settings = [f"model.name={model}", "method=own", f"objective.function={loss}", "blocks=2", "steps=3"]
    by_words = on_the_command_line(tmp_path / "a", *settings)
    arrays = digits()

    def built_here(in_channels: int, num_classes: int) -> list[nn.Module]:
        return [nn.Flatten(), *network(in_channels * 64, num_classes)]

    by_objects = bllpipe.train(
        built_here,
        ((arrays.train_NCHW, arrays.train_N), (arrays.test_NCHW, arrays.test_N)),
        blocks=2,
        objective=lambda alpha, scores, target, x: towards_class(alpha, scores, target, x),
        settings={
            "steps": 3,
            "data.augment.crop_padding": 1,
            "data.augment.rotation": 10.0,
            "data.mean": [0.3050],
            "data.std": [0.3763],
        },
    )
    assert by_objects.state_sha256 == by_words.state_sha256
    config = load_config(str(by_objects.directory / "config.yaml"))
    assert (config.model.name, config.data.name) == ("given:built_here", "given")
    assert (config.method, config.objective.function) == ("own", "given:_lambda_")


def test_every_engine_of_one_process_gives_the_same_bits_and_learns_in_place() -> None:
    models = {engine: seeded_network() for engine in ("sequential", "threads")}
    runs = [
        bllpipe.train(model, DATA, blocks=[1, 2], engine=engine, epochs=8, settings=SMALL)
        for engine, model in models.items()
    ]
    assert runs[0].state_sha256 == runs[1].state_sha256
    assert runs[0].accuracy > 0.8 and len(runs[0].block_accuracy) == 3
    fresh = runs[1].load(seeded_network())
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, models["sequential"].state_dict()[key])
    assert runs[0].directory != runs[1].directory, "each has a place of its own"


def test_the_process_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    bllpipe.train(network(), DATA, blocks=2, epochs=1, settings=SMALL)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = bllpipe.train(seeded_network(), DATA, blocks=2, epochs=4, settings=SMALL)
    arguments: dict[str, Any] = {"blocks": 2, "epochs": 4, "run_dir": tmp_path / "run"}
    bllpipe.train(seeded_network(), DATA, settings={**SMALL, "stop_at": 5}, **arguments)
    resumed = bllpipe.train(nn.Sequential(*network()), DATA, settings=SMALL, resume="auto", **arguments)
    assert resumed.state_sha256 == whole.state_sha256
    again = bllpipe.train(nn.Sequential(*network()), DATA, settings=SMALL, resume="auto", **arguments)
    assert again.summary == resumed.summary, "nothing was left to do"
    with pytest.raises(bllpipe.ConfigError, match='method: "bll" then, "dgl" now\n.*--accept method'):
        bllpipe.train(network(), DATA, objective="dgl", settings=SMALL, resume="auto", **arguments)


def test_a_signal_ends_the_script_behind_the_checkpoint(tmp_path: Path) -> None:
    steps = []

    def interrupting(alpha: Tensor, scores: Tensor, target: bllpipe.Target, x: Tensor) -> dict[str, Tensor]:
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return towards_class(alpha, scores, target, x)

    with pytest.raises(SystemExit, match="143"):
        bllpipe.train(
            network(), DATA, blocks=2, objective=interrupting, epochs=10_000, run_dir=tmp_path / "run", settings=SMALL
        )
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "preempted"
    assert bllpipe.Run(tmp_path / "run").weights().keys() == nn.Sequential(*network()).state_dict().keys()


def test_the_whole_network_as_a_baseline() -> None:
    run = bllpipe.train(network, DATA, objective="bp", epochs=8, settings=SMALL)
    assert run.summary["engine"] == "single" and run.accuracy > 0.7


def test_tokens_are_trained(tmp_path: Path) -> None:
    """Alpha [B, T, C]: blocks end between layers of a transformer."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(8, 3))
    images, labels = split(96, 0)
    tokens = images.unsqueeze(1) * torch.ones(1, 5, 1)
    data = ((tokens, labels), (tokens[:30], labels[:30]))
    run = bllpipe.train([nn.Linear(6, 8), *layers, pool], data, blocks=3, epochs=2, settings=SMALL)
    assert run.block_accuracy[0] > 0.5 and run.summary["parameters"][-1] > 0


def test_balanced_cuts_leave_the_modules_as_they_are() -> None:
    model = seeded_network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = build_config(model, DATA, TrainArguments(blocks="balanced 2"))
    assert with_balanced_cut(config, (6,), 3).blocks in (["0"], ["1"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_settings_override_a_file_and_arguments_both(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("epochs: 7\nengine: threads\noptimizer: {lr: 0.3}\nmethod: dgl\n")
    said = TrainArguments(config=tmp_path / "a.yaml", settings={"epochs": 8, "optimizer.betas": (0.5, 0.9)}, epochs=9)
    config = build_config(None, None, said)
    assert (config.epochs, config.engine, config.optimizer.lr, config.method) == (9, "threads", 0.3, "dgl")
    assert config.optimizer.betas == [0.5, 0.9] and config.model.name == "resnet18" and config.data.name == "digits"
    assert build_config(None, None, TrainArguments(), under_torchrun=True).engine == "ranks"
    assert "given" not in json.dumps(to_mapping(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.augment.flip": True}, "data.augment would change nothing, as float images are taken as they are"),
        ({"data.mean": [0.5], "data.std": [1.0]}, "data.mean and data.std would change nothing"),
        ({"optimizer.rate": 1}, "unknown key 'optimizer.rate'"),
        ({"optimizer": 3}, "unknown key 'optimizer'"),
        ({"model.args.hidden.x": 1, "model.args": {"hidden": 3}, "optimizer.lr": "fast"}, "optimizer.lr is 'fast'"),
        ({"data.batch_size": 97}, "data.batch_size is 97, but given has only 96 training images"),
        (
            {"method": "own"},
            "method own expected a user-defined loss, got none; use --set objective.function=package.module",
        ),
        (
            {"engine": "ranks"},
            r"engine ranks needs 3 processes .* use torchrun --nproc_per_node=3 .* or engine='",
        ),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.train(network(), DATA, blocks=2, settings=settings)


def test_a_file_that_has_a_value_where_settings_have_keys(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optimizer: 3\n")
    with pytest.raises(bllpipe.ConfigError, match="settings: optimizer is 3 already; expected keys under it"):
        build_config(None, None, TrainArguments(config=tmp_path / "a.yaml", settings={"optimizer.lr": 1.0}))


class Two(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (Two(8, 8), "unit 1: expected one tensor as its output, .*, got a tuple"),
        (
            nn.Unflatten(1, (2, 2, 2, 1)),
            r"unit 1: expected floating-point .*, got float32 \[1, 2, 2, 2, 1\] for a batch",
        ),
        (nn.Flatten(0), r"unit 1: .* the batch first, got float32 \[8\] for a batch of 1"),
        (nn.Bilinear(8, 8, 8), r"block 0 \(1 last\) cannot take \[6\] from what is before it: .*missing 1 required"),
        (
            nn.Sequential(nn.Linear(7, 8)),
            r"block 0 \(1 last\) cannot take \[6\] from what is before it: .*cut some",
        ),
    ],
)
def test_cuts_that_break_the_network(second: nn.Module, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.train([nn.Linear(6, 8), second, nn.Linear(8, 3)], DATA, blocks=[2], settings=SMALL)


def test_a_function_that_makes_lazy_layers() -> None:
    def lazy(in_channels: int, num_classes: int) -> list[nn.Module]:
        return [nn.Linear(in_channels, 8), nn.LazyLinear(num_classes)]

    with pytest.raises(
        bllpipe.ConfigError, match="module 1 of the model: expected parameters with a shape, got a lazy layer"
    ):
        bllpipe.train(lazy, DATA, blocks=2, settings=SMALL)


def test_a_network_that_draws_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = network()
    modules = [nn.Sequential(first, nn.Dropout(0.5)), *rest]
    bllpipe.train(modules, DATA, blocks=2, epochs=1, settings={**SMALL, "engine": "threads"})
    assert "bllpipe: 0 of the model draws random numbers in training" in capsys.readouterr().err


def test_other_programs_are_told_where_the_objects_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bllpipe import cli

    run = bllpipe.train(network(), DATA, blocks=2, epochs=1, settings=SMALL, run_dir=tmp_path / "run")
    assert cli.main(["eval", str(run.directory)]) == 2
    assert "data.name is given: what a script passed to bllpipe.train as an object" in capsys.readouterr().err
    assert launch.main(["--config", str(run.directory / "config.yaml")]) == 2
    assert "data.name is given" in capsys.readouterr().err


def test_a_run_without_results(tmp_path: Path) -> None:
    with pytest.raises(bllpipe.CheckpointError, match="holds no checkpoint; train with this run_dir first"):
        bllpipe.Run(tmp_path).weights()
    with pytest.raises(bllpipe.CheckpointError, match="summary.json"):
        _ = bllpipe.Run(tmp_path).accuracy
    assert repr(bllpipe.Run("a", 2)) == "Run('a', rank=2)"


def test_weights_of_another_network() -> None:
    run = bllpipe.train(network(), DATA, blocks=2, epochs=1, settings=SMALL)
    with pytest.raises(bllpipe.CheckpointError, match="does not hold exactly the weights of the network: it holds"):
        run.load(network(hidden=9))


def test_ranks_that_were_given_something_else() -> None:
    """Every rank runs the script, and without a seed each draws another network, or splits its data otherwise."""
    store: Any = dist.HashStore()
    config = build_config(seeded_network(), DATA, TrainArguments())
    introduce(config, store)
    compare_with_first(build_config(seeded_network(), DATA, TrainArguments()), store)
    (images, labels), test = DATA
    other = build_config(nn.Sequential(*network()), ((images, labels.flip(0)), test), TrainArguments())
    message = "rank 0 was given another model and other data than this rank: .* begin it with torch.manual_seed"
    with pytest.raises(bllpipe.ConfigError, match=message):
        compare_with_first(other, store)


def test_under_torchrun_one_rank_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}
    for key, value in {**place, "MASTER_ADDR": "host", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit, match="2"):
        bllpipe.train(network(), DATA, blocks=2, settings=SMALL)
    assert "2 blocks and 1 feedback rank need 3 ranks, but torchrun started 4" in capsys.readouterr().err
    for key, value in {"RUN_ID": "job", "MAX_RESTARTS": "1", "USE_AGENT_STORE": "False"}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{key}", value)
    for run_dir, resume in ((None, "never"), ("run", "never"), (None, "auto")):
        with pytest.raises(SystemExit, match="2"):
            bllpipe.train(network(), DATA, blocks=2, settings=SMALL, run_dir=run_dir, resume=resume)
        assert "in a script bllpipe.train(..., run_dir=DIR, resume='auto')" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        bllpipe.train(network(), DATA, blocks=2, settings=SMALL, run_dir="run", resume="auto")
    assert "2 blocks and 1 feedback rank need 3 ranks, but torchrun started 4" in capsys.readouterr().err
