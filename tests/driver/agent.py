"""A client process of the suites: it does what the suite tells it over its standard input."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from harness.client import fileinformation as info
from harness.client import files, ntstatus
from harness.client.errors import FileError, PortError
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


def perform(directory: str, requests: list[tuple[str, list[Any]]]) -> list[int]:
    """Do what `reference.py` asks for, in this order; the NTSTATUS of each request."""
    statuses = []
    for verb, arguments in requests:
        try:
            _VERBS[verb](directory, *arguments)
        except FileError as error:
            statuses.append(error.status)
        else:
            statuses.append(ntstatus.SUCCESS)
    return statuses


def _open(directory: str, number: int, name: str, disposition: int) -> None:
    access = files.GENERIC_READ | files.GENERIC_WRITE | files.DELETE | files.WRITE_DAC
    _open_files[number] = files.open_file(f"{directory}\\{name}", access=access, disposition=disposition)


def _close(directory: str, number: int) -> None:
    _open_files.pop(number).close()


def _set_attributes(directory: str, number: int, attributes: int, creation_time: int) -> None:
    basic = info.BasicInformation(attributes=attributes, creation_time=creation_time)
    _open_files[number].set_basic(basic)


def _rename_directory(directory: str, name: str, target: str) -> None:
    files.rename(f"{directory}\\{name}", f"{directory}\\{target}")


_held: list[files.File] = []
_open_files: dict[int, files.File] = {}
_VERBS: dict[str, Callable[..., object]] = {
    "open": _open,
    "close": _close,
    "write": lambda directory, number, offset, count: _open_files[number].write(bytes(count), offset),
    "set_size": lambda directory, number, size: _open_files[number].set_end_of_file(size),
    "set_attributes": _set_attributes,
    "set_security": lambda directory, number: _open_files[number].set_security(),
    "rename": lambda directory, number, target: _open_files[number].rename(f"{directory}\\{target}"),
    "link": lambda directory, number, target: _open_files[number].link(f"{directory}\\{target}"),
    "set_delete": lambda directory, number, delete: _open_files[number].set_delete(delete),
    "mkdir": lambda directory, name: files.mkdir(f"{directory}\\{name}"),
    "rename_directory": _rename_directory,
    "remove_directory": lambda directory, name: files.delete(f"{directory}\\{name}"),
    "create_in_vain": lambda directory, name: files.create(f"{directory}\\{name}"),
    "open_in_vain": lambda directory, name: files.open_file(f"{directory}\\{name}").close(),
}

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
            "perform": perform,
            "process_id": process_id,
            "create": create,
            "create_many": create_many,
            "churn": churn,
            "hold_open": hold_open,
        }
    )
