"""``python -m benchmarks.chaos`` kills runs; ``python -m benchmarks.chaos.files`` damages files."""

import sys

from benchmarks.chaos.kills import main

if __name__ == "__main__":
    sys.exit(main())
