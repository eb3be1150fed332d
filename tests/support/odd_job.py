"""A job of which one rank has another configuration, or speaks another version, which is rank 1."""

from __future__ import annotations

import os
import sys

from bllpipe import launch
from bllpipe.engines import job as peers


def main() -> int:
    """The words before ``--odd`` are for all ranks, the ones behind for rank 1 alone; ``old`` makes it an old one."""
    place = sys.argv.index("--odd")
    words, odd = sys.argv[1:place], sys.argv[place + 1 :]
    if os.environ["RANK"] != "1":
        return launch.main(words)
    if odd == ["old"]:
        vars(peers)["VERSION"] -= 1
        return launch.main(words)
    return launch.main([*words, *odd])


if __name__ == "__main__":
    sys.exit(main())
