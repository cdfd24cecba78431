"""`Listener`: a client of the Downlink driver that collects records and checks the protocol's promises as it goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from harness.client import binding as bindings
from harness.client import hresult as hr
from harness.client.errors import PortError
from harness.client.port import HEADER_BYTES, Message, Operation, Port
from harness.client.protocol import MESSAGE_BYTES_DEFAULT, PORT_NAME, Batch, Connect, Kind, Record, parse

WAIT_SECONDS: Final = bindings.OPERATION_SECONDS
"""How long a record that must come may take; only a broken driver ever needs it."""


class BrokenPromiseError(AssertionError):
    """The driver sent something that `downlink_protocol.h` says it never sends."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """One announcement of dropped records."""

    count: int
    first: int
    last: int


class Listener:
    """A connection with what it received so far.

    Sequence numbers are checked with every message: they rise, and a gap has been announced by the time it is seen.
    One request is pending at a time; a wait that times out leaves it pending, so no message is lost.
    """

    def __init__(self, port: Port, connect: Connect) -> None:
        self.port = port
        self.connect = connect
        self.records: list[Record] = []
        self.batches: list[Batch] = []
        self.messages: list[Message] = []
        self.dropped: list[Dropped] = []
        self._operation: Operation | None = None
        self._unread: deque[Record] = deque()
        self._highest = 0
        self._size = HEADER_BYTES + (connect.message_bytes or MESSAGE_BYTES_DEFAULT)

    @classmethod
    def open(cls, connect: Connect, name: str = PORT_NAME) -> Self:
        """Connect with this context; raises `PortError`."""
        return cls(Port.connect(name, connect.encode()), connect)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dropped_count(self) -> int:
        """Records announced as dropped so far."""
        return sum(dropped.count for dropped in self.dropped)

    def receive(self, timeout: float = WAIT_SECONDS) -> Batch:
        """The next message.

        Raises:
            TimeoutError: none came in time.
            PortError: the connection ended.
            BrokenPromiseError: the message breaks the protocol.
        """
        if self._operation is None:
            self._operation = self.port.begin_get(self._size)
        message = self._wait(self._operation, timeout)
        return self._accept(message)

    def next(self, timeout: float = WAIT_SECONDS) -> Record:
        """The next record that was not returned yet."""
        deadline = time.monotonic() + timeout
        while not self._unread:
            self.receive(max(0.0, deadline - time.monotonic()))
        return self._unread.popleft()

    def wait_for(self, what: str, matches: Callable[[Record], bool], timeout: float = WAIT_SECONDS) -> Record:
        """The next record that matches; those before it are passed over.

        Args:
            what: what is waited for, as it reads after 'no record of'.

        Raises:
            TimeoutError: it did not come; the message says what was last seen.
        """
        seen: list[Record] = []
        deadline = time.monotonic() + timeout
        while True:
            try:
                record = self.next(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise TimeoutError(
                    f"no record of {what} came within {timeout:g} s; last seen: {summary(seen or self.records)}"
                ) from None
            if matches(record):
                return record
            seen.append(record)

    def until(
        self, what: str, matches: Callable[[Record], bool], timeout: float = WAIT_SECONDS
    ) -> list[Record]:
        """All records up to the one that matches, that one included; raises as `wait_for` does."""
        before: list[Record] = []

        def collect(record: Record) -> bool:
            before.append(record)
            return matches(record)

        self.wait_for(what, collect, timeout)
        return before

    def end(self, timeout: float = WAIT_SECONDS) -> PortError:
        """Receive until the connection ends; the error it ended with. Raises `TimeoutError` if it does not end."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.receive(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise TimeoutError(
                    f"the connection did not end within {timeout:g} s; last seen: {summary(self.records)}"
                ) from None
            except PortError as error:
                self._operation = None
                return error

    def post(self) -> None:
        """Post the request that `receive` would post, without waiting for it."""
        if self._operation is None:
            self._operation = self.port.begin_get(self._size)

    def close(self) -> None:
        """Cancel what is pending, and close. A second call does nothing."""
        if self.port.closed:
            return
        operation, self._operation = self._operation, None
        if operation is not None:
            operation.cancel()
            operation.completion(bindings.OPERATION_SECONDS)
        self.port.close()

    def _wait(self, operation: Operation, timeout: float) -> Message:
        try:
            message = operation.wait(timeout)
        except TimeoutError:
            raise
        except BaseException:
            self._operation = None
            raise
        self._operation = None
        return message

    def _accept(self, message: Message) -> Batch:
        batch = parse(message.data)
        _promise(batch.records or batch.dropped_count, "a message carries records, or news of dropped ones")
        if batch.dropped_count:
            self.dropped.append(Dropped(batch.dropped_count, batch.first_dropped, batch.last_dropped))
        for record in batch.records:
            _promise(
                record.sequence > self._highest,
                f"sequence numbers rise: {record.sequence} came after {self._highest}",
            )
            for missing in range(self._highest + 1, record.sequence):
                announced = any(dropped.first <= missing <= dropped.last for dropped in self.dropped)
                _promise(announced, f"record {missing} is missing, and no message said that it was dropped")
            self._highest = record.sequence
        self.messages.append(message)
        self.batches.append(batch)
        self.records += batch.records
        self._unread += batch.records
        return batch


def summary(records: Sequence[Record], last: int = 5) -> str:
    """The last few records in a line, for failure texts."""
    if not records:
        return "nothing"
    shown = ", ".join(
        f"#{record.sequence} {getattr(record.kind, 'name', record.kind)} {record.path or record.value}".rstrip()
        for record in records[-last:]
    )
    return shown if len(records) <= last else f"… {shown} ({len(records)} records)"


def disconnected(error: PortError) -> bool:
    """True for the end of a connection as a reader sees it when the driver closes its end (fact X3)."""
    return error.hresult == hr.INVALID_HANDLE


def _promise(kept: object, promise: str) -> None:
    if not kept:
        raise BrokenPromiseError(f"the driver broke its protocol: {promise}")


def matching(
    kind: Kind | None = None,
    path: str | None = None,
    *,
    second_path: str | None = None,
    process_id: int | None = None,
    value: int | None = None,
) -> Callable[[Record], bool]:
    """A condition for `wait_for`: every property that is given must be equal, paths without regard to case."""

    def matches(record: Record) -> bool:
        return (
            (kind is None or record.kind == kind)
            and (path is None or record.path.casefold() == path.casefold())
            and (second_path is None or record.second_path.casefold() == second_path.casefold())
            and (process_id is None or record.process_id == process_id)
            and (value is None or record.value == value)
        )

    return matches
