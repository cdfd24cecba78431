"""Who talks: Basic per request, NTLM per connection (raw NTLMSSP or inside SPNEGO), as pyspnego accepts it.

pyspnego reads the accounts from the file that the environment variable NTLM_USER_FILE names. The variable belongs to
the process, so one process serves the accounts of one guest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import ssl
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import spnego
from spnego.channel_bindings import GssChannelBindings
from spnego.exceptions import SpnegoError

from vm.emulated.guest.settings import GuestSettings
from vm.errors import MachineError

log = logging.getLogger(__name__)

VARIABLE = "NTLM_USER_FILE"
_FILE = "ntlm-accounts"


_UNREADABLE = (SpnegoError, ValueError, LookupError, TypeError, struct.error)
"""What pyspnego raises for a token that is wrong, or that is no token at all."""


class Decision(Enum):
    """What is to be answered."""

    ACCEPTED = "accepted"
    CONTINUE = "continue"
    """401 with the next token."""
    REFUSED = "refused"
    """401 with the list of schemes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome for one request; `token` goes into WWW-Authenticate."""

    decision: Decision
    token: str | None = None


class Accounts:
    """The credential file of the guest, present from `install` to `remove`."""

    def __init__(self, settings: GuestSettings) -> None:
        self._file = settings.state_directory / _FILE
        self._settings = settings
        self._before: str | None = None
        self._installed = False

    def install(self) -> None:
        """Write the file (0600) and point pyspnego to it.

        Raises:
            OSError: it cannot be written.
            MachineError: name or password hold a character that separates fields or lines in the file.
        """
        name, password = self._settings.username, self._settings.password
        if not name or any(character in name + password for character in ":\r\n"):
            raise MachineError(
                "the user name or the password of the emulated guest holds a colon or a line break",
                hint="choose a name and a password without them",
            )
        lines = [f"{domain}:{name}:{password}\n" for domain in ("", self._settings.computer_name)]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        self._installed = True
        with open(self._file, "x", encoding="utf-8", opener=_owner_only) as file:
            file.writelines(lines)
        self._before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(self._file)

    def remove(self) -> None:
        """Delete the file and restore the variable, if they were there."""
        if not self._installed:
            return
        self._installed = False
        if os.environ.get(VARIABLE) == str(self._file):
            if self._before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = self._before
        self._file.unlink(missing_ok=True)


class ConnectionAuthentication:
    """State of one TCP connection: nobody, in the middle of NTLM, or authenticated with or without sealing."""

    def __init__(self, settings: GuestSettings, bindings: GssChannelBindings | None = None) -> None:
        self._settings = settings
        self._bindings = bindings
        self._context: Any = None
        self._established = False

    @property
    def sealing(self) -> Any:
        """The pyspnego context of an authenticated NTLM connection, else None."""
        return self._context if self._established else None

    def examine(self, header: str | None) -> Verdict:
        """Judge the Authorization header of one request; None continues an authenticated connection."""
        if header is None:
            return Verdict(Decision.ACCEPTED if self._established else Decision.REFUSED)
        scheme, _, credentials = header.partition(" ")
        try:
            token = base64.b64decode(credentials.strip(), validate=True)
        except (binascii.Error, ValueError):
            return self._refuse()
        match scheme.casefold():
            case "basic":
                return self._basic(token)
            case "negotiate" | "ntlm":
                return self._negotiate(scheme, token)
        return self._refuse()

    def _basic(self, token: bytes) -> Verdict:
        name, _, password = token.partition(b":")
        # Windows takes the account with its machine's name before it too, and compares names without case.
        account = name.rpartition(b"\\")[2].decode("utf-8", "replace").casefold().encode()
        known = hmac.compare_digest(account, self._settings.username.casefold().encode())
        right = hmac.compare_digest(password, self._settings.password.encode())
        return Verdict(Decision.ACCEPTED) if known and right else self._refuse()

    def _negotiate(self, scheme: str, token: bytes) -> Verdict:
        if self._context is None or self._established:
            self._established = False
            self._context = self._new_context(token)
        try:
            answer = self._context.step(token)
        except _UNREADABLE as error:
            log.info("a logon was refused: %s", type(error).__name__)
            return self._refuse()
        text = f"{scheme} {base64.b64encode(answer).decode('ascii')}" if answer else None
        if not self._context.complete:
            return Verdict(Decision.CONTINUE, text) if text else self._refuse()
        self._established = True
        return Verdict(Decision.ACCEPTED, text)

    def _new_context(self, token: bytes) -> Any:
        raw = token.startswith(b"NTLMSSP\0")
        return spnego.server(
            protocol="ntlm" if raw else "negotiate",
            options=spnego.NegotiateOptions.use_ntlm if raw else spnego.NegotiateOptions.use_negotiate,
            channel_bindings=self._bindings,
        )

    def _refuse(self) -> Verdict:
        self._context = None
        self._established = False
        return Verdict(Decision.REFUSED)


def channel_bindings(certificate: Path) -> GssChannelBindings:
    """tls-server-end-point bindings (RFC 5929) of a certificate file that was signed with SHA-256."""
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))
    return GssChannelBindings(application_data=b"tls-server-end-point:" + hashlib.sha256(der).digest())


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
