"""The user-mode services on TCP: one control connection per client process, one connection per client thread.

It knows `vm.emulated.computer.UserServices` and nothing else of the machine. A client that ends, however it ends, is
ended in the kernel exactly once; a thread that gives up waiting is ended although its service still runs.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import secrets
import selectors
import socket
import threading
import time
from typing import Any, Final, Self

from vm.emulated.computer import MachineStoppedError, UserServices
from vm.emulated.usermode.framing import (
    FIRST_FRAME_BYTES_MAXIMUM,
    FrameReader,
    MalformedFrameError,
    Request,
    encode,
)
from vm.emulated.usermode.values import plain
from vm.errors import MachineError

_LOG: Final = logging.getLogger(__name__)
_HELLO_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 5.0
_HANGUP_CHECK_SECONDS: Final = 0.2


class ClientProcess:
    """One client process. `ended` is set once, by whoever sees first that it is gone."""

    def __init__(self, key: int, process_id: int) -> None:
        self.key = key
        self.process_id = process_id
        self._ended = False
        self._lock = threading.Lock()
        self._threads: dict[int, ClientThread] = {}

    @property
    def ended(self) -> bool:
        return self._ended

    def mark_ended(self) -> bool:
        """True for the first caller only: it is the one who tells the kernel."""
        with self._lock:
            first, self._ended = not self._ended, True
            return first

    def add(self, thread: ClientThread) -> bool:
        """Take a new thread in; False if the process has ended or knows a thread of that id."""
        with self._lock:
            if self._ended or thread.thread_id in self._threads:
                return False
            self._threads[thread.thread_id] = thread
            return True

    def remove(self, thread: ClientThread) -> None:
        """Forget a thread whose connection has been closed."""
        with self._lock:
            self._threads.pop(thread.thread_id, None)

    def threads(self) -> list[ClientThread]:
        """Those that are connected now."""
        with self._lock:
            return list(self._threads.values())


class ClientThread:
    """One thread of a client process, and when the service that it runs now began."""

    def __init__(self, process: ClientProcess, thread_id: int, connection: socket.socket) -> None:
        self.process = process
        self.thread_id = thread_id
        self.connection = connection
        self.busy_since: float | None = None
        self._ended = False
        self._lock = threading.Lock()

    def mark_ended(self) -> bool:
        """True for the first caller only."""
        with self._lock:
            first, self._ended = not self._ended, True
            return first

    @property
    def ended(self) -> bool:
        return self._ended


class UserModeServer:
    """Serves client processes on 127.0.0.1 until `stop`.

    Args:
        services: what the clients ask of.
        port: 0 for a free one.
        token: what a client must present; made at random when not given. It appears in no log and no repr.
    """

    def __init__(self, services: UserServices, *, port: int = 0, token: str | None = None) -> None:
        self._services = services
        self._wanted_port = port
        self._token = token or secrets.token_urlsafe(24)
        self._listener: socket.socket | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._processes: dict[int, ClientProcess] = {}
        self._connections: set[socket.socket] = set()
        self._workers: set[threading.Thread] = set()
        self._acceptor: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"UserModeServer(port={self._listener.getsockname()[1] if self._listener else None})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Port the server listens on; raises `MachineError` before `start`."""
        if self._listener is None:
            raise MachineError("the user-mode services are not running")
        return int(self._listener.getsockname()[1])

    @property
    def environment(self) -> str:
        """Value of `DOWNLINK_EMULATED` for client processes. It holds the token: never log it."""
        return f"127.0.0.1:{self.port}:{self._token}"

    @property
    def process_count(self) -> int:
        """Client processes that are connected now."""
        with self._lock:
            return len(self._processes)

    def start(self) -> None:
        """Bind and accept; returns when clients can connect.

        Raises:
            MachineError: the port is in use.
        """
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.bind(("127.0.0.1", self._wanted_port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise MachineError(
                f"port {self._wanted_port} for the user-mode services cannot be used",
                hint="let the machine choose a free port, or end the program that has it",
                causes=(error,),
            ) from error
        self._listener = listener
        self._acceptor = self._spawn(self._accept, "user-mode accept", listener)
        self._spawn(self._watch_for_hangups, "user-mode hang-ups")

    def stop(self) -> None:
        """End every process and thread, close all connections and wait for the threads that served them. Idempotent.

        It returns after some seconds also if the kernel does not come back from an end; that is logged.
        """
        self._stopping.set()
        if self._listener is not None:
            # Closing a listener does not wake its `accept` on every system; a last client does.
            with contextlib.suppress(OSError):
                socket.create_connection(self._listener.getsockname(), timeout=1).close()
            _close(self._listener)
            if self._acceptor is not None:
                self._acceptor.join(_STOP_SECONDS)
        with self._lock:
            processes = list(self._processes.values())
        # In threads of their own: a driver that hangs in its disconnect callback must not keep the machine from ending.
        for process in processes:
            self._spawn(self._end_process, "user-mode end of process", process)
        with self._lock:
            connections, workers = list(self._connections), list(self._workers)
        for connection in connections:
            _shut_down(connection)
        until = time.monotonic() + _STOP_SECONDS
        for worker in workers:
            if worker is not threading.current_thread():
                worker.join(max(0.0, until - time.monotonic()))
                if worker.is_alive():
                    _LOG.error("thread '%s' did not end within %g s", worker.name, _STOP_SECONDS)

    # Connections.

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                if self._stopping.is_set():
                    return
                _LOG.exception("accepting a client failed")
                continue
            if self._stopping.is_set():
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(connection)
            self._spawn(self._serve, "user-mode client", connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            reader = FrameReader(connection)
            connection.settimeout(_HELLO_SECONDS)
            hello = reader.read(header_bytes_maximum=FIRST_FRAME_BYTES_MAXIMUM, body_bytes_maximum=0)
            connection.settimeout(None)
            if hello is None:
                return
            if not self._token_matches(hello.arguments.get("token")):
                _refuse(connection, "access-denied", "the token is wrong")
                return
            match hello:
                case Request("control", {"process_id": int() as process_id, "image": str() as image}):
                    self._serve_process(connection, reader, process_id, image)
                case Request("thread", {"key": int() as key, "thread_id": int() as thread_id}):
                    self._serve_thread(connection, reader, key, thread_id)
                case _:
                    _refuse(connection, "malformed", "the first request is neither 'control' nor 'thread'")
        except MalformedFrameError as error:
            _refuse(connection, "malformed", str(error))
        except (MachineStoppedError, OSError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            _close(connection)

    def _serve_process(
        self, connection: socket.socket, reader: FrameReader, process_id: int, image: str
    ) -> None:
        process = ClientProcess(self._services.begin_process(process_id, image), process_id)
        with self._lock:
            self._processes[process.key] = process
        try:
            if self._stopping.is_set():
                return
            connection.sendall(encode(0, {"key": process.key}))
            # Nothing more is said on this connection; whatever comes, its end above all, is the end of the process.
            if reader.read() is not None:
                _refuse(connection, "malformed", "a control connection takes no requests")
        finally:
            self._end_process(process)

    def _serve_thread(self, connection: socket.socket, reader: FrameReader, key: int, thread_id: int) -> None:
        with self._lock:
            process = self._processes.get(key)
        if process is None:
            _refuse(connection, "no-such-process", "the process is not connected")
            return
        thread = ClientThread(process, thread_id, connection)
        if not process.add(thread):
            _refuse(
                connection, "no-such-process", "the process has ended, or the thread is connected already"
            )
            return
        try:
            connection.sendall(encode(0, {}))
            while not (process.ended or thread.ended):
                request = reader.read()
                # A killed process may leave a request behind in the socket: it is dead, nothing is run for it.
                if request is None or process.ended:
                    return
                thread.busy_since = time.monotonic()
                answer = self._run(thread, request)
                thread.busy_since = None
                connection.sendall(answer)
        finally:
            thread.busy_since = None
            process.remove(thread)
            self._end_thread(thread)

    def _run(self, thread: ClientThread, request: Request) -> bytes:
        try:
            result = self._services.call(
                thread.process.key, thread.thread_id, request.service, request.arguments
            )
            return encode(result.status, {name: plain(value) for name, value in result.values.items()})
        except MachineStoppedError as error:
            return encode(None, {"error": "machine-stopped", "message": str(error)})
        except KeyError as error:
            return encode(None, {"error": "unknown", "message": f"no service or argument {error}"})
        except Exception as error:  # noqa: BLE001 - the edge: a client must get an answer whatever goes wrong here
            if not (thread.ended or thread.process.ended):
                _LOG.exception("service '%s' failed", request.service)
            return encode(None, {"error": "internal", "message": f"{type(error).__name__}: {error}"})

    # Ends.

    def _end_process(self, process: ClientProcess) -> None:
        if not process.mark_ended():
            return
        try:
            self._services.end_process(process.key)
        except MachineStoppedError:
            pass
        finally:
            with self._lock:
                self._processes.pop(process.key, None)
            for thread in process.threads():
                _shut_down(thread.connection)

    def _end_thread(self, thread: ClientThread) -> None:
        # The end of the process ends its threads; ending one of them after it would name a process that is gone.
        if not thread.mark_ended() or thread.process.ended:
            return
        with contextlib.suppress(MachineStoppedError, KeyError):
            self._services.end_thread(thread.process.key, thread.thread_id)

    def _watch_for_hangups(self) -> None:
        """Notice clients that hang up while their service runs: nobody reads their connection then."""
        while not self._stopping.wait(_HANGUP_CHECK_SECONDS):
            before = time.monotonic() - _HANGUP_CHECK_SECONDS
            with self._lock:
                processes = list(self._processes.values())
            waiting = [
                thread
                for process in processes
                for thread in process.threads()
                if thread.busy_since is not None and thread.busy_since < before and not thread.ended
            ]
            for thread in _hung_up(waiting):
                self._end_thread(thread)

    def _token_matches(self, presented: Any) -> bool:
        return isinstance(presented, str) and hmac.compare_digest(presented.encode(), self._token.encode())

    def _spawn(self, target: Any, name: str, *arguments: Any) -> threading.Thread:
        def run() -> None:
            try:
                target(*arguments)
            finally:
                with self._lock:
                    self._workers.discard(worker)

        worker = threading.Thread(target=run, name=name, daemon=True)
        # Started under the lock: `stop` joins what is in the set, and only a started thread can be joined.
        with self._lock:
            self._workers.add(worker)
            worker.start()
        return worker


def _hung_up(threads: list[ClientThread]) -> list[ClientThread]:
    """Those whose peer has closed: readable, and nothing to read."""
    if not threads:
        return []
    with selectors.DefaultSelector() as selector:
        for thread in threads:
            try:
                selector.register(thread.connection, selectors.EVENT_READ, thread)
            except (ValueError, OSError):
                continue
        return [key.data for key, _ in selector.select(timeout=0) if _at_end(key.data.connection)]


def _at_end(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def _refuse(connection: socket.socket, error: str, message: str) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(encode(None, {"error": error, "message": message}))


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _close(connection: socket.socket) -> None:
    _shut_down(connection)
    connection.close()
