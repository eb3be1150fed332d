"""How the fuzz tests are run: the same examples every time, so that a failure can be repeated, and none is kept."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ODD_TEXT = st.text(max_size=20) | st.sampled_from(["", "\0", "\ud800", "\u2028", "nan", "1e400", "~", "[", "&a", "*a"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXT
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3))


def fuzz(examples: int) -> settings:
    """Settings for a test of so many examples."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
