"""File and overrides make one Config, its YAML makes it again, and a mistyped key finds the right one."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bllpipe
from bllpipe.config import Config, load_config, parse_config, to_mapping, to_yaml
from bllpipe.config.loader import check_keys, known_keys
from bllpipe.config.schema import DataConfig, ModelConfig, OptimizerConfig
from bllpipe.errors import ConfigError

OWN_MODEL = "model.name=package.module:function"
SECTIONS = sorted({key.rpartition(".")[0] for key in known_keys()} - {""})


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def value_at(config: Config, key: str) -> Any:
    value: Any = to_mapping(config)
    for name in key.split("."):
        value = value[name]
    return value


def test_no_file_means_the_defaults() -> None:
    assert load_config(None) == Config()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "model: {}\ndata:\n  augment: {}\n"])
def test_empty_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == Config()


def test_file_changes_only_what_it_names(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "seed: 3\noptimizer:\n  lr: 1e-3\n"))
    assert config == Config(seed=3, optimizer=OptimizerConfig(lr=0.001))


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("seed=3", "seed", 3),
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        (" optimizer.lr = 0.5 ", "optimizer.lr", 0.5),
        ("optimizer.clip_norm=0.5", "optimizer.clip_norm", 0.5),
        ("checkpoint.every_steps=null", "checkpoint.every_steps", None),
        ("checkpoint.every_steps=", "checkpoint.every_steps", None),
        ("data.augment.flip=true", "data.augment.flip", True),
        ("schedule.milestones=[0.25, 0.5]", "schedule.milestones", [0.25, 0.5]),
        ("blocks=[2, layer3.0]", "blocks", [2, "layer3.0"]),
        ("name=on", "name", "on"),
        ("name=a=b", "name", "a=b"),
        ("name='1e-3'", "name", "1e-3"),
    ],
)
def test_override_is_read_as_yaml(override: str, key: str, expected: Any) -> None:
    found = value_at(load_config(None, [override]), key)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("overrides", "arguments"),
    [
        (["model.args.depth=3"], {"depth": 3}),
        (["model.args.depth=3", "model.args.widths=[8, 16]"], {"depth": 3, "widths": [8, 16]}),
        (["model.args.block.kernel=5", "model.args.block.bias=false"], {"block": {"kernel": 5, "bias": False}}),
        (["model.args={depth: 3}", "model.args.depth=4"], {"depth": 4}),
    ],
)
def test_override_of_model_arguments(overrides: list[str], arguments: dict[str, Any]) -> None:
    config = load_config(None, [OWN_MODEL, *overrides])
    assert config.model == ModelConfig(name="package.module:function", args=arguments)


def test_override_wins_over_the_file_and_leaves_its_neighbours(tmp_path: Path) -> None:
    path = written(tmp_path, "data:\n  batch_size: 8\n  workers: 2\n")
    assert load_config(path, ["data.batch_size=16"]).data == DataConfig(batch_size=16, workers=2)


def test_last_override_wins() -> None:
    assert load_config(None, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["optimizer.lr", "", "=0.1", " =0.1", "optimizer.lr 0.1", "model.args.=1"])
def test_override_without_key_or_equals_sign(override: str) -> None:
    message = f"--set {override}: expected key.path=value, for example --set optimizer.lr=0.1"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("blocks=[4, 8", "--set blocks=[4, 8, line 1, column 6: expected ',' or ']'"),
        ("blocks=*all", "--set blocks=*all, line 1, column 1: anchors and aliases are not allowed"),
        ("model.args={a: 1, a: 2}", "--set model.args={a: 1, a: 2}, line 1, column 8: duplicate key 'a'"),
    ],
)
def test_broken_yaml_in_an_override_names_the_override(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ("optimizer: 3", "optimizer.lr=1", "--set optimizer.lr=1: optimizer is 3 already"),
        ("optimizer:", "optimizer.lr=1", "--set optimizer.lr=1: optimizer is None already"),
        ("data: {augment: [a]}", "data.augment.flip=1", "--set data.augment.flip=1: augment is ['a'] already"),
        ("model: {args: {a: 1}}", "model.args.a.b=2", "--set model.args.a.b=2: a is 1 already"),
    ],
)
def test_override_below_something_that_has_no_keys(tmp_path: Path, text: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}; expected keys under it$"):
        load_config(written(tmp_path, text), [override])


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optimizer.learning_rate", "did you mean 'optimizer.lr'?"),
        ("feedback.learning_rate", "did you mean 'feedback.lr'?"),
        ("optimizer.momentom", "did you mean 'optimizer.momentum'?"),
        ("batch_size", "did you mean 'data.batch_size'?"),
        ("model.batch_size", "did you mean 'data.batch_size'?"),
        ("data.batchsize", "did you mean 'data.batch_size'?"),
        ("lr", "did you mean 'optimizer.lr' or 'feedback.lr'?"),
        ("epoch", "did you mean 'epochs'?"),
        ("zzz", "see configs/digits.yaml"),
        ("optimizer.zzz", "did you mean 'optimizer.lr' or 'optimizer.name'?"),
    ],
)
def test_unknown_key_finds_the_right_one(key: str, hint: str) -> None:
    *parents, leaf = key.split(".")
    mapping: dict[str, Any] = {leaf: 1}
    for name in reversed(parents):
        mapping = {name: mapping}
    message = f"^{re.escape(f'unknown key {key!r}; {hint}')}$"
    with pytest.raises(ConfigError, match=message):
        parse_config(mapping)
    with pytest.raises(ConfigError, match=message):
        load_config(None, [f"{key}=1"])


@pytest.mark.parametrize("section", SECTIONS)
def test_override_of_a_whole_section_lists_its_keys(section: str) -> None:
    with pytest.raises(ConfigError, match=f"^unknown key '{section}'; did you mean '{section}\\.\\w+"):
        load_config(None, [f"{section}=1"])


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("value", [3, None, "text", ["lr"]])
def test_section_given_something_without_keys(section: str, value: Any) -> None:
    parent, _, leaf = section.rpartition(".")
    mapping = {parent: {leaf: value}} if parent else {leaf: value}
    found = re.escape(repr(value))
    message = f"^{section} is {found}; expected keys under it, such as {section}\\.\\w+"
    with pytest.raises(ConfigError, match=message):
        parse_config(mapping)


@pytest.mark.parametrize("key", [1, None, True])
def test_key_that_is_no_text(key: Any) -> None:
    with pytest.raises(ConfigError, match=f"^unknown key '{key}'; "):
        parse_config({key: 1})


@pytest.mark.parametrize("key", sorted(set(known_keys()) - {"model.args"}))
def test_no_key_takes_keys_and_values(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} is {{'a': 1}} \(keys and values\); expected "):
        load_config(None, [f"{key}={{a: 1}}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed is -1; expected at least 0"),
        ("epochs=0", "epochs is 0; expected at least 1"),
        ("steps=0", "steps is 0; expected at least 1"),
        ("data.synthetic_classes=1", "data.synthetic_classes is 1; expected at least 2"),
        ("data.augment.rotation=181", "data.augment.rotation is 181; expected at most 180"),
        ("optimizer.momentum=1.5", "optimizer.momentum is 1.5; expected at most 1"),
        ("backend.timeout_seconds=0", "backend.timeout_seconds is 0; expected at least 0.1"),
        ("optimizer.lr=.nan", "optimizer.lr is nan "),
        ("optimizer.lr=" + "9" * 400, "optimizer.lr is 999"),
        ("seed=true", "seed is True (true or false); expected a whole number"),
        ("data.augment.flip=on", "data.augment.flip is 'on' (text); expected true or false"),
        (
            "engine=thread",
            "engine is 'thread'; expected one of ranks, threads, sequential, streams, single, ddp, gpipe, 1f1b, "
            "interleaved, zbv, dualpipev, deepspeed; did you mean 'threads'?",
        ),
    ],
)
def test_value_that_the_schema_refuses(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        load_config(None, [override])


@pytest.mark.parametrize("key", known_keys())
def test_every_known_key_can_be_overridden_with_its_default(key: str) -> None:
    default = value_at(Config(), key)
    text = "null" if default is None else str(default).lower()
    assert load_config(None, [f"{key}={text}"]) == Config()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=7", "epochs=3", "steps=100", "stop_at=50", "device=cpu", "engine=threads"],
        ["optimizer.name=adamw", "optimizer.lr=1e-5", "optimizer.betas=[0, 0.5]", "optimizer.clip_norm=1e+20"],
        ["schedule.name=multistep", "schedule.milestones=[]", "schedule.gamma=1e-7"],
        ["model.name=resnet50", "blocks=[2, 4, layer3.0]", "checkpoint.every_steps=null"],
        ["data.mean=[0.5]", "data.std=[0.25]", "data.augment.flip=true", "data.augment.rotation=0"],
        [OWN_MODEL, "blocks=[a, b]", "model.args.a={b: [1, 0.5, null, {c: 'on'}]}", "model.args.d=-.inf"],
        *([f"name={name}"] for name in ("on", "'010'", "'null'", "'~'", "'1.5'", "''", "' a '", '"é\\n#: x"', "a=b")),
    ],
)
def test_yaml_of_a_config_makes_an_equal_one(tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(None, overrides)
    assert load_config(written(tmp_path, to_yaml(config))) == config
    assert parse_config(to_mapping(config)) == config


def test_config_is_independent_of_its_mapping() -> None:
    config = load_config(None, [OWN_MODEL, "model.args.depth=3"])
    to_mapping(config)["model"]["args"]["depth"] = 4
    assert config.model.args == {"depth": 3}
    assert Config().model.args == {}


def test_error_of_the_checks_reaches_the_reader() -> None:
    with pytest.raises(ConfigError, match="stop_at is 9, but the run has only 5 steps"):
        load_config(None, ["steps=5", "stop_at=9"])


@pytest.mark.parametrize(("blocks", "num_blocks"), [("1", 1), ("8", 8), ("[2]", 2), ("[2, 4, 6]", 4)])
def test_number_of_blocks(blocks: str, num_blocks: int) -> None:
    assert load_config(None, [f"blocks={blocks}"]).num_blocks == num_blocks


def test_config_and_topology_need_no_torch() -> None:
    program = "import sys, bllpipe.config, bllpipe.topology; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=Path(bllpipe.__file__).parents[1], check=True, timeout=120)


@pytest.mark.parametrize(
    "name", ["seed", "optimizer.lr", "optimizer", "data.augment", "model.args.depth", "model.args"]
)
def test_keys_and_sections_can_be_named(name: str) -> None:
    check_keys(["blocks", name])


@pytest.mark.parametrize(
    ("name", "words"),
    [("sed", "'seed'"), ("optim", "'optimizer"), ("data.augmnt", "'data.augment"), ("", "unknown key ''")],
)
def test_other_names_are_refused_with_a_suggestion(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_keys(["blocks", name])


def test_an_override_is_not_nested_endlessly() -> None:
    key = "model.args." + "a." * 1000 + "b"
    with pytest.raises(ConfigError, match="^--set model.args.a.a.a.*: expected key.path=value, for example") as caught:
        load_config(None, [OWN_MODEL, f"{key}=1"])
    assert len(str(caught.value)) < 300
