"""``python -m bllpipe.cli``: the same as the command ``bllpipe``."""

from __future__ import annotations

import sys

from bllpipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
