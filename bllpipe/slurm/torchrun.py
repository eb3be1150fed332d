"""torchrun as a job script wants it: a signal ends it without a traceback, as status.json says how the ranks ended."""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except SignalException as error:
        sys.exit(128 + error.sigval)
