"""What a config calls an object that a script has passed."""

from __future__ import annotations

import re
import sys
from typing import Any

from bllpipe.learn.named import GIVEN


def importable_name(thing: Any) -> str | None:
    """package.module:name if any process can import it so; None for what lives in the script itself or in another
    function."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module in (None, "__main__") or name is None:
        return None
    return f"{module}:{name}" if getattr(sys.modules.get(module), name, None) is thing else None


def given_name(thing: Any) -> str:
    """``given:Sequential``, ``given:my_loss``: the name of a function or class, or of the kind of an object."""
    name = getattr(thing, "__name__", type(thing).__name__)
    return f"{GIVEN}:{re.sub(r'[^0-9A-Za-z_]', '_', name)}"
