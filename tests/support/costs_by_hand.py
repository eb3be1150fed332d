"""Units with costs that can be added up in one's head."""

from __future__ import annotations

from bllpipe.models.partition import UnitCost


def unit(
    forward: float = 1.0,
    head: float = 0.0,
    update: float = 0.0,
    backward_without_input: float | None = None,
    parameters: int = 10,
) -> UnitCost:
    """Backward takes twice as long as forward: half of it for the input, half for the parameters."""
    without_input = forward if backward_without_input is None else backward_without_input
    return UnitCost(
        forward=forward,
        backward=2 * forward,
        backward_without_input=without_input,
        backward_of_input=forward,
        update=update,
        head=head,
        parameters=parameters,
        output_bytes=100,
        memory_bytes=1000,
        head_memory_bytes=10,
    )
