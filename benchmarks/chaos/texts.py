"""Hostile text: configs, words of the command line, and the JSON files of a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.chaos.cases import Case, Families, MakeCase
from benchmarks.chaos.hostile import Write, file_case, mutated, no_file, noise, of_kinds, refused, sparse
from bllpipe.checkpoint import Checkpoint
from bllpipe.checkpoint.format import MANIFEST, Manifest, metadata_file
from bllpipe.config import Config, load_config, to_yaml
from bllpipe.config.loader import flat
from bllpipe.utils.files import MAX_BYTES, render

Text = Callable[[random.Random], str | bytes]

NUMBERS = ("1e400", "-1e400", ".nan", "-.inf", "9" * 4000, "9" * 9000, "-1", "0x10", "1_000", "1e", "1" + "0" * 30)
TEMPLATES: dict[str, Sequence[str | bytes]] = {
    "a tag": [
        "seed: !!python/object/apply:os.system ['true']",
        "!!python/object/new:os.system [true]",
        *("seed: !!python/name:os.system", "data: !!set {a}", "name: !!binary aGk=", "seed: !x 1", "seed: ! 1"),
    ],
    "not text": [
        *(b"\xff\xfe", b"a: \0", b"a: \x07", b"\xc3\x28", b"\xed\xa0\x80", b"a: \x1b[2J", b"seed: 1\n\x80"),
        "seed: 1".encode("utf-16"),
    ],
    "a number": [f"optimizer: {{momentum: {number}}}" for number in NUMBERS],
    "an odd key": ["1: 2", "~: 2", "[1]: 2", "{a: 1}: 2", "? [a]\n: b", "true: 1", "'': 1", ".nan: 1", "1e400: 1"],
    "a key twice": ["seed: 1\nseed: 2", "data: {path: a, path: b}", "'seed': 1\nseed: 1"],
    "another structure": [
        *("- 1", "a", "3", "data: 1", "data: [1]", "seed: {a: 1}", "blocks: {}", "--- a\n--- b", "model: {args: 1}"),
        *("[", "{", "seed: 1\n  epochs: 2", "\tseed: 1", "seed: |\n", "%YAML 9.9\n---\na: 1", "'", '"\\x"'),
    ],
    "a way out": ["name: ../../out", "name: /etc/out", "name: '..'", "model: {name: '../a:b'}", 'name: "a\\0"'],
    "a program": [f"model: {{name: {name!r}}}" for name in ("os.system", "os:", ":system", "os/x:y", "os: a", "a:b:c")],
}
LONG = ("{}: 1", "seed: {}", "name: {}", '"{}"', "- {}", "method: {}", "model: {{name: {}}}", "data: {{{}: 1}}")


def text_families() -> Families:
    return {"YAML": _yaml(), "--set": _override, "JSON of a checkpoint": _records()}


def written(make: Text) -> Write:
    """A file of what ``make`` draws; it is described by its first characters."""

    def write(draws: random.Random, path: Path) -> str:
        content = make(draws)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"{len(content):,} of {content[:60]!r}"

    return write


def _yaml() -> MakeCase:
    def read(path: Path) -> object:
        return load_config(str(path))

    case, drawn = partial(file_case, "config.yaml", read=read), {"aliases": _laughs, "nesting": _nested_yaml}
    makers: dict[str, Text] = {**drawn, "many values": _many, "long words": _long}
    for name, texts in TEMPLATES.items():
        makers[name] = partial(_one_of, texts)
    return of_kinds(
        {
            **{name: case(write=written(make)) for name, make in makers.items()},
            "no file": case(write=no_file),
            "a file without end": case(write=sparse(b"seed: 1\n", least=1 << 20)),
            "random bytes": case(write=noise(b"seed: \xff", b"\0", b"%", b"&a *a")),
            "a good one, changed": case(write=mutated(lambda draws: to_yaml(Config()).encode()), may_pass=True),
        }
    )


def _one_of(texts: Sequence[str | bytes], draws: random.Random) -> str | bytes:
    return texts[draws.randrange(len(texts))]


def _laughs(draws: random.Random) -> str:
    """Each line is many of the line before: a billion of the first in no time."""
    fan, lines = draws.randrange(2, 12), draws.randrange(1, 30)
    rest = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * fan)}]" for n in range(1, lines)]
    return "\n".join(["a0: &a0 lol", *rest])


def _nested_yaml(draws: random.Random) -> str:
    depth = draws.choice([21, 50, 1000, 50_000])
    opening = draws.choice(["[", "{a: ", "- ", "? "])
    return "seed: " * draws.randrange(2) + opening * depth


def _many(draws: random.Random) -> str:
    number = draws.randrange(10_001, 60_000)
    items = [f"{draws.choice('ab')}{n}" for n in range(number)] if draws.random() < 0.3 else ["1"] * number
    return draws.choice(["[{}]", "blocks: [{}]", "model: {{args: {{x: [{}]}}}}"]).format(",".join(items))


def _long(draws: random.Random) -> str:
    word = draws.choice("a9é") * draws.randrange(50_000, 240_000) + "b"
    return draws.choice(LONG).format(word)


def _override(draws: random.Random, folder: Path) -> Case:
    """Words behind --set; the system takes at most 128 KiB in one."""
    values = [
        *NUMBERS,
        "&a 1",
        "!!python/name:os.system",
        "[" * 50_000,
        "{a: {",
        "x" * 100_000,
        "\udcff",
        "\0",
        "[1," * 30,
    ]
    keys = [
        "seed",
        "optimizer.momentum",
        "data.augment",
        "model.args" + ".a" * draws.choice([25, 10_000]),
        "nothing",
        "",
        ".",
    ]
    word = f"{draws.choice(keys)}={draws.choice(values)}" if draws.random() < 0.9 else draws.choice(keys)
    word = word if not word.startswith("seed=-1") else "seed"
    return refused(f"{len(word):,} of {word[:60]!r}", lambda: load_config(None, [word]))


def _records() -> MakeCase:
    """Either of the manifest, or of the facts of a rank, which hold the config."""
    makers: dict[str, Text] = {
        "odd values": _odd_record,
        "nesting": _nested_json,
        "not JSON": _not_json,
        "large": _large_json,
    }
    kinds: dict[str, MakeCase] = {}
    for name, read in ((MANIFEST, _read_manifest), (metadata_file(0), _read_config)):
        case = partial(file_case, name, read=read)
        for kind, make in makers.items():
            kinds[f"{name}, {kind}"] = case(write=written(make))
        kinds[f"{name}, no file"] = case(write=no_file)
        kinds[f"{name}, a file without end"] = case(write=sparse(b"{", least=MAX_BYTES + 1))
        kinds[f"{name}, random bytes"] = case(write=noise(b"{", b'{"step": ', b"\0", b"\x80"))
    return of_kinds(kinds)


def _read_manifest(path: Path) -> None:
    Manifest.read(path.parent).verify(path.parent)


def _read_config(path: Path) -> None:
    flat(Checkpoint(path.parent, 1, 1).config())


def _odd_record(draws: random.Random) -> bytes:
    """Something like a manifest in which one value is odd; as facts it lacks a config, or has an odd one."""
    odd: list[Any] = [True, -1, 0, 2**63, 10**4000, 1e400, float("nan"), "1", None, [], {}, [[]], "x" * 9999, "\ud800"]
    entry = {"bytes": draws.choice([1, *odd]), "sha256": draws.choice(["", *odd])}
    names = draws.choice([["rank-0.json", "rank-0.safetensors"], ["../a", "/etc/passwd"], ["rank-0.json"], ["\0", ""]])
    record = {
        "format": draws.choice([1, 1, 1, *odd]),
        "step": draws.choice([1, *odd]),
        "world_size": draws.choice([1, *odd]),
        "files": draws.choice([dict.fromkeys(names, entry), *odd]),
        "sha256": draws.choice(odd),
        "config": draws.choice([each for each in odd if not isinstance(each, dict)]),
    }
    return render({name: value for name, value in record.items() if draws.random() < 0.9})


def _nested_json(draws: random.Random) -> str:
    depth, opening = draws.choice([51, 500, 5000, 200_000]), draws.choice(["[", '{"a":'])
    closing = {"[": "]"}.get(opening, "}")
    inside = opening * depth + ("" if opening == "[" else "1") + closing * depth
    return f'{{"format": 1, "config": {{"a": {inside}}}}}' if draws.random() < 0.7 else opening * depth


def _not_json(draws: random.Random) -> str | bytes:
    whole: list[str | bytes] = [
        "",
        "{",
        "nonsense",
        '{"a": 1} 2',
        "[]",
        "1",
        "null",
        '"a"',
        "{'a': 1}",
        '{"a": 1,}',
        '{"step": 1e}',
        "NaN",
    ]
    return draws.choice([*whole, b"\xff\xfe{\0", '{"step": ' + "9" * 5000 + "}", b"\xef\xbb\xbf{}"])


def _large_json(draws: random.Random) -> str:
    """What would take much more memory than disk, up to the limit and beyond."""
    item = draws.choice(["[]", "{}", "1.5", '"ab"', "[[]]", "1"])
    number = draws.choice([10_000, MAX_BYTES // (len(item) + 1) - 100, MAX_BYTES])
    return f'{{"format": 1, "more": [{",".join([item] * number)}]}}'
