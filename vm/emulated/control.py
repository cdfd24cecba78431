"""The control channel between a machine's process and the harness on the same host: state, condition, stop.

JSON over an authenticated loopback connection (`multiprocessing.connection`, HMAC with the machine's key).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from vm.errors import MachineError

Handler = Callable[[], Any]


class ControlServer:
    """Answers verbs of a machine's process on 127.0.0.1; one request per connection."""

    def __init__(self, key: bytes, handlers: dict[str, Handler]) -> None:
        self._key = key
        self._handlers = handlers
        self._listener = Listener(("127.0.0.1", 0), authkey=key)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._closed = False

    @property
    def port(self) -> int:
        address = self._listener.address
        assert isinstance(address, tuple)
        return int(address[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        if not self._thread.is_alive():
            # Nobody accepts: a connection to wake it up would wait for ever.
            self._listener.close()
            return
        with suppress(OSError, AuthenticationError, EOFError):
            Client(("127.0.0.1", self.port), authkey=self._key).close()
        self._listener.close()

    def _serve(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except (OSError, AuthenticationError, EOFError):
                continue
            threading.Thread(
                target=self._answer, args=(connection,), name="control request", daemon=True
            ).start()

    def _answer(self, connection: Connection[Any, Any]) -> None:
        with suppress(OSError, EOFError), connection:
            verb = connection.recv_bytes(1024).decode("utf-8", "replace")
            handler = self._handlers.get(verb)
            result = handler() if handler is not None else {"error": f"unknown verb '{verb}'"}
            connection.send_bytes(json.dumps(result).encode())


def ask(port: int, key: bytes, verb: str) -> Any:
    """Ask a machine's process.

    Raises:
        MachineError: nobody answers there, or with another key.
    """
    try:
        with Client(("127.0.0.1", port), authkey=key) as connection:
            connection.send_bytes(verb.encode())
            return json.loads(connection.recv_bytes())
    except (OSError, EOFError, AuthenticationError) as error:
        raise MachineError("the process of the emulated machine does not answer", causes=[error]) from error
