"""The format of the messages of an edge: header, payload and trailer in one buffer.

    header   256 bytes: magic, edge, round, and dtype and shape of every tensor
    payload  the tensors, each at a multiple of 64 bytes
    trailer  the first 64 bytes of the header again: a truncated message does not end with them

Both ends know the run schedule, so the receiver knows every byte of the next header, and the position of the trailer;
anything else is an error. Some tensors are sent in one phase only. A message that is larger than its receive would kill
the receiver. So before the first message both ends compare over the store the layout of the largest one; receives are
as large as that; and senders check the shapes of their tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from bllpipe.config.schema import Config
from bllpipe.distributed import eight_bits
from bllpipe.errors import WireError
from bllpipe.messages import Alpha, Message, Phase, Round, Stats, Target
from bllpipe.topology import Edge

VERSION = 4  # of this format
NAME = b"BLLPIPE"
MAGIC = NAME + bytes([VERSION])
HEADER_BYTES = 256
TRAILER_BYTES = 64  # magic, edge and round: all that differs between messages in the same buffer
ALIGNMENT = 64
KINDS = ("alpha", "target", "stats")
LIMIT = "at most"  # in place of a phase: the largest message of any phase
PHASES = ("train", "evaluate", LIMIT)
DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.float16, torch.uint8)
MAX_DIMS = 5
_NUMBERS = struct.Struct("<30q")
Shapes = Sequence[tuple[torch.dtype, tuple[int, ...]]]  # of the tensors of a message


@dataclass(frozen=True)
class Field:
    """One tensor of a message; if ``batched``, the number of images comes before ``shape``. With ``only`` it is sent in
    messages of this phase only; such fields come last. ``is_range``: scales and offsets of the field before, which is
    in 8 bits."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    batched: bool = True
    only: Phase | None = None
    is_range: bool = False

    def full_shape(self, size: int) -> tuple[int, ...]:
        return (size, *self.shape) if self.batched else self.shape


@dataclass(frozen=True)
class Layout:
    """The messages of one edge: roles of both ends, tensors, at most ``max_batch`` images. The receiver has ``ring``
    buffers, and converts floats to ``received``."""

    edge: Edge
    roles: tuple[str, str]
    fields: tuple[Field, ...]
    max_batch: int
    ring: int
    received: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"edge {self.edge} ({self.roles[0]} to {self.roles[1]})"

    def fields_in(self, phase: str) -> list[Field]:
        """The tensors in a message of ``phase``; for LIMIT those in the largest message."""
        return [field for field in self.fields if field.only is None or phase in (field.only, LIMIT)]

    def shapes(self, size: int, phase: str) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape of every tensor in a message of ``phase`` about ``size`` images."""
        return [(field.dtype, field.full_shape(size)) for field in self.fields_in(phase)]

    def largest(self) -> bytes:
        """The header of the largest message, of no round; both ends of the edge must agree on it."""
        return self._header(LIMIT, Round("train", 0, size=self.max_batch), self.shapes(self.max_batch, LIMIT))

    def expected_header(self, entry: Round) -> bytes:
        """The header that the message of this round must have."""
        return self._header(entry.phase, entry, self.shapes(entry.size, entry.phase))

    def header(self, entry: Round, tensors: list[Tensor]) -> bytes:
        """The header that describes ``tensors`` as they are."""
        shapes = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
        return self._header(entry.phase, entry, shapes)

    def _header(self, phase: str, entry: Round, shapes: Shapes) -> bytes:
        edge = KINDS.index(self.edge.kind), self.edge.src, self.edge.dst
        when = PHASES.index(phase), entry.step, entry.batch, entry.shard
        numbers = (*edge, *when, entry.size, len(shapes), *_shape_numbers(tuple(shapes)))
        return (MAGIC + _NUMBERS.pack(*numbers)).ljust(HEADER_BYTES, b"\0")

    def check(self, header: bytes, trailer: bytes, entry: Round) -> None:
        """Raises WireError, naming both sides and the edge, unless these belong to the whole message of this round."""
        expected = self.expected_header(entry)
        self.compare(header, expected)
        if trailer != expected[:TRAILER_BYTES]:
            raise WireError(
                f"{self}: {self.roles[1]} got a truncated message for {entry}: expected "
                f"{self.message_bytes(entry.size, entry.phase)} bytes from {self.roles[0]}, got fewer"
            )

    def compare(self, sent: bytes, expected: bytes) -> None:
        """Raises WireError, naming both sides and the edge, unless the two headers are the same."""
        if sent != expected:
            raise WireError(
                f"{self}: {self.roles[1]} expected {_describe(expected)}, but {self.roles[0]} sends {_describe(sent)}"
            )

    def check_shapes(self, message: Message) -> None:
        """Raises WireError, naming both sides and the edge, unless the message has the shapes of the layout."""
        entry = message.round
        fields = [field for field in self.fields_in(entry.phase) if not field.is_range]
        for part, field in zip(parts_of(message), fields, strict=True):
            if tuple(part.shape) != (shape := field.full_shape(entry.size)):
                raise WireError(
                    f"{self}: at {entry} {self.roles[0]} has {list(part.shape)} to send, but {self.roles[1]} expects "
                    f"{list(shape)}; use modules whose output has the same shape in every step"
                )

    @property
    def in_eight_bits(self) -> bool:
        """Whether the first tensor is sent in 8 bits, followed by its scales and offsets."""
        return any(field.is_range for field in self.fields)

    def sent_parts(self, message: Message) -> list[Tensor]:
        """The tensors of ``message`` in the order of the fields, not yet in their dtypes. The message must have passed
        ``check_shapes``."""
        first, *others = parts_of(message)
        return [*eight_bits.quantise(first), *others] if self.in_eight_bits else [first, *others]

    def payload_bytes(self, size: int, phase: str) -> int:
        return sum(_aligned(_num_bytes(dtype, shape)) for dtype, shape in self.shapes(size, phase))

    def message_bytes(self, size: int, phase: str) -> int:
        """Header, payload and trailer."""
        return HEADER_BYTES + self.payload_bytes(size, phase) + TRAILER_BYTES

    def views(self, payload: Tensor, size: int, phase: str) -> list[Tensor]:
        """The tensors of a message of ``phase`` about ``size`` images as views into its uint8 ``payload``."""
        views, offset = [], 0
        for dtype, shape in self.shapes(size, phase):
            length = _num_bytes(dtype, shape)
            views.append(payload[offset : offset + length].view(dtype).view(shape))
            offset += _aligned(length)
        return views


def wire_dtype(config: Config) -> torch.dtype:
    """The dtype of activations in messages, ``precision.wire``."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}[config.precision.wire]


def through_wire(alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """What arrives of ``alpha`` that is sent in ``dtype`` as one message."""
    return eight_bits.dequantise(*eight_bits.quantise(alpha)) if dtype == torch.uint8 else alpha.to(dtype)


def alpha_fields(shape: tuple[int, ...], dtype: torch.dtype, voted_classes: int = 0) -> tuple[Field, ...]:
    """Activations of ``shape`` (without the batch) in ``dtype``; of uint8 also their scales and offsets; with
    ``voted_classes``, tests also send the sums of their probabilities, always float32."""
    fields = [Field(dtype, shape)]
    if dtype == torch.uint8:
        fields.append(Field(torch.float32, (2, eight_bits.num_channels(shape)), batched=False, is_range=True))
    if voted_classes:
        fields.append(Field(torch.float32, (voted_classes,), only="evaluate"))
    return tuple(fields)


def target_fields(channels: int) -> tuple[Field, ...]:
    """label, beta, known."""
    return Field(torch.int64, ()), Field(torch.float32, (channels,)), Field(torch.float32, ())


def stats_fields(num_classes: int, channels: int) -> tuple[Field, ...]:
    """sums, counts: the same size for any batch."""
    sums = Field(torch.float32, (num_classes, channels), batched=False)
    return sums, Field(torch.float32, (num_classes,), batched=False)


def parts_of(message: Message) -> list[Tensor]:
    """The message's tensors in the order of its layout."""
    match message:
        case Alpha(_, alpha_BCHW, votes_BK):
            return [alpha_BCHW] if votes_BK is None else [alpha_BCHW, votes_BK]
        case Target():
            return [message.label_B, message.beta_BC, message.known_B]
        case Stats():
            return [message.sums_KC, message.counts_K]


def copy_into(part: Tensor, buffer: Tensor) -> None:
    """Queues the copy of a message's tensor into ``buffer``, in its dtype. Copies between a GPU and pinned memory are
    asynchronous only if both sides have the same dtype, so the GPU converts first."""
    leaves_gpu = part.is_cuda and not buffer.is_cuda
    buffer.copy_(part.detach().to(buffer.dtype) if leaves_gpu else part.detach(), non_blocking=True)


def tensors_of(message: Message, layout: Layout, device: torch.device) -> list[Tensor]:
    """The message's tensors as they are sent: detached, contiguous, in the layout's dtypes, on ``device``."""
    pairs = zip(layout.sent_parts(message), layout.fields_in(message.round.phase), strict=True)
    return [part.detach().to(device, field.dtype).contiguous() for part, field in pairs]


def message_of(entry: Round, tensors: list[Tensor], layout: Layout, device: torch.device) -> Message:
    """The message for its receiver: on ``device``, floats in the dtype ``layout.received``."""
    moved = [part.to(device, non_blocking=True) for part in tensors]
    if layout.in_eight_bits:
        codes, ranges_2C, *others = moved
        moved = [eight_bits.dequantise(codes, ranges_2C), *others]
    parts = [part.to(layout.received if part.is_floating_point() else part.dtype) for part in moved]
    match layout.edge.kind:
        case "alpha":
            return Alpha(entry, *parts)
        case "target":
            return Target(entry, beta_BC=parts[1], known_B=parts[2], label_B=parts[0])
        case "stats":
            return Stats(entry, *parts)


@lru_cache(maxsize=256)  # the same few shapes in every step
def _shape_numbers(shapes: tuple[tuple[torch.dtype, tuple[int, ...]], ...]) -> tuple[int, ...]:
    """Three tensors' dtype, number of dimensions and dimensions, zeros where there are fewer."""
    numbers = [0] * 21
    for position, (dtype, shape) in enumerate(shapes):
        numbers[7 * position : 7 * position + 2 + len(shape)] = [DTYPES.index(dtype), len(shape), *shape]
    return tuple(numbers)


def _describe(header: bytes) -> str:
    """A header in words, if it is a bllpipe header."""
    header = header[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")
    if header[: len(NAME)] != NAME:
        return f"bytes that are no bllpipe header ({header[:12].hex(' ')} ...)"
    if header[: len(MAGIC)] != MAGIC:
        return f"a header of version {header[len(NAME)]}, not {VERSION}"
    kind, src, dst, phase, step, batch, shard, size, count, *rest = _NUMBERS.unpack_from(header, len(MAGIC))
    tensors = [_describe_tensor(rest[i * 7 : i * 7 + 7]) for i in range(min(max(count, 0), 3))]
    of_shard = f" shard {shard}" if shard else ""
    when = f"{_name(PHASES, phase)} step {step} batch {batch}{of_shard} of" if phase != PHASES.index(LIMIT) else LIMIT
    return f"{_name(KINDS, kind)} {src}->{dst}, {when} {size} images, {' '.join(tensors)}"


def _describe_tensor(numbers: list[int]) -> str:
    dtype, dims, *shape = numbers
    name = str(DTYPES[dtype]).removeprefix("torch.") if 0 <= dtype < len(DTYPES) else f"dtype {dtype}"
    return f"{name}{shape[: max(0, min(dims, MAX_DIMS))]}"


def _name(names: tuple[str, ...], index: int) -> str:
    return names[index] if 0 <= index < len(names) else f"number {index}"


def _num_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return prod(shape) * dtype.itemsize


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT
