"""Frames between client processes and the machine: two lengths, a JSON header, a binary body.

`harness/client/emulated_wire.py` is the other end. Neither room may import the other; a test holds them together.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

HEADER_BYTES_MAXIMUM: Final = 1 << 20
BODY_BYTES_MAXIMUM: Final = 32 << 20
FIRST_FRAME_BYTES_MAXIMUM: Final = 4096
"""For the frame that carries the token: until then the peer is a stranger."""

_LENGTHS: Final = struct.Struct("<II")


class MalformedFrameError(Exception):
    """What came is not a frame, or is larger than a frame may be. The connection cannot be used any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """One frame of a client: the service and its arguments, byte strings included."""

    service: str
    arguments: Mapping[str, Any]


def encode(status: int | None, values: Mapping[str, Any]) -> bytes:
    """An answer: NTSTATUS (None for a refusal) and values; byte strings go into the body.

    Raises:
        TypeError: a value is neither a byte string nor what JSON can carry.
    """
    plain: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    body: list[bytes] = []
    for name, value in values.items():
        if isinstance(value, (bytes, bytearray, memoryview)):
            lengths[name] = len(value)
            body.append(bytes(value))
        else:
            plain[name] = value
    header = json.dumps([status, plain, lengths], separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(header), sum(lengths.values())), header, *body))


class FrameReader:
    """Takes requests off one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def read(
        self,
        *,
        header_bytes_maximum: int = HEADER_BYTES_MAXIMUM,
        body_bytes_maximum: int = BODY_BYTES_MAXIMUM,
    ) -> Request | None:
        """The next request; None at the end of the connection, also when it ends in the middle of a frame.

        Raises:
            MalformedFrameError: not a frame, or too large.
            OSError: the connection broke or timed out.
        """
        lengths = self._take(_LENGTHS.size)
        if lengths is None:
            return None
        header_length, body_length = _LENGTHS.unpack(lengths)
        if header_length > header_bytes_maximum or body_length > body_bytes_maximum:
            raise MalformedFrameError(f"a frame of {header_length} + {body_length} bytes is too large")
        header = self._take(header_length)
        body = self._take(body_length) if header is not None else None
        if header is None or body is None:
            return None
        return _decode(header, body)

    def _take(self, length: int) -> bytes | None:
        buffer = self._buffer
        while len(buffer) < length:
            received = self._connection.recv(max(65536, length - len(buffer)))
            if not received:
                return None
            buffer += received
        taken = bytes(memoryview(buffer)[:length])
        del buffer[:length]
        return taken


def _decode(header: bytes, body: bytes) -> Request:
    try:
        parsed = json.loads(header)
    except (ValueError, RecursionError):
        raise MalformedFrameError("the header is not JSON") from None
    match parsed:
        case [str() as service, dict() as arguments, dict() as lengths]:
            pass
        case _:
            raise MalformedFrameError("the header is not [service, arguments, lengths]")
    position = 0
    for name, length in lengths.items():
        if type(length) is not int or not 0 <= length <= len(body) - position or name in arguments:
            raise MalformedFrameError("the lengths in the header do not describe the body")
        arguments[name] = body[position : position + length]
        position += length
    if position != len(body):
        raise MalformedFrameError("the lengths in the header do not describe the body")
    return Request(service, arguments)
