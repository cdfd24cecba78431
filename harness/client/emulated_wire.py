"""The client's end of the emulated machine's user-mode services: frames, and one connection per thread.

A frame is two little-endian 32-bit lengths, a JSON header and a binary body. The header is a list of three: for a
request the service, its arguments and the names and lengths of the byte strings that follow in the body; for an
answer the NTSTATUS, the values and the byte strings. `vm/emulated/usermode/framing.py` is the other end; neither room
may import the other, so a test holds them together.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness.client.errors import MachineGoneError, OperationTimeoutError

CONNECT_SECONDS: Final = 10.0
_LENGTHS: Final = struct.Struct("<II")
_FIRST_SPARE_THREAD_ID: Final = 1 << 24
"""Above every native thread id of Linux (2^22); used when an id was used before in this process."""


class ServiceRefusedError(RuntimeError):
    """The emulated machine did not understand a request: client library and machine do not belong together."""


def encode(head: object, arguments: Mapping[str, Any]) -> bytes:
    """One frame: `head` (service or status) and the arguments, whose byte strings go into the body."""
    plain: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    body: list[bytes] = []
    for name, value in arguments.items():
        if isinstance(value, (bytes, bytearray, memoryview)):
            lengths[name] = len(value)
            body.append(bytes(value))
        else:
            plain[name] = value
    header = json.dumps([head, plain, lengths], separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(header), sum(lengths.values())), header, *body))


class Connection:
    """One TCP connection to the machine; used by one thread."""

    def __init__(self, host: str, port: int) -> None:
        try:
            self.socket = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except OSError as error:
            raise MachineGoneError(
                f"the emulated machine does not answer on {host}:{port}: {error}"
            ) from error
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    def request(
        self, head: str, arguments: Mapping[str, Any], *, seconds: float | None
    ) -> tuple[int, dict[str, Any]]:
        """Send one frame and wait for its answer: the status and the values, byte strings put back in.

        Raises:
            OperationTimeoutError: no answer within `seconds`; the connection is then closed, which ends the emulated
                thread, because an answer that came later would be taken for that of another request.
            MachineGoneError: the machine ended.
            ServiceRefusedError: it did not understand.
        """
        try:
            self.socket.settimeout(seconds)
            self.socket.sendall(encode(head, arguments))
            header_length, body_length = _LENGTHS.unpack(self._take(_LENGTHS.size))
            status, values, lengths = json.loads(self._take(header_length))
            for name, length in lengths.items():
                values[name] = self._take(length)
                body_length -= length
        except TimeoutError:
            self.close()
            raise OperationTimeoutError(
                f"'{head}' was not answered within {seconds:g} s: something in the kernel waits that should not"
            ) from None
        except OSError as error:
            self.close()
            raise MachineGoneError(f"the emulated machine ended while '{head}' ran: {error}") from error
        except BaseException:
            # Ctrl-C in the middle of an answer: what follows on this connection could not be understood any more.
            self.close()
            raise
        if status is None:
            if values.get("error") == "machine-stopped":
                self.close()
                raise MachineGoneError(f"the emulated machine ended while '{head}' ran")
            raise ServiceRefusedError(f"the emulated machine refused '{head}': {values.get('message')}")
        return status, values

    def close(self) -> None:
        """Close the socket; the machine then ends what it stood for (a thread, or the process)."""
        with contextlib.suppress(OSError):
            self.socket.close()

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0

    def __del__(self) -> None:
        if hasattr(self, "socket"):
            self.close()

    def _take(self, length: int) -> bytes:
        buffer = self._buffer
        while len(buffer) < length:
            received = self.socket.recv(max(65536, length - len(buffer)))
            if not received:
                raise ConnectionResetError("the connection was closed")
            buffer += received
        taken = bytes(memoryview(buffer)[:length])
        del buffer[:length]
        return taken


class Session:
    """This process as the emulated machine knows it: a control connection, and one connection per thread.

    A forked child is another process: it forgets what it inherited, without shutting its parent's connections down.
    """

    def __init__(self, address: str) -> None:
        self._host, self._port, self._token = parse_address(address)
        self._lock = threading.Lock()
        self._reset()
        if hasattr(os, "register_at_fork"):
            reference = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _forget(reference))

    def __repr__(self) -> str:
        return f"Session({self._host}:{self._port})"

    def call(
        self, service: str, arguments: Mapping[str, Any], *, seconds: float | None
    ) -> tuple[int, dict[str, Any]]:
        """Run one service on the calling thread's own connection; see `Connection.request`."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            connection = self._open_thread()
        return connection.request(service, arguments, seconds=seconds)

    def close(self) -> None:
        """End the process as far as the machine can see it: its handles are closed."""
        with self._lock:
            for connection in list(self._connections):
                connection.close()
            if self._control is not None:
                self._control.close()
            self._reset()

    def _reset(self) -> None:
        self._control: Connection | None = None
        self._key = 0
        self._local = threading.local()
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._used: set[int] = set()
        self._spare: Iterator[int] = itertools.count(_FIRST_SPARE_THREAD_ID)

    def _open_thread(self) -> Connection:
        with self._lock:
            if self._control is None:
                control = Connection(self._host, self._port)
                image = Path(sys.executable).name or "python"
                identity = {"token": self._token, "process_id": os.getpid(), "image": image}
                _, values = control.request("control", identity, seconds=CONNECT_SECONDS)
                self._key = values["key"]
                self._control = control
            thread_id = threading.get_native_id()
            if thread_id in self._used:
                thread_id = next(self._spare)
            self._used.add(thread_id)
            connection = Connection(self._host, self._port)
            self._connections.add(connection)
            key = self._key
        hello = {"token": self._token, "key": key, "thread_id": thread_id}
        connection.request("thread", hello, seconds=CONNECT_SECONDS)
        self._local.connection = connection
        self._local.thread_id = thread_id
        return connection

    @property
    def thread_id(self) -> int:
        """The calling thread's id as the machine knows it; the connection is opened if need be."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None or connection.closed:
            self._open_thread()
        thread_id: int = self._local.thread_id
        return thread_id


def parse_address(address: str) -> tuple[str, int, str]:
    """Host, port and token out of `127.0.0.1:<port>:<token>`.

    Raises:
        ValueError: it is not of that form. The message does not repeat the value, because it holds a secret.
    """
    host, _, rest = address.partition(":")
    port, _, token = rest.partition(":")
    if host != "127.0.0.1" or not port.isdigit() or not 0 < int(port) < 65536 or not token:
        raise ValueError("'DOWNLINK_EMULATED' must read 127.0.0.1:<port>:<token>")
    return host, int(port), token


def _forget(reference: weakref.ref[Session]) -> None:
    session = reference()
    if session is None:
        return
    # The parent may have been forked while another of its threads held the lock; nobody holds the child's.
    session._lock = threading.Lock()
    for connection in list(session._connections):
        connection.close()
    if session._control is not None:
        session._control.close()
    session._reset()
