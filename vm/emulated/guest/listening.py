"""What the guest's servers have in common: a port on 127.0.0.1 that opens, moves, falls silent and closes."""

from __future__ import annotations

import logging
import os
import socketserver
import threading
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from vm.emulated.guest.chaos.plan import Chaos
from vm.emulated.guest.connections import Connections
from vm.errors import MachineError

log = logging.getLogger(__name__)

_STOP_DEADLINE_SECONDS = 10.0


class ConnectionServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One thread per connection; all connections can be cut at once.

    Subclasses set `name` ("WinRM", as messages show it) and `door` (as faults call it: "winrm" or "ssh").
    """

    name = ""
    door = ""
    daemon_threads = True
    block_on_close = False
    # On Windows the option would let another process take the port over.
    allow_reuse_address = os.name == "posix"
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: Any, chaos: Chaos) -> None:
        self.chaos = chaos
        self.connections = Connections()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.chaos.refuses_connection(self.door) and self.connections.add(request):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def close_request(self, request: Any) -> None:
        self.connections.remove(request)
        super().close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A dropped connection is daily life; anything else is logged with its traceback.
        log.debug("a %s connection ended with an error", self.name, exc_info=True)


_Server = TypeVar("_Server", bound=ConnectionServer)


class Listening(ABC, Generic[_Server]):
    """A server of the guest, from `start` to `stop`.

    Args:
        name: "WinRM" or "SSH".
        port: TCP port on 127.0.0.1, 0 = any free one.
    """

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _bind(self, address: tuple[str, int]) -> _Server:
        """The server, bound to that address; OSError if the port is in use."""

    @property
    def port(self) -> int:
        """The port it listens on; 0 when it does not."""
        return int(self._server.server_address[1]) if self._server else 0

    def move(self) -> None:
        """Close, and listen on another port that is free; suspended until `resume`."""
        old = self.port
        self.stop()
        self._port = 0
        self.start(suspended=True)
        if self.port == old:
            self.move()

    def start(self, *, suspended: bool = False) -> None:
        """Bind and serve; MachineError if the port is in use or a file that is needed cannot be read."""
        port = self._port
        try:
            self._server = self._bind(("127.0.0.1", port))
        except OSError as error:
            raise MachineError(
                f"the {self._name} port {port} of the emulated machine cannot be opened: {error.strerror or error}",
                hint="stop what listens there, or let the machine take any free port",
            ) from error
        if suspended:
            self._server.connections.suspend()
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.05},
            daemon=True,
            name=f"guest {self._name}",
        )
        self._thread.start()

    def suspend(self) -> None:
        """Close all connections, and new ones at once, until `resume`: the machine is booting."""
        if self._server:
            self._server.connections.suspend()

    def resume(self) -> None:
        """Serve again."""
        if self._server:
            self._server.connections.resume()

    def stop(self) -> None:
        """Close everything; idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        server.connections.suspend()
        if self._thread is not None:
            self._thread.join(_STOP_DEADLINE_SECONDS)
