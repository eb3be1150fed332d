"""The local heads in a file of their own: with the network again the ensemble that the run tested, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bllpipe import cli
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.tools.analysis.evaluation import exit_scores, predict
from bllpipe.tools.analysis.export import export_heads, export_run
from bllpipe.tools.analysis.finished_run import FinishedRun, evaluation_batches, load_blocks, open_run
from bllpipe.tools.analysis.network_file import Ensemble, load_ensemble, load_network, read_network
from tests.support import jobs
from tests.support.memory import little_memory


def finished(folder: Path, *settings: str) -> FinishedRun:
    jobs.in_this_process(folder / "run", "engine=sequential", *jobs.RESNET, "steps=12", "optimizer.lr=0.02", *settings)
    return open_run(folder / "run", print)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished(tmp_path_factory.mktemp("digits"), "evaluate.ensemble=true", "objective.head=mlp")


@pytest.fixture
def files(run: FinishedRun, tmp_path: Path) -> tuple[Path, Path]:
    """The network and its heads."""
    exported(run, tmp_path, check=False)
    return tmp_path / "network", tmp_path / "heads"


def exported(run: FinishedRun, folder: Path, target: str = "torchvision", check: bool = True) -> str:
    """What the export says."""
    said: list[str] = []
    export_run(run, target, folder / "network", check, said.append, folder / "heads")
    return "\n".join(said)


@torch.no_grad()
def means(run: FinishedRun, x_BCHW: Tensor) -> Tensor:
    """The mean probabilities of all exits of the checkpoint's blocks."""
    scores_EBK = torch.stack(exit_scores(run, load_blocks(run), x_BCHW, torch.float32))
    return scores_EBK.softmax(dim=2).mean(dim=0)


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "narrow", "gap", "strided", "auglocal"])
def test_every_kind_of_head_is_built_again(head: str, tmp_path: Path) -> None:
    run = finished(tmp_path, f"objective.head={head}", "objective.head_features=64", "objective.head_layers=2")
    assert "checked: all exits together give all 355 test images the class" in exported(run, tmp_path)
    x_BCHW, _ = next(evaluation_batches(run))
    found_BK = load_ensemble(tmp_path / "network", tmp_path / "heads")(x_BCHW)
    torch.testing.assert_close(found_BK, means(run, x_BCHW))
    torch.testing.assert_close(found_BK.sum(dim=1), torch.ones(len(x_BCHW)))


def test_what_a_script_has_switched_on_does_not_reach_the_network(files: tuple[Path, Path]) -> None:
    """Doubles were "not exactly the weights", and in inference mode no loss could train what was loaded."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            networks = load_network(files[0]), load_ensemble(*files)
    finally:
        torch.set_default_dtype(torch.float32)
    before = torch.get_rng_state()
    for network, other in zip(networks, (load_network(files[0]), load_ensemble(*files)), strict=True):
        assert not any(parameter.is_inference() for parameter in network.parameters())
        for name, value in other.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        assert all(value.is_meta for value in load_ensemble(*files).state_dict().values())


def test_it_has_the_accuracy_that_the_run_has_measured(run: FinishedRun, tmp_path: Path) -> None:
    said = exported(run, tmp_path)
    network = load_ensemble(tmp_path / "network", tmp_path / "heads")
    with torch.no_grad():
        hits = sum(int((network(x).argmax(1) == label_B).sum()) for x, label_B in evaluation_batches(run))
    recorded = jobs.summary(run.path)["ensemble_accuracy"]
    assert hits / 355 == recorded != jobs.summary(run.path)["test_accuracy"]
    metadata, weights = read_network(tmp_path / "heads")
    assert float(metadata["ensemble_accuracy"]) == recorded
    assert f"wrote {tmp_path / 'heads'}: 12 tensors of 3 local heads for bllpipe.load_ens" in said
    assert said.endswith(f"; test accuracy {100 * recorded:.2f} %")
    names = {name.removeprefix("heads.") for name in run.checkpoint.tensors("heads.")}
    assert weights.keys() == names, "those of the checkpoint"


def test_the_command(run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, heads = tmp_path / "network", tmp_path / "heads"
    assert cli.main(["export", str(run.path), str(network), "--heads", str(heads)]) == 0
    assert f"wrote {heads}: 12 tensors" in capsys.readouterr().out
    assert load_ensemble(network, heads).training is False
    assert cli.main(["export", str(run.path), str(network), "--heads", f"{tmp_path}/./network"]) == 2
    assert "is the file of the network, too; name another one for the heads" in capsys.readouterr().err


def test_a_network_of_ones_own_with_bfloat16_in_between(tmp_path: Path) -> None:
    own = ("model.name=tests.unit.tools.analysis.test_export:small_network", "model.args.hidden=12", "blocks=3")
    run = finished(tmp_path, *own, "precision.wire=bf16", "precision.compute=bf16")
    assert "checked: all exits together" in exported(run, tmp_path, "bllpipe")
    ensemble = load_ensemble(tmp_path / "network", tmp_path / "heads", {"hidden": 12})
    assert [type(head).__name__ for head in ensemble.heads] == ["Sequential", "Sequential", "Identity"]


def test_under_autocast_activations_go_in_float32_from_block_to_block() -> None:
    torch.manual_seed(0)
    first, second, head, x_BC = nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 5), torch.randn(16, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        alpha_BC = first(x_BC)
        assert alpha_BC.dtype == torch.bfloat16, "a network that could not tell"
        own_BK, last_BK = head(alpha_BC).float().softmax(dim=1), second(alpha_BC.float()).softmax(dim=1)
        assert torch.equal(Ensemble([first, second], [head, nn.Identity()])(x_BC), (own_BK + last_BK) / 2)


@pytest.mark.parametrize("settings", [("blocks=1",), ("method=bp", "engine=single")])
def test_a_run_without_local_heads(settings: tuple[str, ...], tmp_path: Path) -> None:
    run = finished(tmp_path, *settings)
    with pytest.raises(ConfigError, match=r"learned in one block, which has no local head; leave out --heads"):
        exported(run, tmp_path)
    assert not (tmp_path / "network").exists()


def test_an_ensemble_that_gives_other_classes_is_no_file(run: FinishedRun, files: tuple[Path, Path]) -> None:
    network, heads = files
    heads.unlink()
    expected = predict(run, load_blocks(run), torch.float32)
    other = replace(expected, ensemble_class_EN=(expected.ensemble_class_EN + 1) % 10)
    with pytest.raises(CheckpointError, match=r"exported ensemble puts 355 of 355 test images into another class than"):
        export_heads(run, network, heads, other, print)
    assert not heads.exists()


def test_heads_of_another_network_are_refused(files: tuple[Path, Path]) -> None:
    network, heads = files
    metadata, weights = read_network(network)
    kept = {name: value.clone() for name, value in weights.items()}
    kept["fc.bias"] += 1e-3
    network.unlink()
    save_file(kept, network, metadata)
    with pytest.raises(
        CheckpointError, match=r"heads does not hold the heads of the network in .*; expected two files"
    ):
        load_ensemble(network, heads)
    with pytest.raises(CheckpointError, match=r"network does not hold the heads of the network in"):
        load_ensemble(network, network)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"heads": "{}"}, "heads describe no heads"),
        ({"heads": "[" * 99_999}, "heads describe no heads"),
        ({"heads": '{"layer1.1": [4, 8, "8"]}'}, "heads describe no heads"),
        ({"heads": '{"layer1.1": [4, 8, 8, 8]}'}, "heads describe no heads .*shapes"),
        ({"heads": '{"layer1.1": [1000001, 8, 8]}'}, "heads describe no heads .*shapes"),
        ({"objective": '{"head": "os:system"}'}, "heads describe no heads .*objective.head is 'os:system'"),
        ({"objective": '{"head_layers": 1000000, "head": "conv"}'}, "heads describe no heads .*1000000 layers"),
        ({"objective": "3"}, "heads describe no heads"),
        (
            {"heads": '{"layer1.1": [4, 8, 8]}'},
            r"heads does not hold exactly the weights .* also holds layer2.1.2.bias",
        ),
        ({"heads": '{"layer1.1": [999999, 999999, 999999]}'}, "heads does not hold exactly the weights of the network"),
        ({"objective": '{"head": "mlp", "head_hidden": 999999999}'}, "heads does not hold exactly the weights"),
    ],
)
def test_metadata_that_no_heads_have(files: tuple[Path, Path], metadata: dict[str, str], message: str) -> None:
    network, heads = files
    load_ensemble(network, heads)  # what torch needs for networks without memory is there now
    changed(heads, metadata)
    with little_memory(), pytest.raises(CheckpointError, match=message) as caught:
        load_ensemble(network, heads)
    assert len(str(caught.value)) < 1500


def test_heads_of_units_that_are_not_there(files: tuple[Path, Path]) -> None:
    network, heads = files
    shapes = json.loads(read_network(heads)[0]["heads"])
    renamed = {f"{unit}x": shape for unit, shape in shapes.items()}
    weights = {name.replace(".1.", ".1x.", 1): value for name, value in read_network(heads)[1].items()}
    changed(heads, {"heads": json.dumps(renamed)}, weights)
    with pytest.raises(
        CheckpointError, match=r"heads of units that the network has not: .*cannot cut after 'layer1.1x'"
    ):
        load_ensemble(network, heads)


def changed(file: Path, metadata: dict[str, str], weights: dict[str, Any] | None = None) -> None:
    """Writes the file again with other metadata, and other weights if there are any."""
    found, own = read_network(file)
    kept = {name: value.clone() for name, value in (weights or own).items()}
    file.unlink()
    save_file(kept, file, {**found, **metadata})
