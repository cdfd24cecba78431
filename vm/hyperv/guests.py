"""What a Hyper-V machine asks of a guest over the network: only whether it takes commands. The harness brings the way."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from vm.deadline import Deadline
from vm.machine import GuestAddress

PROBE_SECONDS = 3.0
"""How long one connection that is only a question may take."""

IDENTIFY = (
    '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"'
    ' xmlns:wsmid="http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd">'
    "<s:Header/><s:Body><wsmid:Identify/></s:Body></s:Envelope>"
)
"""The one request that WinRM answers to anybody who sends the header WSMANIDENTIFY (DSP0226, section 11)."""


class Outcome(Protocol):
    """What a command left behind."""

    @property
    def exit_code(self) -> int: ...

    @property
    def stdout(self) -> str: ...


class Commands(Protocol):
    """A guest that runs commands (`harness.remote.guest.Guest`)."""

    def run(self, command: Sequence[str] | str, *, deadline: Deadline, check: bool = True) -> Outcome:
        """Run one command; an exit code other than 0 is an error with `check`."""
        ...


OpenGuest = Callable[[GuestAddress], AbstractContextManager[Commands]]
"""Connects with a guest; the connection is closed at the end of the context."""


def tcp(address: GuestAddress) -> str | None:
    """None if WinRM's port accepts a connection, else what was seen instead."""
    try:
        with socket.create_connection((address.host, address.winrm_port), timeout=PROBE_SECONDS):
            return None
    except OSError as error:
        return f"{address.host}:{address.winrm_port}: {error.strerror or error}"


def identify(address: GuestAddress) -> str | None:
    """None if what listens there is WinRM, with the pinned certificate where it speaks TLS; else what was seen."""
    connection: http.client.HTTPConnection
    if address.winrm_scheme == "https":
        context = ssl.create_default_context(cafile=str(address.certificate))
        connection = http.client.HTTPSConnection(
            address.host, address.winrm_port, timeout=PROBE_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.winrm_port, timeout=PROBE_SECONDS)
    try:
        connection.request(
            "POST",
            "/wsman",
            body=IDENTIFY.encode("ascii"),
            headers={
                "Content-Type": "application/soap+xml;charset=UTF-8",
                "WSMANIDENTIFY": "unauthenticated",
            },
        )
        answer = connection.getresponse()
        body = answer.read(65536)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    # 401: it is there and wants to know who asks; a policy may forbid the anonymous question.
    if answer.status == http.client.UNAUTHORIZED or b"IdentifyResponse" in body:
        return None
    return f"HTTP {answer.status}"
