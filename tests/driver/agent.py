"""A client process of the suites: it does what the suite tells it over its standard input."""

from __future__ import annotations

import os
import time
from typing import Any

from harness.client import files
from harness.client.errors import PortError
from harness.client.listener import Listener
from harness.client.processes import serve
from harness.client.protocol import Connect

_listeners: dict[int, Listener] = {}


def connect(options: dict[str, Any]) -> int:
    """Connect; the number by which the other functions know the connection."""
    number = len(_listeners)
    _listeners[number] = Listener.open(Connect(**options))
    return number


def post(number: int) -> None:
    """Post a request and leave it pending."""
    _listeners[number].post()


def receive(number: int, timeout: float = 10.0) -> list[dict[str, Any]]:
    """The records of the next message."""
    batch = _listeners[number].receive(timeout)
    return [{"kind": int(r.kind), "path": r.path, "sequence": r.sequence} for r in batch.records]


def wait_for_end(number: int) -> int:
    """Receive until the connection ends; the HRESULT it ended with."""
    return _listeners[number].end().hresult


def send(number: int, size: int) -> int:
    """FilterSendMessage; the HRESULT, 0 for success."""
    try:
        _listeners[number].port.send(bytes(size))
    except PortError as error:
        return error.hresult
    return 0


def close(number: int) -> None:
    """Close a connection."""
    _listeners[number].close()


def leave() -> None:
    """End the process without closing anything."""
    os._exit(0)


def process_id() -> int:
    """This process's id."""
    return os.getpid()


def create(path: str, size: int = 0) -> None:
    """Make a file of that many bytes."""
    files.create(path, bytes(size))


def create_many(directory: str, names: list[str]) -> None:
    """Make empty files."""
    for name in names:
        files.create(f"{directory}\\{name}")


def churn(directory: str, prefix: str, first: int, count: int) -> float:
    """Five operations on each of some files: create, write, rename, mark for deletion, close.

    Returns:
        The longest that one file took, in seconds.
    """
    slowest = 0.0
    for number in range(first, first + count):
        started = time.monotonic()
        path = f"{directory}\\{prefix}{number:04}"
        access = files.GENERIC_WRITE | files.DELETE
        with files.open_file(path, access=access, disposition=files.CREATE) as file:
            file.write(bytes(number + 1))
            file.rename(f"{path}-done")
            file.set_delete()
        slowest = max(slowest, time.monotonic() - started)
    return slowest


def hold_open(path: str) -> None:
    """Open a file and keep it open until the process ends."""
    _held.append(files.open_file(path, access=files.GENERIC_WRITE, disposition=files.OPEN_IF))


_held: list[files.File] = []

if __name__ == "__main__":
    serve(
        {
            "connect": connect,
            "post": post,
            "receive": receive,
            "wait_for_end": wait_for_end,
            "send": send,
            "close": close,
            "leave": leave,
            "process_id": process_id,
            "create": create,
            "create_many": create_many,
            "churn": churn,
            "hold_open": hold_open,
        }
    )
