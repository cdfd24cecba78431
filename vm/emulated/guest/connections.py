"""The open connections of a server, so that a restart can drop them all at once."""

from __future__ import annotations

import contextlib
import socket
import threading


class Connections:
    """A set of sockets; while suspended it takes no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._suspended = False

    def add(self, connection: socket.socket) -> bool:
        """Remember a connection; False if it must be closed at once because the guest is booting."""
        with self._lock:
            if self._suspended:
                return False
            self._sockets.add(connection)
            return True

    def remove(self, connection: socket.socket) -> None:
        """Forget a connection that is closed."""
        with self._lock:
            self._sockets.discard(connection)

    def replace(self, old: socket.socket, new: socket.socket) -> None:
        """The connection goes on under another socket object; it is cut at once if a restart came in between."""
        self.remove(old)
        if not self.add(new):
            new.shutdown(socket.SHUT_RDWR)

    def suspend(self) -> None:
        """Cut all connections and refuse new ones; their threads see the end of the stream."""
        with self._lock:
            self._suspended = True
            sockets, self._sockets = self._sockets, set()
        for connection in sockets:
            # It may have been closed by its own thread a moment ago.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def resume(self) -> None:
        """Take connections again."""
        with self._lock:
            self._suspended = False
