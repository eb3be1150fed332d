"""Imported last by the process from which tests fork: what it has imported is nothing for the garbage collectors of its
forks, which would copy all of it, as they write to what they look at."""

from __future__ import annotations

from tests.support import garbage

garbage.freeze()
