"""The streams between a command and its client: blocking, waking, ordering."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from vm.deadline import Deadline
from vm.emulated.guest.streams import (
    STDERR,
    STDOUT,
    Cancellation,
    CommandTerminatedError,
    InputEndedError,
    Output,
    Pipe,
)

SOON = 0.05


def in_thread(act: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run `act` in a thread; the list gets its result or its exception."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(act())
        except (CommandTerminatedError, InputEndedError) as error:
            results.append(type(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_a_writer_blocks_at_the_limit_until_the_client_takes_output() -> None:
    output = Output(Cancellation(), limit_bytes=4)
    output.write(STDOUT, b"abcd")
    thread, results = in_thread(lambda: output.write(STDERR, b"e"))
    thread.join(SOON)
    assert thread.is_alive()
    received = output.receive((STDOUT, STDERR), 100, Deadline.never())
    assert received is not None and received.chunks == ((STDOUT, b"abcd"),)
    thread.join(5)
    assert results == [None]


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_blocked_writer_ends_with_its_command(end: str) -> None:
    cancellation = Cancellation()
    output = Output(cancellation, limit_bytes=1)
    output.write(STDOUT, b"a")
    thread, results = in_thread(lambda: output.write(STDOUT, b"b"))
    thread.join(SOON)
    assert thread.is_alive()
    if end == "cancel":
        cancellation.cancel()
    else:
        output.close()
    thread.join(5)
    assert results == [CommandTerminatedError]


def test_chunks_keep_the_order_of_writing_and_the_budget() -> None:
    output = Output(Cancellation())
    for stream, data in ((STDOUT, b"ab"), (STDOUT, b"c"), (STDERR, b"X"), (STDOUT, b"d")):
        output.write(stream, data)
    output.finish(3)
    first = output.receive((STDOUT, STDERR), 2, Deadline.never())
    assert first is not None and (first.chunks, first.exit_code) == (((STDOUT, b"ab"),), None)
    output.put_back(first)
    only = output.receive((STDERR,), 10, Deadline.never())
    assert only is not None and (only.chunks, only.exit_code) == (((STDERR, b"X"),), 3)
    rest = output.receive((STDOUT, STDERR), 10, Deadline.never())
    assert rest is not None and (rest.chunks, rest.exit_code) == (((STDOUT, b"abcd"),), 3)


def test_a_receive_without_output_ends_at_its_deadline() -> None:
    assert Output(Cancellation()).receive((STDOUT,), 10, Deadline.after(seconds=SOON)) is None


def test_a_full_pipe_takes_nothing_and_an_ended_one_refuses() -> None:
    pipe = Pipe(Cancellation(), limit_bytes=2)
    assert pipe.feed(b"ab", Deadline.never())
    assert not pipe.feed(b"c", Deadline.after(seconds=SOON))
    assert pipe.read(10) == b"ab"
    pipe.end()
    assert pipe.read(10) == b""
    with pytest.raises(InputEndedError):
        pipe.feed(b"d", Deadline.never())


def test_a_reader_stops_when_it_is_told_and_leaves_the_data() -> None:
    pipe = Pipe(Cancellation())
    stop = threading.Event()
    thread, results = in_thread(lambda: pipe.read(10, stop))
    thread.join(SOON)
    assert thread.is_alive()
    stop.set()
    pipe.wake()
    thread.join(5)
    assert results == [b""]
    pipe.write(b"kept")
    assert pipe.read(10, stop) == b""
    assert pipe.read(10) == b"kept"


def test_cancellation_runs_its_callbacks_once_and_late_ones_at_once() -> None:
    cancellation = Cancellation()
    seen: list[str] = []

    def forgotten() -> None:
        seen.append("forgotten")

    cancellation.add(lambda: seen.append("first"))
    cancellation.add(forgotten)
    cancellation.remove(forgotten)
    cancellation.cancel()
    cancellation.cancel()
    cancellation.add(lambda: seen.append("late"))
    assert seen == ["first", "late"]
    with pytest.raises(CommandTerminatedError):
        cancellation.check()
