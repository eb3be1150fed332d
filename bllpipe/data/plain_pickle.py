"""The content of a pickle that holds dicts, lists, tuples, numbers, text, bytes and NumPy arrays of numbers, such as a
batch of CIFAR. Nothing is imported or called on its behalf: the names that a pickle of an array contains are compared
with a list, and every other name, object and opcode is refused.

``pickletools.genops`` splits the bytes into opcodes, which needs no execution.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from bllpipe.errors import DataError

# What Python 2 and 3, and NumPy 1 and 2, write for an array; ``encode`` is Python 3's form of bytes in protocol 2.
NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
PUSHED = {  # opcodes whose argument is the value
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name:
    """One of the values of ``NAMES``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Array:
    """An array, once its state has been read."""

    value: Any = None


class _Dtype:
    """A dtype, whose byte order is part of its state."""

    def __init__(self, code: str) -> None:
        self.value = np.dtype(code)


def load_plain(content: bytes, source: str) -> dict[Any, Any]:
    """The dict that was pickled; text of Python 2 is bytes. DataError, which names ``source``, for anything else."""
    try:
        found = _Machine().run(content)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not a dict")
        return {key: value.value if isinstance(value, _Array) else value for key, value in found.items()}
    except Exception as error:  # damaged bytes can raise nearly any of them
        raise DataError(
            f"{source} cannot be read: {error!s:.200}; expected a pickle of arrays, bytes, lists and dicts alone, from "
            f"which nothing is executed"
        ) from error


class _Machine:
    """The stack of an unpickler."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name != "STOP":  # which is the last one, or genops raises
                self._do(opcode.name, argument)
        return self._stack.pop()

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in PUSHED:
            stack.append(argument)
        elif name in ("BINSTRING", "SHORT_BINSTRING"):
            stack.append(argument.encode("latin-1"))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            count = TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._popped()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            self._change(name, argument)

    def _change(self, name: str, argument: Any) -> None:
        """Opcodes that change what is there, and those that make arrays."""
        stack = self._stack
        if name in ("APPEND", "APPENDS"):
            values = self._popped() if name == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._popped() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _expect(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            text = argument if name == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}"
            if text not in NAMES:
                raise ValueError(f"it asks for {text.replace(' ', '.')}")
            stack.append(_Name(NAMES[text]))
        elif name == "REDUCE":
            arguments = _expect(stack.pop(), tuple)
            stack.append(_made(_expect(stack.pop(), _Name).kind, arguments))
        elif name == "BUILD":
            state = _expect(stack.pop(), tuple)
            _build(stack[-1], state)
        else:
            raise ValueError(f"it has the opcode {name}")

    def _popped(self) -> list[Any]:
        """The values above the last mark."""
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it has a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else _expect(value, str)


def _made(kind: str, arguments: tuple[Any, ...]) -> Any:
    """What a call of this kind stands for."""
    if kind == "array":
        return _Array()
    if kind == "dtype":
        code = _text(arguments[0])
        if np.dtype(code).kind not in "iufb":
            raise ValueError(f"it has an array of {code:.20}")
        return _Dtype(code)
    if kind == "encode" and arguments[1] in ("latin1", "latin-1"):
        return _expect(arguments[0], str).encode("latin-1")
    raise ValueError(f"it calls {kind}")


def _build(target: Any, state: tuple[Any, ...]) -> None:
    if isinstance(target, _Dtype):
        target.value = target.value.newbyteorder(_text(state[1]))  # type: ignore[arg-type]  # NumPy checks the text
    else:
        _, shape, dtype, is_fortran, content = state
        dtype = _expect(dtype, _Dtype).value
        if prod(_expect(shape, tuple)) * dtype.itemsize != len(_expect(content, bytes)) or min(shape, default=0) < 0:
            raise ValueError(f"it has {len(content):,} bytes for an array of {list(shape)}")
        flat = np.frombuffer(content, dtype)
        _expect(target, _Array).value = flat.reshape(shape, order="F" if is_fortran else "C")
