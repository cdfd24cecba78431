"""Message sealing: the multipart format around an encrypted envelope (MS-WSMV 2.2.9.1, windows-lab.md A.3)."""

from __future__ import annotations

import re
import struct
from typing import Protocol

from spnego.exceptions import SpnegoError

_BOUNDARY = b"--Encrypted Boundary"
_PROTOCOL = "application/HTTP-SPNEGO-session-encrypted"
CONTENT_TYPE = f'multipart/encrypted;protocol="{_PROTOCOL}";boundary="Encrypted Boundary"'

_REQUEST = re.compile(
    rb"--\s*Encrypted Boundary\r\n"
    rb"\s*Content-Type: application/HTTP-SPNEGO-session-encrypted\r\n"
    rb"\s*OriginalContent: type=[^;]+;charset=[^;]+;Length=(\d+)\r\n"
    rb"--\s*Encrypted Boundary\r\n"
    rb"\s*Content-Type: application/octet-stream\r\n",
    re.IGNORECASE,
)
_END = re.compile(rb"--\s*Encrypted Boundary--\s*\Z")


class SealingError(Exception):
    """The message is not sealed as it must be, or its signature is wrong."""


class Sealed(Protocol):
    """What of a pyspnego context is needed."""

    def unwrap_winrm(self, header: bytes, data: bytes) -> bytes: ...

    def wrap_winrm(self, data: bytes) -> tuple[bytes, bytes, int]: ...


def is_sealed(content_type: str) -> bool:
    """True if the header names the multipart type of sealed messages."""
    return content_type.strip().lower().startswith("multipart/encrypted")


def unseal(context: Sealed, body: bytes) -> bytes:
    """The envelope inside of a sealed request; SealingError if format, length or signature is wrong."""
    start = _REQUEST.match(body)
    end = _END.search(body)
    if start is None or end is None:
        raise SealingError("the request is not in the format of sealed messages")
    payload = body[start.end() : end.start()]
    if len(payload) < 4:
        raise SealingError("the sealed part is too short")
    (signature,) = struct.unpack_from("<i", payload)
    if not 0 < signature <= len(payload) - 4:
        raise SealingError("the length of the signature is wrong")
    try:
        plain = context.unwrap_winrm(payload[4 : 4 + signature], payload[4 + signature :])
    except SpnegoError as error:
        raise SealingError("the signature is wrong") from error
    if len(plain) != int(start[1]):
        raise SealingError("the length of the message is wrong")
    return plain


def seal(context: Sealed, message: bytes) -> bytes:
    """The body of a sealed response."""
    header, data, padding = context.wrap_winrm(message)
    length = len(message) + padding
    return b"".join(
        [
            _BOUNDARY,
            f"\r\n\tContent-Type: {_PROTOCOL}\r\n".encode(),
            f"\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length={length}\r\n".encode(),
            _BOUNDARY,
            b"\r\n\tContent-Type: application/octet-stream\r\n",
            struct.pack("<i", len(header)),
            header,
            data,
            _BOUNDARY,
            b"--\r\n",
        ]
    )
