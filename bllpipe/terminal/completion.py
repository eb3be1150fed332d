"""``bllpipe completion SHELL``: a script for the shell, made once by shtab. It is static: a Tab starts no Python."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

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

    print(shtab.complete(options.parser, options.shell))
    return 0
