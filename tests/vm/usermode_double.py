"""A double of the kernel behind the user-mode services: ports, a small volume and what the Downlink driver promises.

It exists to test the services, the client library and the suites without an engine. It runs on the callers' threads
under one lock; nothing in it imitates the real kernel's timing.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vm.emulated.computer import (
    FilterInformation,
    InstanceInformation,
    MachineStoppedError,
    ServiceResult,
    VolumeInformation,
)

SUCCESS, TIMEOUT, PENDING = 0, 0x102, 0x103
NO_MORE_FILES = 0x80000006
INVALID_HANDLE, INVALID_PARAMETER, INVALID_DEVICE_REQUEST = 0xC0000008, 0xC000000D, 0xC0000010
END_OF_FILE, ACCESS_DENIED, BUFFER_TOO_SMALL = 0xC0000011, 0xC0000022, 0xC0000023
NAME_NOT_FOUND, NAME_COLLISION, PORT_DISCONNECTED = 0xC0000034, 0xC0000035, 0xC0000037
REVISION_MISMATCH, INSUFFICIENT_RESOURCES = 0xC0000059, 0xC000009A
IS_A_DIRECTORY, DIRECTORY_NOT_EMPTY, CANCELLED = 0xC00000BA, 0xC0000101, 0xC0000120
IMAGE_ALREADY_LOADED, NOT_FOUND, CONNECTION_COUNT_LIMIT = 0xC000010E, 0xC0000225, 0xC0000246
FILTER_NOT_FOUND, NO_WAITER = 0xC01C0013, 0xC01C0020

DEVICE = "\\Device\\HarddiskVolume2"
OPENED, WRITTEN, SIZE_SET, RENAMED, LINKED, DELETED, ATTRIBUTES, SECURITY, CLOSED = range(1, 10)
CONNECTED, DISCONNECTED = 16, 17


class Failure(Exception):  # noqa: N818 - a status on its way out, not an error of the double
    def __init__(self, status: int) -> None:
        self.status = status


@dataclass(eq=False)
class Request:
    key: int
    thread_id: int
    size: int
    status: int = PENDING
    information: int = 0
    data: bytes = b""


@dataclass(eq=False)
class Connection:
    """One client port, with the driver's queue for it."""

    number: int
    key: int
    process_id: int
    mask: int
    flags: int
    prefix: str
    queue_bytes: int
    message_bytes: int
    handles: int = 1
    requests: deque[Request] = field(default_factory=deque)
    queue: deque[tuple[int, bytes]] = field(default_factory=deque)
    sequence: int = 0
    dropped: tuple[int, int, int] = (0, 0, 0)
    disconnected: bool = False


@dataclass(eq=False)
class Node:
    name: str
    directory: bool
    identity: int
    data: bytearray = field(default_factory=bytearray)
    attributes: int = 0x20
    delete: bool = False
    opens: int = 0
    exclusive: bool = False


@dataclass(eq=False)
class OpenFile:
    node: Node
    position: int = 0
    written: int = 0
    delete_on_close: bool = False


@dataclass(eq=False)
class Process:
    process_id: int
    handles: dict[int, Connection | OpenFile] = field(default_factory=dict)
    operations: dict[int, Request] = field(default_factory=dict)
    restricted: set[int] = field(default_factory=set)


class KernelDouble:
    """`UserServices`, with the Downlink driver loaded. `faults` names promises that the driver shall break."""

    def __init__(self, *, faults: frozenset[str] = frozenset()) -> None:
        self.faults = faults
        self.calls: list[str] = []
        self.ended_processes: list[int] = []
        self.ended_threads: list[tuple[int, int]] = []
        self.disconnects: list[int] = []
        self.stopped = False
        self._condition = threading.Condition()
        self._processes: dict[int, Process] = {}
        self._next = 0
        self._loaded = True
        self._connections: list[Connection] = []
        self._nodes: dict[str, Node] = {}

    @property
    def connected(self) -> int:
        """Connections that the driver knows now."""
        return len(self._connections)

    # UserServices.

    def begin_process(self, process_id: int, image: str) -> int:
        with self._condition:
            key = self._number()
            self._processes[key] = Process(process_id)
            return key

    def end_process(self, key: int) -> None:
        with self._condition:
            self.ended_processes.append(key)
            process = self._processes.pop(key)
            for request in process.operations.values():
                self._finish(request, CANCELLED)
            for handle in list(process.handles):
                self._close(process, handle)
            self._condition.notify_all()

    def end_thread(self, key: int, thread_id: int) -> None:
        with self._condition:
            self.ended_threads.append((key, thread_id))
            process = self._processes[key]
            process.restricted.discard(thread_id)
            for request in process.operations.values():
                if request.thread_id == thread_id:
                    self._finish(request, CANCELLED)
            self._condition.notify_all()

    def call(self, key: int, thread_id: int, service: str, arguments: Mapping[str, Any]) -> ServiceResult:
        method: Callable[..., dict[str, Any]] = getattr(self, f"_on_{service}", None) or _unknown(service)
        with self._condition:
            if self.stopped:
                raise MachineStoppedError("the machine was stopped")
            self.calls.append(service)
            try:
                values = dict(method(self._processes[key], thread_id, **arguments))
            except Failure as failure:
                return ServiceResult(failure.status, {})
            return ServiceResult(values.pop("status", SUCCESS), values)

    def stop(self) -> None:
        with self._condition:
            self.stopped = True
            self._condition.notify_all()

    # Ports.

    def _on_connect_port(
        self,
        process: Process,
        thread: int,
        name: str,
        context: bytes | None,
        context_size: int,
        synchronous: bool,
    ) -> dict[str, Any]:
        if not self._loaded or name != "\\DownlinkPort":
            raise Failure(NAME_NOT_FOUND)
        if bool(context) != bool(context_size):
            raise Failure(INVALID_PARAMETER)
        if thread in process.restricted:
            raise Failure(ACCESS_DENIED)
        if len(self._connections) >= 8:
            raise Failure(CONNECTION_COUNT_LIMIT)
        connection = self._accept(process, context or b"")
        self._connections.append(connection)
        self._emit(
            CONNECTED, process.process_id, thread, value=connection.number, detail=len(self._connections)
        )
        return {"handle": self._handle(process, connection)}

    def _accept(self, process: Process, context: bytes) -> Connection:
        if len(context) < 32:
            raise Failure(INVALID_PARAMETER)
        magic, size, low, high, prefix, mask, flags, queue, message, interval = struct.unpack_from(
            "<IHHHHIIIII", context
        )
        if magic != 0x4B4E4C44 or size != len(context) or prefix % 2 or size != 32 + prefix:
            raise Failure(INVALID_PARAMETER)
        if not low <= 1 <= high:
            raise Failure(REVISION_MISMATCH if low <= high else INVALID_PARAMETER)
        queue, message = queue or 0x40000, message or 0x10000
        if (
            flags & ~7
            or mask & ~0x703FE
            or not 0x1000 <= queue <= 0x400000
            or not 0x400 <= message <= 0x40000
        ):
            raise Failure(INVALID_PARAMETER)
        if interval and not 100 <= interval <= 86_400_000:
            raise Failure(INVALID_PARAMETER)
        key = next(key for key, known in self._processes.items() if known is process)
        text = context[32:].decode("utf-16-le", "surrogatepass")
        return Connection(self._number(), key, process.process_id, mask, flags, text, queue, message)

    def _on_get_message(self, process: Process, thread: int, handle: int, size: int) -> dict[str, Any]:
        connection = self._port(process, handle)
        if connection.disconnected:
            raise Failure(PORT_DISCONNECTED)
        if size <= 0:
            raise Failure(INVALID_PARAMETER)
        request = Request(connection.key, thread, size)
        connection.requests.append(request)
        operation = self._number()
        process.operations[operation] = request
        self._pump(connection)
        return {"status": PENDING, "operation": operation}

    def _on_wait_operation(
        self, process: Process, thread: int, operation: int, timeout: int | None
    ) -> dict[str, Any]:
        request = process.operations[operation]
        self._wait(thread, lambda: request.status != PENDING, timeout)
        if request.status == PENDING:
            raise Failure(TIMEOUT)
        process.operations.pop(operation, None)
        return {"status": request.status, "information": request.information, "data": request.data}

    def _on_cancel(self, process: Process, thread: int, handle: int, operation: int | None) -> dict[str, Any]:
        connection = self._port(process, handle)
        wanted = (
            list(process.operations.values()) if operation is None else [process.operations.get(operation)]
        )
        found = [request for request in wanted if request is not None and request in connection.requests]
        for request in found:
            self._finish(request, CANCELLED)
        self._condition.notify_all()
        if not found:
            raise Failure(NOT_FOUND)
        return {}

    def _on_reply_message(
        self, process: Process, thread: int, handle: int, data: bytes, size: int
    ) -> dict[str, Any]:
        connection = self._port(process, handle)
        if size < 16:
            raise Failure(INVALID_PARAMETER)
        raise Failure(PORT_DISCONNECTED if connection.disconnected else NO_WAITER)

    def _on_send_message(
        self,
        process: Process,
        thread: int,
        handle: int,
        input: bytes | None,
        input_size: int,
        output_size: int,
        output_null: bool,
    ) -> dict[str, Any]:
        connection = self._port(process, handle)
        if connection.disconnected:
            raise Failure(PORT_DISCONNECTED)
        if "two-way" in self.faults:
            return {"data": bytes(0 if output_null else min(output_size, 4)), "returned": 0}
        raise Failure(INVALID_DEVICE_REQUEST if input and input_size else INVALID_PARAMETER)

    def _on_duplicate(self, process: Process, thread: int, handle: int) -> dict[str, Any]:
        connection = self._port(process, handle)
        connection.handles += 1
        return {"handle": self._handle(process, connection)}

    def _on_close(self, process: Process, thread: int, handle: int) -> dict[str, Any]:
        if handle not in process.handles:
            raise Failure(INVALID_HANDLE)
        self._close(process, handle)
        self._condition.notify_all()
        return {}

    # The Filter Manager.

    def _on_filter_load(self, process: Process, thread: int, name: str) -> dict[str, Any]:
        if name != "Downlink":
            raise Failure(NAME_NOT_FOUND)
        if self._loaded:
            raise Failure(IMAGE_ALREADY_LOADED)
        self._loaded = True
        return {}

    def _on_filter_unload(self, process: Process, thread: int, name: str) -> dict[str, Any]:
        if not self._loaded or name != "Downlink":
            raise Failure(FILTER_NOT_FOUND)
        self._loaded = False
        for connection in list(self._connections):
            self._disconnect(connection, reason=2)
        self._condition.notify_all()
        return {}

    def _on_list_filters(self, process: Process, thread: int) -> dict[str, Any]:
        loaded = [FilterInformation("Downlink", "385100.7", 1)] if self._loaded else []
        return {"filters": loaded}

    def _on_list_instances(self, process: Process, thread: int) -> dict[str, Any]:
        loaded = [InstanceInformation("Downlink Instance", "Downlink", "D:", "385100.7")]
        return {"instances": loaded if self._loaded else []}

    def _on_list_volumes(self, process: Process, thread: int) -> dict[str, Any]:
        return {"volumes": [VolumeInformation("D:", DEVICE, "NTFS")]}

    def _on_impersonate(self, process: Process, thread: int, level: str) -> dict[str, Any]:
        (process.restricted.add if level == "restricted" else process.restricted.discard)(thread)
        return {}

    # Files.

    def _on_create_file(
        self,
        process: Process,
        thread: int,
        path: str,
        access: int,
        share: int,
        disposition: int,
        options: int,
        attributes: int,
    ) -> dict[str, Any]:
        if "io-hangs" in self.faults:
            self._wait(thread, lambda: False, None)
        path = _dos(path)
        try:
            node, information = self._open(path, disposition, options, attributes)
        except Failure as failure:
            self._emit(OPENED, process.process_id, thread, path, status=failure.status, failed=True)
            raise
        node.opens += 1
        node.exclusive = share == 0
        opened = OpenFile(node, delete_on_close=bool(options & 0x1000))
        self._emit(OPENED, process.process_id, thread, path, detail=information, node=node)
        return {"handle": self._handle(process, opened), "information": information}

    def _open(self, path: str, disposition: int, options: int, attributes: int) -> tuple[Node, int]:
        node = self._nodes.get(path.upper())
        parent = path.rpartition("\\")[0]
        if len(path) > 3 and len(parent) > 2 and parent.upper() not in self._nodes:
            raise Failure(0xC000003A)
        if node is None:
            if disposition in (1, 4):
                raise Failure(NAME_NOT_FOUND)
            node = Node(path, bool(options & 1), self._number(), attributes=attributes | 0x20)
            if node.directory:
                node.attributes = 0x10
            self._nodes[path.upper()] = node
            return node, 2
        if disposition == 2:
            raise Failure(NAME_COLLISION)
        if node.delete or node.exclusive:
            raise Failure(0xC0000056 if node.delete else 0xC0000043)
        if node.directory and options & 0x40:
            raise Failure(IS_A_DIRECTORY)
        if disposition in (0, 4, 5):
            node.data.clear()
        return node, {0: 0, 4: 3, 5: 3}.get(disposition, 1)

    def _on_read_file(
        self, process: Process, thread: int, handle: int, offset: int | None, length: int
    ) -> dict[str, Any]:
        opened = self._file(process, handle)
        start = opened.position if offset is None else offset
        data = bytes(opened.node.data[start : start + length])
        if not data and length:
            raise Failure(END_OF_FILE)
        opened.position = start + len(data)
        return {"data": data}

    def _on_write_file(
        self, process: Process, thread: int, handle: int, offset: int | None, data: bytes
    ) -> dict[str, Any]:
        opened = self._file(process, handle)
        start = opened.position if offset is None else offset
        content = opened.node.data
        content.extend(bytes(max(0, start + len(data) - len(content))))
        content[start : start + len(data)] = data
        opened.position = start + len(data)
        opened.written += len(data)
        self._emit(WRITTEN, process.process_id, thread, opened.node.name, value=len(data), node=opened.node)
        return {"written": len(data)}

    def _on_set_information(
        self, process: Process, thread: int, handle: int, data: bytes, **rest: int
    ) -> dict[str, Any]:
        opened, information_class = self._file(process, handle), rest["class"]
        node, who = opened.node, (process.process_id, thread)
        if information_class in (10, 11):
            (length,) = struct.unpack_from("<I", data, 0x10)
            target = _dos(data[0x14 : 0x14 + length].decode("utf-16-le", "surrogatepass"))
            if target.upper() in self._nodes and self._nodes[target.upper()] is not node and not data[0]:
                kind = RENAMED if information_class == 10 else LINKED
                self._emit(kind, *who, node.name, second=target, status=NAME_COLLISION, failed=True)
                raise Failure(NAME_COLLISION)
            before = node.name
            if information_class == 10:
                self._rename(node, target)
            else:
                # The same bytes under a second name; that is all that the suites ask of a link here.
                self._nodes[target.upper()] = Node(target, node.directory, node.identity, node.data)
            self._emit(RENAMED if information_class == 10 else LINKED, *who, before, second=target, node=node)
        elif information_class in (13, 64):
            if node.directory and any(n.startswith(node.name.upper() + "\\") for n in self._nodes):
                raise Failure(DIRECTORY_NOT_EMPTY)
            node.delete = bool(data[0] & 1)
        elif information_class == 20:
            (size,) = struct.unpack("<q", data)
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
            self._emit(SIZE_SET, *who, node.name, value=size, detail=1, node=node)
        elif information_class == 4:
            *times, attributes = struct.unpack_from("<qqqqI", data)
            what = sum(
                bit for bit, value in zip((1, 2, 4, 8, 16), (*times, attributes), strict=True) if value
            )
            node.attributes = attributes or node.attributes
            self._emit(ATTRIBUTES, *who, node.name, value=attributes, detail=what, node=node)
        else:
            raise Failure(0xC0000003)
        return {}

    def _on_query_information(
        self, process: Process, thread: int, handle: int, length: int, **rest: int
    ) -> dict[str, Any]:
        node = self._file(process, handle).node
        if rest["class"] == 5:
            size = len(node.data)
            return {"data": struct.pack("<qqIBB2x", size, size, 1, node.delete, node.directory)}
        return {"data": struct.pack("<qqqqI4x", 1, 1, 1, 1, node.attributes)}

    def _on_query_directory(
        self, process: Process, thread: int, handle: int, pattern: str | None, restart: bool
    ) -> dict[str, Any]:
        if not restart:
            raise Failure(NO_MORE_FILES)
        below = self._file(process, handle).node.name.upper() + "\\"
        found = {
            n: node for n, node in self._nodes.items() if n.startswith(below) and "\\" not in n[len(below) :]
        }
        return {
            "entries": [
                (node.name.rpartition("\\")[2], node.attributes, len(node.data), node.identity)
                for node in found.values()
            ]
        }

    def _on_flush(self, process: Process, thread: int, handle: int) -> dict[str, Any]:
        self._file(process, handle)
        return {}

    def _on_set_security(
        self, process: Process, thread: int, handle: int, information: int, descriptor: bytes
    ) -> dict[str, Any]:
        node = self._file(process, handle).node
        self._emit(SECURITY, process.process_id, thread, node.name, value=information, node=node)
        return {}

    def _rename(self, node: Node, target: str) -> None:
        old, new = node.name.upper(), target.upper()
        for name in [n for n in self._nodes if n == old or n.startswith(old + "\\")]:
            moved = self._nodes.pop(name)
            moved.name = target + moved.name[len(old) :]
            self._nodes[new + name[len(old) :]] = moved

    # The driver.

    def _emit(
        self,
        kind: int,
        process_id: int,
        thread_id: int,
        path: str = "",
        *,
        second: str = "",
        value: int = 0,
        detail: int = 0,
        status: int = 0,
        failed: bool = False,
        node: Node | None = None,
    ) -> None:
        path, second = (_device(name).encode("utf-16-le", "surrogatepass") for name in (path, second))
        for connection in list(self._connections):
            if not connection.mask & 1 << kind or connection.disconnected:
                continue
            if kind < CONNECTED:
                own = process_id == connection.process_id and not connection.flags & 2
                if (own and "own-records" not in self.faults) or (failed and not connection.flags & 1):
                    continue
                prefix = connection.prefix.upper()
                if not path.decode("utf-16-le", "surrogatepass").upper().startswith(prefix):
                    continue
            size = 72 + len(path) + len(second)
            sequence = self._sequence(connection)
            record = struct.pack(
                "<IHHQqIIiIQ16sHHHH",
                -size % 8 + size,
                kind,
                (1 if node is not None and node.directory else 0) | (8 if node is not None else 0),
                sequence,
                time.time_ns() // 100 + 116444736000000000,
                process_id,
                thread_id & 0xFFFFFFFF,
                status - (status >> 31 << 32),
                detail,
                value,
                (node.identity if node is not None else 0).to_bytes(16, "little"),
                len(path),
                len(second),
                len(DEVICE) * 2 if path else 0,
                0,
            )
            self._enqueue(connection, sequence, record + path + second + bytes(-size % 8))
            self._pump(connection)
        self._condition.notify_all()

    def _sequence(self, connection: Connection) -> int:
        counter = self._connections[0] if "shared-queue" in self.faults else connection
        counter.sequence += 1
        return counter.sequence

    def _enqueue(self, connection: Connection, sequence: int, record: bytes) -> None:
        held = sum(len(queued) for _, queued in connection.queue)
        while connection.queue and held + len(record) > connection.queue_bytes:
            if "silent-drops" in self.faults:
                return
            if not connection.flags & 4:
                self._drop(connection, sequence)
                return
            oldest, queued = connection.queue.popleft()
            held -= len(queued)
            self._drop(connection, oldest)
        connection.queue.append((sequence, record))

    def _drop(self, connection: Connection, sequence: int) -> None:
        count, first, last = connection.dropped
        connection.dropped = (count + 1, min(first or sequence, sequence), max(last, sequence))

    def _pump(self, connection: Connection) -> None:
        """Send what is queued, as the worker thread of the connection does."""
        while connection.requests and (connection.queue or connection.dropped[0]):
            records: list[bytes] = []
            size = 32
            while connection.queue and size + len(connection.queue[0][1]) <= connection.message_bytes:
                records.append(connection.queue.popleft()[1])
                size += len(records[-1])
            message = struct.pack("<IHHQQQ", size, 1, len(records), *connection.dropped) + b"".join(records)
            connection.dropped = (0, 0, 0)
            request = next((r for r in connection.requests if r.size >= size + 16), None)
            if request is None:
                small = connection.requests[0]
                small.information = size + 16
                self._finish(small, BUFFER_TOO_SMALL)
                for record in reversed(records):
                    connection.queue.appendleft((0, record))
                continue
            request.data = bytes(16) + message
            request.information = len(request.data)
            self._finish(request, SUCCESS)
        self._condition.notify_all()

    def _disconnect(self, connection: Connection, *, reason: int) -> None:
        if connection.disconnected:
            return
        connection.disconnected = True
        for request in list(connection.requests):
            self._finish(request, PORT_DISCONNECTED)
        if "no-close-client-port" in self.faults and reason == 1:
            return
        self.disconnects.append(connection.number)
        self._connections.remove(connection)
        self._emit(DISCONNECTED, connection.process_id, 0, value=connection.number, detail=reason)

    # Handles.

    def _close(self, process: Process, handle: int) -> None:
        match process.handles.pop(handle):
            case Connection() as connection:
                connection.handles -= 1
                if not connection.handles:
                    self._disconnect(connection, reason=1)
            case OpenFile() as opened:
                node = opened.node
                node.opens -= 1
                node.exclusive = False
                node.delete = node.delete or opened.delete_on_close
                who = (process.process_id, 0, node.name)
                if opened.written:
                    self._emit(CLOSED, *who, value=opened.written, detail=1 << WRITTEN, node=node)
                if node.delete and not node.opens:
                    for name in [n for n, known in self._nodes.items() if known is node]:
                        del self._nodes[name]
                    self._emit(DELETED, *who, node=node)

    def _finish(self, request: Request, status: int) -> None:
        if request.status == PENDING:
            request.status = status
            for connection in self._connections:
                if request in connection.requests:
                    connection.requests.remove(request)
            self._condition.notify_all()

    def _wait(self, thread: int, done: Callable[[], bool], milliseconds: int | None) -> None:
        self._condition.wait_for(
            lambda: done() or self.stopped or any(ended == thread for _, ended in self.ended_threads),
            None if milliseconds is None else milliseconds / 1000,
        )
        if self.stopped:
            raise MachineStoppedError("the machine was stopped")

    def _handle(self, process: Process, target: Connection | OpenFile) -> int:
        handle = self._number() * 4
        process.handles[handle] = target
        return handle

    def _port(self, process: Process, handle: int) -> Connection:
        found = process.handles.get(handle)
        if not isinstance(found, Connection):
            raise Failure(INVALID_HANDLE)
        return found

    def _file(self, process: Process, handle: int) -> OpenFile:
        found = process.handles.get(handle)
        if not isinstance(found, OpenFile):
            raise Failure(INVALID_HANDLE)
        return found

    def _number(self) -> int:
        self._next += 1
        return self._next


def _unknown(service: str) -> Callable[..., dict[str, Any]]:
    raise KeyError(service)


def _dos(path: str) -> str:
    return path.removeprefix("\\??\\").replace(DEVICE, "D:", 1)


def _device(path: str) -> str:
    return DEVICE + path[2:] if path[1:2] == ":" else path
