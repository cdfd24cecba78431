"""The user side of communication ports: what fltlib's functions reach, as services of the kernel.

Each service is a generator that runs in the client's emulated thread and returns (NTSTATUS, values).
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from vm.emulated.cpu.memory import PAGE_SIZE, Access, pages
from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.model import SERVER_PORT_TYPE
from vm.emulated.fltmgr.ports import MESSAGE_HEADER, Connection, ReadRequest, ServerPort
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.objects import HandleEntry, KObject, StatusError
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_CANCELLED,
    STATUS_CONNECTION_COUNT_LIMIT,
    STATUS_FLT_BUFFER_TOO_SMALL,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_NO_WAITER_FOR_REPLY,
    STATUS_INTEGER_OVERFLOW,
    STATUS_INVALID_DEVICE_REQUEST,
    STATUS_INVALID_HANDLE,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_PENDING,
    STATUS_PORT_DISCONNECTED,
    STATUS_SUCCESS,
    STATUS_TIMEOUT,
    nt_success,
    status_name,
)
from vm.emulated.kernel.threads import TERMINATING, TIMED_OUT, Block, Call, KThread, Model

FLT_PORT_ALL_ACCESS = 0x1F0001
MAXIMUM_CONTEXT = 0xFFE7
"""Fact C13: the EA value length is a USHORT and carries a 0x18-byte prefix on x64."""
PORT_FILE_TYPE = "PortFile"
PORT_FILE_ACCESS = 0x0010_0003


@dataclass(slots=True, eq=False)
class PortFile:
    """The user's end of a connection: the file object behind its handles."""

    connection: Connection
    synchronous: bool
    busy: KThread | None = None
    """Thread whose request holds the lock of a synchronous file object (G12)."""
    queue: deque[KThread] = field(default_factory=deque)


Result = tuple[int, dict[str, Any]]


def connect_port(
    k: Kernel,
    thread: KThread,
    *,
    name: str,
    context: bytes | None,
    context_size: int,
    synchronous: bool = False,
) -> Model:
    """FilterConnectCommunicationPort; values: handle. Facts C1 to C15, P23, G1 to G4."""
    if (context is None) != (context_size == 0):
        return STATUS_INVALID_PARAMETER, {}
    if context_size > MAXIMUM_CONTEXT:
        return STATUS_INTEGER_OVERFLOW, {}
    if context is not None and len(context) < context_size:
        return STATUS_INVALID_PARAMETER, {}
    manager = manager_of(k)
    try:
        item = k.objects.lookup(name, case_sensitive=manager.ports.policy.case_sensitive_names)
        if item.type != SERVER_PORT_TYPE:
            raise StatusError(STATUS_OBJECT_TYPE_MISMATCH)
    except StatusError as error:
        return error.status, {}
    port: ServerPort = item.body
    if not port.security.granted(k.token_of(thread), FLT_PORT_ALL_ACCESS):
        return STATUS_ACCESS_DENIED, {}
    if port.closed:
        return STATUS_FLT_DELETING_OBJECT, {}
    what = f"a connect to '{port.name}' in progress"
    try:
        manager.acquire_rundown(port.filter, what)
    except StatusError as error:
        return error.status, {}
    result = yield from _connect(k, thread, port, (context or b"")[:context_size], synchronous)
    manager.release_rundown(port.filter, what)
    return result


def _connect(k: Kernel, thread: KThread, port: ServerPort, context: bytes, synchronous: bool) -> Model:
    """The attempt counts before the limit is tested, so of two at the last slot one wins (C12)."""
    ports = manager_of(k).ports
    port.connections += 1
    if port.connections > port.maximum_connections:
        port.connections -= 1
        return STATUS_CONNECTION_COUNT_LIMIT, {}
    connection = ports.new_connection(port, thread.process)
    status = yield from _ask_driver(k, thread, port, connection, context)
    if not nt_success(status):
        if connection.kernel_closed:
            k.violate(
                "client-port-closed-in-connect",
                f"ConnectNotify of '{port.name}' refused the connection with {status_name(status)} and has closed its client "
                "port; a refused connection is disposed of by the Filter Manager (fact C7)",
                connection.filter.driver.name,
            )
        ports.disconnect(connection, STATUS_PORT_DISCONNECTED)
        ports.release_slot(connection)
        ports.forget(connection)
        return status, {}
    connection.accepted = True
    return STATUS_SUCCESS, {"handle": _open_user_end(k, thread, connection, synchronous)}


def _ask_driver(
    k: Kernel, thread: KThread, port: ServerPort, connection: Connection, context: bytes
) -> Model:
    """Call ConnectNotify: the context is a kernel copy that goes away afterwards (C4), inside a critical region (C10)."""
    block = k.pool.allocate(len(context), "FMcc", owner="fltmgr", zero=False) if context else 0
    if block:
        k.memory.write(block, context)
    slot = k.pool.allocate(8, "FMck", owner="fltmgr")
    thread.critical_region += 1
    status: int = yield Call(
        port.connect_notify,
        (connection.object.address, port.cookie, block, len(context), slot),
        "ConnectNotify",
    )
    thread.critical_region -= 1
    connection.cookie = k.memory.u64(slot)
    k.pool.free(slot)
    if block:
        k.pool.free(block)
    return status & 0xFFFF_FFFF


def _open_user_end(k: Kernel, thread: KThread, connection: Connection, synchronous: bool) -> int:
    ports = manager_of(k).ports
    item: KObject = k.objects.create(
        PORT_FILE_TYPE,
        PortFile(connection, synchronous),
        on_last_handle=lambda: ports.close_user_end(connection),
    )
    connection.file = item
    handle = thread.process.handles.insert(HandleEntry(item, PORT_FILE_ACCESS))
    k.objects.dereference(item)
    return handle


def get_message(k: Kernel, thread: KThread, *, handle: int, size: int) -> Model:
    """FilterGetMessage. Asynchronous handle: STATUS_PENDING and an operation; synchronous: status, information, data."""
    file = _file(k, thread, handle)
    if isinstance(file, int):
        return file, {}
    if file.synchronous:
        return (yield from _locked(k, thread, file, _get_synchronously(k, thread, file, size)))
    if size == 0:
        return STATUS_INVALID_PARAMETER, {}
    if file.connection.disconnected:
        return STATUS_PORT_DISCONNECTED, {}
    manager = manager_of(k)
    request = manager.ports.new_read(file.connection, thread.process, thread, size)
    manager.operations[request.number] = request
    return STATUS_PENDING, {"operation": request.number}


def _get_synchronously(k: Kernel, thread: KThread, file: PortFile, size: int) -> Model:
    if size == 0:
        return STATUS_INVALID_PARAMETER, {}
    if file.connection.disconnected:
        return STATUS_PORT_DISCONNECTED, {}
    request = manager_of(k).ports.new_read(file.connection, thread.process, thread, size)
    yield from _wait_for(k, thread, request, None)
    return request.status, {"information": request.information, "data": request.data}


def wait_operation(k: Kernel, thread: KThread, *, operation: int, timeout: int | None) -> Model:
    """Wait for an overlapped request; `timeout` in ms. STATUS_TIMEOUT while it is pending, else its completion."""
    manager = manager_of(k)
    request = manager.operations.get(operation)
    if request is None or request.process is not thread.process:
        return STATUS_INVALID_HANDLE, {}
    yield from _wait_for(k, thread, request, None if timeout is None else timeout * 10_000)
    if request.status == STATUS_PENDING:
        return STATUS_TIMEOUT, {}
    manager.operations.pop(operation, None)
    return request.status, {"information": request.information, "data": request.data}


def _wait_for(k: Kernel, thread: KThread, request: ReadRequest, timeout: int | None) -> Model:
    if request.status != STATUS_PENDING or timeout == 0:
        return
    request.waiting.append(thread)

    def forget() -> None:
        if thread in request.waiting:
            request.waiting.remove(thread)

    outcome = yield Block(
        f"FilterGetMessage on {request.connection!r}", timeout=timeout, killable=True, on_cancel=forget
    )
    if outcome is TERMINATING:
        manager_of(k).ports.cancel(request)
    elif outcome is TIMED_OUT:
        return


def cancel(k: Kernel, thread: KThread, *, handle: int, operation: int | None = None) -> Model:
    """CancelIoEx: one request, or all of the calling process on that handle."""
    file = _file(k, thread, handle)
    if isinstance(file, int):
        return file, {}
    manager = manager_of(k)
    requests = [
        r
        for r in list(file.connection.readers)
        if r.process is thread.process and (operation is None or r.number == operation)
    ]
    cancelled = [r for r in requests if manager.ports.cancel(r)]
    return (STATUS_SUCCESS if cancelled else STATUS_NOT_FOUND), {}
    yield  # a service is a generator


def reply_message(k: Kernel, thread: KThread, *, handle: int, data: bytes, size: int) -> Model:
    """FilterReplyMessage. Facts R1 to R5."""
    file = _file(k, thread, handle)
    if isinstance(file, int):
        return file, {}
    if file.synchronous:
        return (yield from _locked(k, thread, file, _reply(k, file, data, size)))
    return (yield from _reply(k, file, data, size))


def _reply(k: Kernel, file: PortFile, data: bytes, size: int) -> Model:
    if size < MESSAGE_HEADER or len(data) < size:
        return STATUS_INVALID_PARAMETER, {}
    if file.connection.disconnected:
        return STATUS_PORT_DISCONNECTED, {}
    status, _, message_id = struct.unpack_from("<IIQ", data)
    result = manager_of(k).ports.reply(file.connection, message_id, status, data[MESSAGE_HEADER:size])
    return (STATUS_FLT_NO_WAITER_FOR_REPLY if result is None else result), {}
    yield  # a service is a generator


def send_message(
    k: Kernel,
    thread: KThread,
    *,
    handle: int,
    input: bytes | None,  # the name on the wire
    input_size: int,
    output_size: int,
    output_null: bool,
) -> Model:
    """FilterSendMessage; values: data (what the callback wrote), returned. Facts U1 to U6, M1 to M4, D4."""
    file = _file(k, thread, handle)
    if isinstance(file, int):
        return file, {}
    work = _send(k, thread, file, input, input_size, 0 if output_null else output_size)
    if file.synchronous:
        return (yield from _locked(k, thread, file, work))
    return (yield from work)


def _send(
    k: Kernel, thread: KThread, file: PortFile, data: bytes | None, size: int, output_size: int
) -> Model:
    connection = file.connection
    if connection.disconnected:
        return STATUS_PORT_DISCONNECTED, {}
    if not data or not size or len(data) < size:
        return STATUS_INVALID_PARAMETER, {}
    callback = connection.server.message_notify
    if not callback:
        return STATUS_INVALID_DEVICE_REQUEST, {}
    connection.notifying += 1
    source = _lend(k, thread, data[:size], Access.READ_WRITE)
    target = _lend(k, thread, bytes(output_size), Access.READ_WRITE) if output_size else 0
    slot = k.pool.allocate(4, "FMsl", owner="fltmgr")
    status: int = yield Call(
        callback, (connection.cookie, source, size, target, output_size, slot), "MessageNotify"
    )
    status &= 0xFFFF_FFFF
    returned = k.memory.u32(slot)
    k.pool.free(slot)
    if returned > output_size:
        k.violate(
            "message-notify-length",
            f"MessageNotify returned {returned} bytes for an output buffer of {output_size}",
            connection.filter.driver.name,
        )
        returned = output_size
    result = k.memory.read(target, returned) if target and returned else b""
    _take_back(k, source, size)
    if target:
        _take_back(k, target, output_size)
    manager_of(k).ports.message_done(connection)
    if status == STATUS_BUFFER_TOO_SMALL:
        status = STATUS_FLT_BUFFER_TOO_SMALL
    return status, {"data": result, "returned": returned}


def _lend(k: Kernel, thread: KThread, data: bytes, access: int) -> int:
    """Map bytes into the user half of the caller's address space, ending at an unmapped page."""
    process = thread.process
    count = pages(max(1, len(data)))
    base = process.user_next
    process.user_next += (count + 1) * PAGE_SIZE
    k.memory.map(base, count * PAGE_SIZE, access)
    address = base + ((count * PAGE_SIZE - len(data)) & ~7)
    k.memory.write(address, data)
    return address


def _take_back(k: Kernel, address: int, size: int) -> None:
    base = address & ~(PAGE_SIZE - 1)
    k.memory.unmap(base, pages(max(1, address - base + size)) * PAGE_SIZE)


def _file(k: Kernel, thread: KThread, handle: int) -> PortFile | int:
    """The port file of a handle, or the status that the caller returns."""
    try:
        entry = thread.process.handles.get(handle)
    except StatusError as error:
        return error.status
    if entry.object.type != PORT_FILE_TYPE:
        return STATUS_INVALID_PARAMETER
    file: PortFile = entry.object.body
    return file


def _locked(k: Kernel, thread: KThread, file: PortFile, work: Model) -> Model:
    """Run a request under the lock of a synchronous file object: one at a time, in order (G12)."""
    if file.busy is None:
        file.busy = thread
    else:
        file.queue.append(thread)
        outcome = yield Block(
            "the lock of a synchronous port handle",
            killable=True,
            on_cancel=lambda: file.queue.remove(thread),
        )
        if outcome is TERMINATING:
            work.close()
            return STATUS_CANCELLED, {}
    try:
        return (yield from work)
    finally:
        # Handed over, not just free: a newcomer must not overtake the queue.
        file.busy = file.queue.popleft() if file.queue else None
        if file.busy is not None:
            k.scheduler.wake(file.busy, None)
