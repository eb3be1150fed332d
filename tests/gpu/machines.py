"""What a test needs of the machine, and why it is left out where that is not there."""

from __future__ import annotations

import pytest
import torch


def needs_gpus(number: int = 1) -> pytest.MarkDecorator:
    """Leaves a test out on a machine with fewer GPUs."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return pytest.mark.skipif(found < number, reason=f"needs {number} GPU(s), found {found}")
