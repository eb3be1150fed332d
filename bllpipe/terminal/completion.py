"""``bllpipe completion SHELL``: a script for the shell, made once by shtab. It is static: a Tab starts no Python."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from bllpipe.config.reading import known_keys

SHELLS = ("bash", "zsh", "fish")
HOW = """bash: bllpipe completion bash > ~/.local/share/bash-completion/completions/bllpipe
zsh:  bllpipe completion zsh > a folder of $fpath, as _bllpipe
fish: bllpipe completion fish > ~/.config/fish/completions/bllpipe.fish
"""


def add_completion(commands: Any) -> None:
    """The command ``completion``, which describes the parser that ``commands`` end up in."""
    completion = commands.add_parser(
        "completion",
        help="print a shell's completion script",
        epilog=HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_completion)


def _completion(options: argparse.Namespace, words: Sequence[str]) -> int:
    import shtab

    _mark_keys(options.parser, _keys())
    print(shtab.complete(options.parser, options.shell))
    return 0


def _mark_keys(parser: argparse.ArgumentParser, keys: Mapping[str, Any]) -> None:
    """Tells shtab of every ``--set``, whichever command has it, that it takes a key of a config."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_keys(command, keys)
        elif "--set" in action.option_strings:
            action.complete = keys  # type: ignore[attr-defined]  # as shtab wants it


def _keys() -> dict[str, Any]:
    """How each shell completes a key of a config."""
    keys = " ".join(known_keys())
    function = f"_bllpipe_keys() {{ compgen -W '{keys}' -- \"$1\"; }}"
    return {"bash": "_bllpipe_keys", "zsh": f"({keys})", "fish": keys, "preamble": {"bash": function}}
