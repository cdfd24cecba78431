"""The three streams of a command as the remote client sees them: input fed by Send, output taken by Receive.

Writers block while the client does not take its output, readers while it sends nothing; termination wakes all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from vm.deadline import Deadline

STDOUT = "stdout"
STDERR = "stderr"
_OUTPUT_LIMIT_BYTES = 4 * 1024 * 1024
_INPUT_LIMIT_BYTES = 4 * 1024 * 1024


class CommandTerminatedError(Exception):
    """The command was ended from outside; whoever runs it unwinds."""


class InputEndedError(Exception):
    """More input after the end of the stream was announced."""


class Source(Protocol):
    """Where a command reads its standard input from."""

    def read(self, size: int, stop: threading.Event | None = None) -> bytes:
        """At least one and at most `size` bytes; b"" at the end, or when `stop` is set and `wake` was called."""
        ...

    def wake(self) -> None:
        """Let a waiting reader look at its `stop` event."""
        ...


class Sink(Protocol):
    """Where a command writes its output to."""

    def write(self, data: bytes) -> None: ...


class Cancellation:
    """One command's end from outside: callbacks run once, in the thread that cancels."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.event = threading.Event()

    def add(self, callback: Callable[[], None]) -> None:
        """Have `callback` called at cancellation; at once if that has been already."""
        with self._lock:
            if not self.event.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def remove(self, callback: Callable[[], None]) -> None:
        """Forget a callback that is no longer needed."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def cancel(self) -> None:
        """Set the event and run the callbacks, newest first."""
        with self._lock:
            self.event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in reversed(callbacks):
            callback()

    def check(self) -> None:
        """Raise CommandTerminatedError if the command was ended."""
        if self.event.is_set():
            raise CommandTerminatedError


class Pipe:
    """Bytes from one thread to another: standard input of a command, or what stands between `a | b`."""

    def __init__(self, cancellation: Cancellation, limit_bytes: int = _INPUT_LIMIT_BYTES) -> None:
        self._condition = threading.Condition()
        self._data = bytearray()
        self._ended = False
        self._reader_gone = False
        self._limit_bytes = limit_bytes
        self._cancellation = cancellation
        cancellation.add(self.wake)

    def write(self, data: bytes) -> None:
        """Append; blocks while the pipe is full. Data for a reader that is gone is dropped, as `a | b` does."""
        if not self.feed(data, Deadline.never()):
            raise CommandTerminatedError

    def feed(self, data: bytes, deadline: Deadline) -> bool:
        """Append all of it, or nothing and return False if the pipe stays full until the deadline.

        Raises:
            InputEndedError: `end` was called before.
        """
        with self._condition:
            while True:
                if self._cancellation.event.is_set() or self._reader_gone:
                    return self._reader_gone
                if self._ended:
                    raise InputEndedError
                if len(self._data) < self._limit_bytes:
                    self._data += data
                    self._condition.notify_all()
                    return True
                if deadline.passed:
                    return False
                self._condition.wait(min(deadline.remaining, threading.TIMEOUT_MAX))

    @property
    def ended(self) -> bool:
        """True once `end` was called."""
        with self._condition:
            return self._ended

    def end(self) -> None:
        """No more data will come."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def abandon(self) -> None:
        """The reader is gone: writers no longer block and their data is dropped."""
        with self._condition:
            self._reader_gone = True
            self._data.clear()
            self._condition.notify_all()

    def read(self, size: int, stop: threading.Event | None = None) -> bytes:
        with self._condition:
            while True:
                self._cancellation.check()
                if stop is not None and stop.is_set():
                    return b""
                if self._data:
                    break
                if self._ended:
                    return b""
                self._condition.wait()
            data = bytes(self._data[:size])
            del self._data[:size]
            self._condition.notify_all()
            return data

    def wake(self) -> None:
        with self._condition:
            self._condition.notify_all()


class FileSource:
    """Standard input redirected from a file (`< file`) or from NUL when `file` is None."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file

    def read(self, size: int, stop: threading.Event | None = None) -> bytes:
        if self._file is None or (stop is not None and stop.is_set()):
            return b""
        return self._file.read(size)

    def wake(self) -> None:
        """Reading a file never waits."""


class FileSink:
    """Output redirected into a file (`> file`) or to NUL when `file` is None."""

    def __init__(self, file: BinaryIO | None, charge: Callable[[int], None] | None = None) -> None:
        """
        Args:
            charge: told of every write with its size before it happens; may raise OSError.
        """
        self._file = file
        self._charge = charge

    def write(self, data: bytes) -> None:
        if self._file is not None:
            if self._charge is not None:
                self._charge(len(data))
            self._file.write(data)
            self._file.flush()


@dataclass(frozen=True, slots=True)
class Received:
    """What one Receive takes away: chunks in the order they were written, and the exit code once all is taken."""

    chunks: tuple[tuple[str, bytes], ...]
    exit_code: int | None


class Output:
    """Standard output and error of one command, in the order of writing, until the client receives them."""

    def __init__(self, cancellation: Cancellation, limit_bytes: int = _OUTPUT_LIMIT_BYTES) -> None:
        self._condition = threading.Condition()
        self._chunks: deque[tuple[str, bytes]] = deque()
        self._size = 0
        self._limit_bytes = limit_bytes
        self._exit_code: int | None = None
        self._closed = False
        self._cancellation = cancellation
        cancellation.add(self._wake)

    def sink(self, stream: str) -> Sink:
        """The writing end of "stdout" or "stderr"."""
        return _OutputSink(self, stream)

    def write(self, stream: str, data: bytes) -> None:
        """Append; blocks while the client leaves more than the limit untaken."""
        with self._condition:
            while self._size >= self._limit_bytes and not self._closed:
                self._cancellation.check()
                self._condition.wait()
            if self._closed or self._cancellation.event.is_set():
                raise CommandTerminatedError
            if data:
                self._chunks.append((stream, data))
                self._size += len(data)
                self._condition.notify_all()

    def finish(self, exit_code: int) -> None:
        """The command is done; what is buffered can still be received."""
        with self._condition:
            self._exit_code = exit_code & 0xFFFFFFFF
            self._condition.notify_all()

    def close(self) -> None:
        """The command is removed: whoever waits for its output gets CommandTerminatedError."""
        with self._condition:
            self._closed = True
            self._chunks.clear()
            self._size = 0
            self._condition.notify_all()

    def receive(self, streams: Collection[str], budget_bytes: int, deadline: Deadline) -> Received | None:
        """Up to `budget_bytes` of the named streams as soon as there is any; None if the deadline passes first.

        Raises:
            CommandTerminatedError: the command was removed meanwhile.
        """
        with self._condition:
            while True:
                if self._closed:
                    raise CommandTerminatedError
                chunks = self._take(streams, budget_bytes)
                left = any(stream in streams for stream, _ in self._chunks)
                if chunks or (self._exit_code is not None and not left):
                    return Received(chunks, None if left else self._exit_code)
                if deadline.passed:
                    return None
                self._condition.wait(min(deadline.remaining, threading.TIMEOUT_MAX))

    def put_back(self, received: Received) -> None:
        """Return what could not be delivered, so that the next Receive gets it."""
        with self._condition:
            self._chunks.extendleft(reversed(received.chunks))
            self._size += sum(len(data) for _, data in received.chunks)
            self._condition.notify_all()

    def _take(self, streams: Collection[str], budget_bytes: int) -> tuple[tuple[str, bytes], ...]:
        taken: list[tuple[str, bytearray]] = []
        kept: deque[tuple[str, bytes]] = deque()
        while self._chunks and budget_bytes > 0:
            stream, data = self._chunks.popleft()
            if stream not in streams:
                kept.append((stream, data))
                continue
            part = data[:budget_bytes]
            if taken and taken[-1][0] == stream:
                taken[-1][1].extend(part)
            else:
                taken.append((stream, bytearray(part)))
            if len(part) < len(data):
                self._chunks.appendleft((stream, data[len(part) :]))
            budget_bytes -= len(part)
            self._size -= len(part)
        self._chunks.extendleft(reversed(kept))
        if taken:
            self._condition.notify_all()
        return tuple((stream, bytes(data)) for stream, data in taken)

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()


class _OutputSink:
    def __init__(self, output: Output, stream: str) -> None:
        self._output = output
        self._stream = stream

    def write(self, data: bytes) -> None:
        self._output.write(self._stream, data)
