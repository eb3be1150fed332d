"""The bounded FIFO between threads."""

import threading

import pytest

from bllpipe.distributed.local_links import Channel
from tests.support.waiting import PATIENCE


def test_first_in_first_out() -> None:
    channel: Channel[int] = Channel(3)
    for item in range(3):
        channel.put(item)
    assert [channel.get() for _ in range(3)] == [0, 1, 2]


def test_its_length_is_what_waits_in_it() -> None:
    channel: Channel[int] = Channel(3)
    assert len(channel) == 0
    channel.put(1)
    channel.put(2)
    assert len(channel) == 2
    channel.get()
    assert len(channel) == 1


def test_full_and_empty_channels_time_out() -> None:
    channel: Channel[int] = Channel(1)
    with pytest.raises(TimeoutError):
        channel.get(timeout=0.01)
    channel.put(1)
    with pytest.raises(TimeoutError):
        channel.put(2, timeout=0.01)


def test_closing_wakes_a_waiting_reader_with_the_error() -> None:
    channel: Channel[int] = Channel(1)
    caught: list[BaseException] = []

    def read() -> None:
        try:
            channel.get()
        except BaseException as error:
            caught.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    first = ValueError("first")
    channel.close(first)
    channel.close(ValueError("second"))
    reader.join(timeout=PATIENCE)
    assert caught == [first]


def test_what_came_before_the_end_is_still_read() -> None:
    channel: Channel[int] = Channel(2)
    channel.put(1)
    channel.close(ValueError("over"))
    assert channel.get() == 1
    with pytest.raises(ValueError, match="over"):
        channel.get()
    with pytest.raises(ValueError, match="over"):
        channel.put(2)
