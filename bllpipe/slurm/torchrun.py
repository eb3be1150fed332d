"""torchrun for job scripts: no traceback after a signal, as status.json says how the ranks ended."""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except SignalException as error:
        sys.exit(128 + error.sigval)
