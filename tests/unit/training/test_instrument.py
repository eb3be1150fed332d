"""Wrapped methods: what is called when, with what, and on which instance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn

from bllpipe.training.instrument import wrap_method


class Adder:
    """Something with a method to wrap."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def add(self, first: int, second: int = 0) -> int:
        self.calls.append("add")
        return first + second


def test_before_around_and_after_come_in_this_order_with_the_arguments() -> None:
    adder = Adder()

    @contextmanager
    def around() -> Iterator[None]:
        adder.calls.append("enter")
        yield
        adder.calls.append("leave")

    def after(result: int, first: int, second: int) -> int:
        adder.calls.append(f"after {result} of {first} and {second}")
        return 10 * result

    wrap_method(
        adder,
        "add",
        before=lambda *given, **named: adder.calls.append(f"before {given} {named}"),
        after=after,
        around=around,
    )
    assert adder.add(1, second=2) == 30
    assert adder.calls == ["before (1,) {'second': 2}", "enter", "add", "leave", "after 3 of 1 and 2"]


def test_only_the_one_instance_is_wrapped_and_a_wrapped_method_can_be_wrapped_again() -> None:
    adder = Adder()
    wrap_method(adder, "add", after=lambda result, *given: result + 1)
    wrap_method(adder, "add", after=lambda result, *given: result * 2)
    assert (adder.add(1, 2), Adder().add(1, 2)) == (8, 3)
    assert adder.add.__name__ == "add"


def test_an_error_passes_through_the_context_and_reaches_no_after() -> None:
    adder, left = Adder(), list[str]()

    @contextmanager
    def around() -> Iterator[None]:
        try:
            yield
        finally:
            left.append("left")

    wrap_method(adder, "add", around=around, after=lambda result, *given: left.append("after"))
    with pytest.raises(TypeError, match="unsupported operand"):
        adder.add(1, "two")  # type: ignore[arg-type]  # which is the error
    assert left == ["left"]


def test_a_module_that_is_called_like_a_method_keeps_its_parameters_to_itself() -> None:
    """The objective of a block may be a module."""
    adder, module = Adder(), nn.Linear(1, 1)
    adder.add = module  # type: ignore[assignment,method-assign]  # called like one
    wrap_method(adder, "add", after=lambda result, *given: result)
    assert "_parameters" not in vars(adder.add) and module.weight.requires_grad


def test_a_method_that_is_not_there_cannot_be_wrapped() -> None:
    with pytest.raises(AttributeError, match="no attribute 'subtract'"):
        wrap_method(Adder(), "subtract")
