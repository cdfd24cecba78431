"""Communication ports: connections, their queues of readers and senders, and how they end.

The state machine of the facts P, C, M, D, X and S in docs/facts (filter-ports): no kernel exports here (port_exports.py)
and no user-mode services (port_services.py), only what both act on. The Filter Manager does not buffer messages: the
queue of a connection holds the pending requests of its user (S6), and a message stays with its sender.
"""

from __future__ import annotations

import itertools
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vm.emulated.cpu.memory import MemoryFaultError
from vm.emulated.fltmgr.model import CLIENT_PORT_TYPE, Filter
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.objects import KObject
from vm.emulated.kernel.security import SecurityDescriptor
from vm.emulated.kernel.status import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_CANCELLED,
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_PENDING,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
    STATUS_THREAD_IS_TERMINATING,
    STATUS_TIMEOUT,
)
from vm.emulated.kernel.threads import TERMINATING, TIMED_OUT, Block, Call, KThread, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel
    from vm.emulated.kernel.processes import KProcess

MESSAGE_HEADER = 16
"""Size of FILTER_MESSAGE_HEADER and of FILTER_REPLY_HEADER (Y4)."""


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """Where facts leave a choice: what this machine does. A driver has to be right under all of them."""

    notify_after_kernel_close: bool = True
    """D8: DisconnectNotify also runs for a connection whose kernel end the driver has closed already."""
    purge_status: int = STATUS_PORT_DISCONNECTED
    """G17: completion of requests still pending when the user closes its last handle (or STATUS_CANCELLED)."""
    wake_senders_before_notify: bool = True
    """D5: DisconnectNotify runs when every FltSendMessage on the connection has returned; else they are only made ready
    before it, and the schedule decides who runs first."""
    case_sensitive_names: bool = False
    """G4: whether the name given at connect must match in case."""


@dataclass(slots=True, eq=False)
class ServerPort:
    """What FltCreateCommunicationPort makes."""

    object: KObject
    filter: Filter
    name: str
    security: SecurityDescriptor
    cookie: int
    connect_notify: int
    disconnect_notify: int
    message_notify: int
    maximum_connections: int
    connections: int = 0
    """Connections that exist, and attempts in progress (C12)."""
    closed: bool = False


@dataclass(slots=True, eq=False)
class ReadRequest:
    """One FilterGetMessage of the user that waits for a message."""

    connection: Connection
    process: KProcess
    size: int
    number: int
    thread_key: int
    status: int = STATUS_PENDING
    information: int = 0
    data: bytes = b""
    waiting: list[KThread] = field(default_factory=list)
    """Threads that wait for the completion."""


@dataclass(slots=True, eq=False)
class SendWait:
    """One FltSendMessage that waits: for a reader, or for the reply."""

    thread: KThread
    buffer: int
    length: int
    reply_capacity: int | None
    """Bytes of the reply buffer; None when no reply is expected."""
    message_id: int = 0
    reply: bytes | None = None
    reply_status: int = STATUS_SUCCESS


@dataclass(slots=True, eq=False)
class Connection:
    """One client's connection: its kernel end is the PFLT_PORT (`object.address`), its user end a file object."""

    object: KObject
    server: ServerPort
    filter: Filter
    process: KProcess
    number: int
    cookie: int = 0
    file: KObject | None = None
    accepted: bool = False
    disconnected: bool = False
    """No more messages in either direction."""
    kernel_closed: bool = False
    """The driver has called FltCloseClientPort."""
    variable: int = 0
    """Address of the driver's variable that the port was first used through (X1)."""
    user_closed: bool = False
    notified: bool = False
    """A thread has begun to end the connection: it will call, calls, or has called DisconnectNotify."""
    ended: bool = False
    """DisconnectNotify, if it was due, has returned."""
    ending: list[KThread] = field(default_factory=list)
    """Threads that wait until `ended`."""
    released: bool = False
    """The slot of the server port is free again (C9)."""
    readers: deque[ReadRequest] = field(default_factory=deque)
    senders: deque[SendWait] = field(default_factory=deque)
    repliers: dict[int, SendWait] = field(default_factory=dict)
    message_ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    notifying: int = 0
    """MessageNotify calls in progress (M3)."""
    draining: list[KThread] = field(default_factory=list)
    """Threads that wait until `notifying` is zero."""
    sending: int = 0
    """FltSendMessage calls in progress."""
    leaving: list[KThread] = field(default_factory=list)
    """Threads that wait until `sending` is zero."""
    messages: int = 0
    """Messages delivered."""

    def __repr__(self) -> str:
        return f"<Connection {self.number} to '{self.server.name}' of process {self.process.id}>"


class Ports:
    """All communication ports of one kernel."""

    def __init__(self, kernel: Kernel, policy: PortPolicy | None = None) -> None:
        self.kernel = kernel
        self.policy = policy or PortPolicy()
        self.connections: dict[int, Connection] = {}
        """Live connections by the address of their PFLT_PORT."""
        self._numbers = itertools.count(1)
        self._requests = itertools.count(1)
        self.sends = 0
        """Calls of FltSendMessage."""

    def new_connection(self, server: ServerPort, process: KProcess) -> Connection:
        """A connection that is not accepted yet; its port object is already valid (C3)."""
        item = self.kernel.objects.create(CLIENT_PORT_TYPE, None)
        connection = Connection(item, server, server.filter, process, next(self._numbers))
        item.body = connection
        self.connections[item.address] = connection
        server.filter.client_ports.append(connection)
        return connection

    def forget(self, connection: Connection) -> None:
        """Drop a connection that was refused, or that both ends have closed."""
        if self.connections.pop(connection.object.address, None) is not None:
            connection.filter.client_ports.remove(connection)
            self.kernel.objects.dereference(connection.object)

    def release_slot(self, connection: Connection) -> None:
        """The connection counts no more against MaxConnections."""
        if not connection.released:
            connection.released = True
            connection.server.connections -= 1

    # Messages from kernel to user

    def new_read(self, connection: Connection, process: KProcess, thread: KThread, size: int) -> ReadRequest:
        """Queue a request of the user and wake the sender that has waited longest, if there is one (S6, S9, G14)."""
        request = ReadRequest(connection, process, size, next(self._requests), thread.address)
        connection.readers.append(request)
        if connection.senders:
            self.kernel.scheduler.wake(connection.senders.popleft().thread, STATUS_SUCCESS)
        return request

    def complete(self, request: ReadRequest, status: int, information: int = 0, data: bytes = b"") -> None:
        """Finish a request and wake who waits for it."""
        request.status = status
        request.information = information
        request.data = data
        for thread in request.waiting:
            self.kernel.scheduler.wake(thread, status)
        request.waiting.clear()

    def cancel(self, request: ReadRequest) -> bool:
        """CancelIoEx: False if the request is complete already."""
        if request.status != STATUS_PENDING:
            return False
        request.connection.readers.remove(request)
        self.complete(request, STATUS_CANCELLED)
        return True

    def send(self, thread: KThread, connection: Connection, wait: SendWait, timeout: int | None) -> Model:
        """Deliver one message and, if asked for, wait for its reply; returns the NTSTATUS of FltSendMessage.

        Args:
            timeout: 100 ns units for delivery and reply together (S3); None for ever, 0 polls (S2).
        """
        connection.sending += 1
        try:
            return (yield from self._send(thread, connection, wait, timeout))
        finally:
            connection.sending -= 1
            if not connection.sending:
                self._wake_all(connection.leaving)

    def _send(self, thread: KThread, connection: Connection, wait: SendWait, timeout: int | None) -> Model:
        clock = self.kernel.clock
        expiry = None if timeout is None else clock.interrupt_time + timeout

        def left() -> int | None:
            return None if expiry is None else max(0, expiry - clock.interrupt_time)

        while True:
            # The disconnect event comes before the readers in the wait set (S9).
            if connection.disconnected:
                return STATUS_PORT_DISCONNECTED
            status = self._deliver(connection, wait)
            if status is not None:
                break
            if left() == 0:
                return STATUS_TIMEOUT
            self._check_io_path(thread, "FltSendMessage waits for a reader")
            connection.senders.append(wait)
            outcome = yield Block(
                f"FltSendMessage on {connection!r} (no reader)",
                timeout=left(),
                killable=True,
                on_cancel=lambda: connection.senders.remove(wait),
            )
            status = _end_of_wait(outcome)
            if status is not None:
                return status
        if status != STATUS_SUCCESS or wait.reply_capacity is None:
            return status
        if left() == 0:
            connection.repliers.pop(wait.message_id, None)
            return STATUS_TIMEOUT
        self._check_io_path(thread, "FltSendMessage waits for a reply")
        outcome = yield Block(
            f"FltSendMessage on {connection!r} (reply to message {wait.message_id})",
            timeout=left(),
            killable=True,
        )
        # Only now: a reply between the timeout and this moment is copied, and the sender reports the timeout (S24).
        connection.repliers.pop(wait.message_id, None)
        status = _end_of_wait(outcome)
        return wait.reply_status if status is None else status

    def _deliver(self, connection: Connection, wait: SendWait) -> int | None:
        """Fill the first pending request that is large enough (S18); None if the message has to wait.

        If there are requests but none is large enough, one of them is completed with the size it should have had.
        """
        needed = wait.length + MESSAGE_HEADER
        for request in connection.readers:
            if request.size >= needed:
                break
        else:
            if connection.readers:
                self.complete(connection.readers.popleft(), STATUS_BUFFER_TOO_SMALL, needed)
            return None
        if refused(self.kernel, needed, connection.filter):
            return STATUS_INSUFFICIENT_RESOURCES  # the request stays where it was (S19)
        try:
            payload = self.kernel.memory.read(wait.buffer, wait.length)
        except MemoryFaultError as fault:
            # The message stays in the sender's buffer until now; a sender that frees it while it waits is found here.
            self.kernel.exceptions.kernel_fault(
                0, fault.address, fault.access, "the delivery of a waiting FltSendMessage"
            )
            raise
        expected = 0
        if wait.reply_capacity is not None:
            expected = wait.reply_capacity + MESSAGE_HEADER
            wait.message_id = next(connection.message_ids)
            connection.repliers[wait.message_id] = wait
        header = struct.pack("<IIQ", expected & 0xFFFF_FFFF, 0, wait.message_id)
        connection.readers.remove(request)
        connection.messages += 1
        self.complete(request, STATUS_SUCCESS, needed, header + payload)
        return STATUS_SUCCESS

    def reply(self, connection: Connection, message_id: int, status: int, payload: bytes) -> int | None:
        """A reply of the user; returns its NTSTATUS, or None if nobody waits for that id (R2)."""
        wait = connection.repliers.pop(message_id, None) if message_id else None
        if wait is None or wait.reply_capacity is None:
            return None
        truncated = len(payload) > wait.reply_capacity
        wait.reply = payload[: wait.reply_capacity]
        wait.reply_status = STATUS_BUFFER_OVERFLOW if truncated else status
        self.kernel.scheduler.wake(wait.thread, STATUS_SUCCESS)
        return STATUS_BUFFER_OVERFLOW if truncated else STATUS_SUCCESS

    def _check_io_path(self, thread: KThread, what: str) -> None:
        """A driver may declare that its I/O path never waits for user mode; then a wait there is a broken rule."""
        if not thread.io_callbacks:
            return
        driver = self.kernel.caller_driver()
        if driver is not None and driver.rules.get("io_path_waits") == "forbid":
            # At once, not as a violation: every file operation of every client would wait its turn to say the same.
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x2_0054,
                thread.address,
                rule=f"{what} inside the I/O callback {thread.io_callbacks[-1]}: the I/O path waits for user mode, which "
                f"the driver '{driver.name}' promises never to do (io_path_waits)",
            )

    # The end of a connection

    def disconnect(self, connection: Connection, purge_status: int) -> None:
        """Mark the connection as over: senders and readers come back, nothing new starts (D4, S9, X3)."""
        if connection.disconnected:
            return
        connection.disconnected = True
        while connection.readers:
            self.complete(connection.readers.popleft(), purge_status)
        waiting = [*connection.senders, *connection.repliers.values()]
        connection.senders.clear()
        connection.repliers.clear()
        for wait in waiting:
            self.kernel.scheduler.wake(wait.thread, STATUS_PORT_DISCONNECTED)

    def close_kernel_end(self, connection: Connection) -> None:
        """FltCloseClientPort: the driver's end is gone (X1, X2)."""
        connection.kernel_closed = True
        self.disconnect(connection, STATUS_PORT_DISCONNECTED)
        if connection.user_closed and (connection.notified or not connection.accepted):
            self.forget(connection)

    def close_user_end(self, connection: Connection) -> Model:
        """IRP_MJ_CLEANUP of the user's file object: the last handle is closed (D2)."""
        connection.user_closed = True
        self.disconnect(connection, self.policy.purge_status)
        yield from self.notify(connection)
        self.release_slot(connection)
        if connection.kernel_closed:
            self.forget(connection)

    def notify(self, connection: Connection) -> Model:
        """Wait until running MessageNotify calls have drained, then DisconnectNotify, exactly once (D3, D4, D5).

        Whoever comes second waits until the first is through: the image must not go before (D10).
        """
        if not connection.accepted:
            return
        thread = self.kernel.current
        if connection.notified:
            while not connection.ended:
                connection.ending.append(thread)
                yield Block(f"the end of {connection!r} (DisconnectNotify still runs)")
            return
        connection.notified = True
        while connection.notifying:
            connection.draining.append(thread)
            yield Block(f"the end of {connection!r} (MessageNotify still runs)")
        if self.policy.wake_senders_before_notify:
            while connection.sending:
                connection.leaving.append(thread)
                yield Block(f"the end of {connection!r} (FltSendMessage still runs)")
        elif connection.sending:
            yield Block("a turn of the schedule", timeout=0)
        if not connection.kernel_closed or self.policy.notify_after_kernel_close:
            yield Call(connection.server.disconnect_notify, (connection.cookie,), "DisconnectNotify")
        connection.ended = True
        self._wake_all(connection.ending)

    def message_done(self, connection: Connection) -> None:
        """A MessageNotify call has returned."""
        connection.notifying -= 1
        if not connection.notifying:
            self._wake_all(connection.draining)

    def _wake_all(self, threads: list[KThread]) -> None:
        for thread in threads:
            self.kernel.scheduler.wake(thread, None)
        threads.clear()

    def terminate_all(self, owner: Filter) -> Model:
        """FltUnregisterFilter ends what is left, in the unloading thread (D9, D10, X7)."""
        for connection in list(owner.client_ports):
            self.disconnect(connection, STATUS_PORT_DISCONNECTED)
            yield from self.notify(connection)
            self.release_slot(connection)
        for connection in list(owner.client_ports):
            if not connection.kernel_closed:
                self.kernel.violate(
                    "client-port-leaked",
                    f"the driver never called FltCloseClientPort for connection {connection.number} of process {connection.process.id} "
                    f"to '{connection.server.name}'; the port object leaks",
                    owner.driver.name,
                )
            self.forget(connection)


def refused(kernel: Kernel, size: int, owner: Filter) -> bool:
    """Fault injection: whether the Filter Manager fails to allocate `size` bytes on behalf of a filter (P8, S4, S19)."""
    refuse = kernel.pool.refuse
    return refuse is not None and refuse(size, "FMgr", owner.driver.name)


def _end_of_wait(outcome: object) -> int | None:
    if outcome is TIMED_OUT:
        return STATUS_TIMEOUT
    if outcome is TERMINATING:
        return STATUS_THREAD_IS_TERMINATING
    return STATUS_PORT_DISCONNECTED if outcome == STATUS_PORT_DISCONNECTED else None
