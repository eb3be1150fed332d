"""Combinations that cannot work are refused with what to type, and their nearest neighbours are accepted."""

import re
from pathlib import Path

import pytest

from bllpipe.config import Config, load_config, parse_config
from bllpipe.errors import ConfigError

OWN_MODEL = "model.name=package.module:function"
KINDS = ["alpha", "target", "stats"]


def refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_config(None, overrides)


def test_a_whole_network_does_not_learn_in_blocks() -> None:
    refused(
        ["engine=single"],
        "engine single holds the whole network, but method bll learns in blocks; use --set engine=sequential, or one "
        "of --set method=bp|fa|usf|dfa",
    )


@pytest.mark.parametrize("engine", ["ddp", "1f1b", "zbv", "deepspeed"])
@pytest.mark.parametrize(("method", "other"), [("fa", "single"), ("dfa", "single"), ("bll", "ranks"), ("dgl", "ranks")])
def test_synchronous_engines_are_for_bp(engine: str, method: str, other: str) -> None:
    refused(
        [f"engine={engine}", f"method={method}"],
        f"engine {engine} is for method bp only, but method is {method}; use --set engine={other}, or --set method=bp",
    )


@pytest.mark.parametrize("engine", ["ranks", "threads", "sequential", "streams"])
def test_bp_has_no_blocks(engine: str) -> None:
    refused(
        [f"engine={engine}", "method=bp"],
        f"method bp learns end to end, but engine {engine} trains blocks; use --set engine=single",
    )


@pytest.mark.parametrize("engine", ["interleaved", "zbv", "dualpipev"])
def test_an_odd_number_of_stages_two_a_rank(engine: str) -> None:
    refused(
        ["method=bp", f"engine={engine}", "blocks=3"],
        f"engine {engine} has two stages a rank, but blocks gives 3; use an even number",
    )


@pytest.mark.parametrize("engine", ["1f1b", "dualpipev"])
def test_fewer_microbatches_than_stages(engine: str) -> None:
    refused(
        ["method=bp", f"engine={engine}", "blocks=4", "pipeline.microbatches=2"],
        f"engine {engine} with 4 stages needs as many microbatches, but pipeline.microbatches is 2; "
        f"use --set pipeline.microbatches=4 or more",
    )


def test_interleaved_microbatches_in_unequal_rounds() -> None:
    refused(
        ["method=bp", "engine=interleaved", "blocks=6", "pipeline.microbatches=7"],
        "engine interleaved on 3 ranks cannot divide 7 microbatches into equal rounds; "
        "use --set pipeline.microbatches=6",
    )


@pytest.mark.parametrize(
    ("overrides", "parts", "size"),
    [
        (["engine=gpipe"], "4 microbatches", 68),
        (["engine=deepspeed"], "4 microbatches", 68),
        (["engine=ddp", "blocks=3"], "3 replicas", 66),
    ],
)
def test_a_batch_that_cannot_be_shared(overrides: list[str], parts: str, size: int) -> None:
    refused(
        ["method=bp", "data.batch_size=65", *overrides],
        f"data.batch_size is 65, which {parts} cannot divide equally; use --set data.batch_size={size}",
    )


def test_replicas_are_not_cut() -> None:
    refused(
        ["method=bp", "engine=ddp", "blocks=[2, 4]"],
        "engine ddp has no cuts: expected its number of replicas as blocks, got [2, 4]; use --set blocks=3",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nccl_for_an_engine_that_chooses_for_itself(kind: str) -> None:
    refused(
        ["method=bp", "engine=1f1b", f"backend.{kind}=nccl"],
        f"backend.{kind} is nccl, but engine 1f1b always uses nccl between GPUs; use auto",
    )


@pytest.mark.parametrize("blocks", [0, -1])
def test_fewer_than_one_block(blocks: int) -> None:
    refused([f"blocks={blocks}"], f"blocks is {blocks}; expected at least 1")


@pytest.mark.parametrize("blocks", ["[]", "[4, 4]", "[4, 2, 4]", "['layer2.1', 'layer2.1']"])
def test_cuts_at_one_place(blocks: str) -> None:
    refused([f"blocks={blocks}"], f"blocks is {blocks}; expected cuts at different places, for example [4, 8, 12]")


@pytest.mark.parametrize("blocks", ["[0]", "[-1, 4]", "[4, 2]", "[4, 'layer3.0', 2]"])
def test_cuts_that_do_not_grow(blocks: str) -> None:
    refused(
        [f"blocks={blocks}"],
        f"blocks is {blocks}; expected numbers of units that grow from 1, for example [4, 8, 12]",
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet19", "; did you mean 'resnet18'?"),
        ("resnet5", "; did you mean 'resnet50'?"),
        ("transformer", ""),
    ],
)
def test_unknown_model(name: str, hint: str) -> None:
    refused(
        [f"model.name={name}"],
        f"model.name is '{name}'; expected one of resnet18, resnet34, resnet50, resnet101, resnet152, "
        f"torchvision:NAME, timm:NAME or package.module:function{hint}",
    )


def test_arguments_for_a_model_that_takes_none() -> None:
    refused(
        ["model.name=resnet34", "model.args.depth=3"],
        "model.args are for torchvision:NAME, timm:NAME and package.module:function; resnet34 has model.width and "
        "model.stem",
    )


@pytest.mark.parametrize("name", ["imagefolder", "npz"])
def test_data_that_need_a_path(name: str) -> None:
    refused(
        [f"data.name={name}"],
        f"data.name {name} expected data.path, got null; use --set data.path=PATH",
    )


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_data_that_read_no_files(name: str, tmp_path: Path) -> None:
    refused(
        [f"data.name={name}", f"data.path={tmp_path}"],
        f"data.path is '{tmp_path}', but {name} reads no files; leave it out",
    )


@pytest.mark.parametrize("momentum", ["0", "0.0"])
def test_nesterov_without_momentum(momentum: str) -> None:
    refused(
        [f"optimizer.momentum={momentum}"],
        "optimizer.nesterov needs momentum; use --set optimizer.nesterov=false",
    )


@pytest.mark.parametrize("betas", ["[]", "[0.9]", "[0.9, 0.99, 0.999]", "[0.9, 1.0]", "[-0.1, 0.9]"])
def test_impossible_betas(betas: str) -> None:
    refused([f"optimizer.betas={betas}"], f"optimizer.betas is {betas}; expected two numbers from 0 to below 1")


@pytest.mark.parametrize("milestones", ["[0.0]", "[1.0]", "[0.5, 1.5]", "[-0.5]", "[0.6, 0.3]", "[0.3, 0.3]"])
def test_impossible_milestones(milestones: str) -> None:
    refused(
        [f"schedule.milestones={milestones}"],
        f"schedule.milestones is {milestones}; expected growing fractions between 0 and 1",
    )


def test_closed_form_of_several_layers() -> None:
    refused(
        ["feedback.layers=2"],
        "feedback.layers is 2, but closed_form solves a single linear layer; use --set feedback.update=sgd",
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["threads", "sequential", "streams"])
def test_nccl_in_one_process(kind: str, engine: str) -> None:
    refused(
        [f"backend.{kind}=nccl", f"engine={engine}"],
        f"backend.{kind} is nccl, but engine {engine} has one process; use auto",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nccl_on_a_cpu(kind: str) -> None:
    refused(
        [f"backend.{kind}=nccl", "device=cpu"],
        f"backend.{kind} is nccl, but device is cpu; use --set backend.{kind}=gloo",
    )


@pytest.mark.parametrize(
    "overrides",
    [
        *(["method=bp", f"engine={engine}"] for engine in ("single", "ddp", "gpipe", "1f1b", "interleaved", "zbv")),
        ["method=bp", "engine=dualpipev"],
        ["method=bp", "engine=deepspeed", "pipeline.microbatches=1"],
        ["method=bp", "engine=gpipe", "blocks=[1, 4]", "pipeline.microbatches=1"],
        ["method=bp", "engine=interleaved", "blocks=6", "pipeline.microbatches=2"],
        ["method=bp", "engine=zbv", "pipeline.microbatches=1"],
        ["steps=5", "stop_at=5"],
        ["stop_at=5"],
        ["blocks=1"],
        ["blocks=[1]"],
        ["blocks=[layer1.1, layer3.0]"],
        ["blocks=[2, layer3.0, 6]"],
        ["model.name=resnet50", "blocks=[4, 8, 12]"],
        [OWN_MODEL],
        [OWN_MODEL, "model.args.depth=3"],
        ["optimizer.momentum=0", "optimizer.nesterov=false"],
        ["optimizer.momentum=0", "optimizer.name=adamw"],
        ["optimizer.betas=[0, 0.999]"],
        ["schedule.milestones=[]"],
        ["schedule.milestones=[0.001, 0.999]"],
        ["feedback.layers=2", "feedback.update=sgd"],
        ["feedback.layers=2", "feedback.update=fixed"],
        *([f"backend.{kind}=nccl", "device=cuda"] for kind in KINDS),
        *([f"backend.{kind}=gloo", "device=cpu"] for kind in KINDS),
    ],
)
def test_nearest_neighbours_that_work(overrides: list[str]) -> None:
    assert load_config(None, overrides) != Config()


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", ".", "..", "a/b", "x" * 101, "\ud800"])
def test_a_name_that_leads_out_of_the_folder_of_runs(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^name is '.*; expected the name of a folder in runs/, .* --run-dir$"):
        parse_config({"name": name})


@pytest.mark.parametrize("name", ["a:b/../../c", "a:", ":b", "a/b:c", "a:b c", "a:b:c"])
def test_a_model_that_cannot_be_a_function(name: str) -> None:
    with pytest.raises(ConfigError, match="^model.name is '.*'; expected one of .* or package.module:function"):
        parse_config({"model": {"name": name}})


@pytest.mark.parametrize("settings", [["engine=threads"], ["engine=ddp", "method=bp"]], ids=" ".join)
def test_a_step_is_captured_where_one_thread_makes_it(settings: list[str]) -> None:
    engine = settings[0].partition("=")[2]
    refused(
        [*settings, "gpu.capture=true"],
        f"gpu.capture is for engines ranks, sequential, streams, single, but engine is {engine}; "
        f"use --set gpu.capture=false",
    )


def test_there_are_not_streams_enough_for_many_captured_blocks() -> None:
    refused(
        ["engine=streams", "gpu.capture=true", "blocks=11"],
        "engine streams captures with three streams a block, of which torch has 32 a GPU, but blocks gives 11; "
        "use at most 10, or --set gpu.capture=false",
    )


def test_ports_behind_the_last_one() -> None:
    refused(
        ["metrics.port=65532"],
        "metrics.port is 65532, but 5 ranks need ports up to 65536 and the last one is 65535; "
        "use --set metrics.port=65531 or less",
    )
    assert load_config(None, ["metrics.port=65531"]).metrics.port == 65531
    assert load_config(None, ["metrics.port=65532", "blocks=3"]).metrics.port == 65532


def test_nothing_is_to_be_found_without_a_port() -> None:
    refused(
        ["metrics.discovery=runs"],
        "metrics.discovery is 'runs', but without a port there is nothing to discover; "
        "use --set metrics.port=9500, or leave it out",
    )
    assert load_config(None, ["metrics.discovery=runs", "metrics.port=0"]).metrics.discovery == "runs"


@pytest.mark.parametrize("method", ["bp", "fa", "dfa"])
def test_a_whole_network_has_no_heads_to_test_together(method: str) -> None:
    refused(
        ["engine=single", f"method={method}", "evaluate.ensemble=true"],
        f"evaluate.ensemble is true, but method {method} trains the whole network, which has no local heads; "
        f"use --set evaluate.ensemble=false, or a local method such as --set method=bll",
    )
    assert load_config(None, ["evaluate.ensemble=true", "method=dgl"]).evaluate.ensemble
    assert not load_config(None).evaluate.ensemble


@pytest.mark.parametrize("method", ["bp", "usf"])
@pytest.mark.parametrize("key", ["objective.keep_weight", "objective.contrast_weight"])
def test_a_whole_network_has_no_local_loss_to_add_to(method: str, key: str) -> None:
    """They were accepted, and nothing was added to the loss."""
    refused(
        ["engine=single", f"method={method}", f"{key}=0.5"],
        f"{key} is 0.5, but method {method} trains the whole network, which has no local heads; use --set {key}=0, or "
        f"a local method such as --set method=bll",
    )
    assert load_config(None, [f"{key}=0.5", "method=dgl"]).objective
