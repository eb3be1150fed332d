"""Where a network is cut into blocks. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from bllpipe.errors import ConfigError

if TYPE_CHECKING:
    from bllpipe.learn.units import Unit


def cut(units: Sequence[Unit], blocks: int | Sequence[int | str]) -> list[list[Unit]]:
    """The units of each block; ``blocks`` as in ``bounds``."""
    return [list(units[start:end]) for start, end in bounds([unit.name for unit in units], blocks)]


def bounds(names: Sequence[str], blocks: int | Sequence[int | str]) -> list[tuple[int, int]]:
    """First unit of each block, and first unit behind it. ConfigError when the network cannot be cut so.

    Args:
        names: of all units of the network, in order.
        blocks: a number of blocks of equal numbers of units (the first ones take what is left over, so ResNet-50
            in four is 4/4/4/4), or the cuts themselves: after how many units, or after the unit of which name.
    """
    positions = _equal(len(names), blocks) if isinstance(blocks, int) else _explicit(names, blocks)
    return list(pairwise([0, *positions, len(names)]))


def _equal(num_units: int, num_blocks: int) -> list[int]:
    if num_blocks < 1:
        raise ConfigError(f"blocks={num_blocks}; expected at least 1; use a number from 1 to {num_units}")
    if num_blocks > num_units:
        raise ConfigError(
            f"blocks={num_blocks}, but the network has only {num_units} units to cut between; "
            f"use --set blocks={num_units} or less"
        )
    size, left_over = divmod(num_units, num_blocks)
    return [size * k + min(k, left_over) for k in range(1, num_blocks)]


def _explicit(names: Sequence[str], cuts: Sequence[int | str]) -> list[int]:
    positions = [_position(names, place) for place in cuts]
    if any(later <= earlier for earlier, later in pairwise([0, *positions])):
        raise ConfigError(f"blocks={list(cuts)}: cuts must go forward, each behind the one before it")
    return positions


def _position(names: Sequence[str], place: int | str) -> int:
    found = names.index(place) + 1 if place in names else place
    if not isinstance(found, int) or not 1 <= found < len(names):
        raise ConfigError(
            f"blocks: cannot cut after {place!r}; needed is a number from 1 to {len(names) - 1} "
            f"or one of {', '.join(names[:-1])}"
        )
    return found
