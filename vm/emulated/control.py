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

from vm.errors import DeadlineExceededError, MachineError

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


def ask(port: int, key: bytes, verb: str, *, seconds: float = 10.0) -> Any:
    """Ask a machine's process.

    Args:
        seconds: how long it may take to answer; a process that is stopped takes the connection and says nothing.

    Raises:
        MachineError: nobody answers there, or with another key.
        DeadlineExceededError: somebody is there and does not answer.
    """
    outcome: list[Any] = []

    def exchange() -> None:
        try:
            with Client(("127.0.0.1", port), authkey=key) as connection:
                connection.send_bytes(verb.encode())
                outcome.append(json.loads(connection.recv_bytes()))
        except (OSError, EOFError, ValueError, AuthenticationError) as error:
            outcome.append(
                MachineError("the process of the emulated machine does not answer", causes=[error])
            )

    # The handshake of the connection takes no deadline, so it runs in a thread that can be left behind.
    thread = threading.Thread(target=exchange, name="control client", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise DeadlineExceededError(
            f"the process of the emulated machine has not answered within {seconds:g} s",
            hint="end it with './inv vm.stop', which kills a process that does not react",
        )
    if isinstance(outcome[0], MachineError):
        raise outcome[0]
    return outcome[0]
