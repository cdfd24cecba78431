"""One authenticated session with WinRM in a guest: what is sent again after a failure is decided here and nowhere else."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from xml.etree.ElementTree import ParseError

from spnego.exceptions import SpnegoError
from winrm.exceptions import (
    InvalidCredentialsError,
    WinRMError,
    WinRMOperationTimeoutError,
    WinRMTransportError,
)
from winrm.protocol import Protocol

from harness.log import Log
from harness.remote.addresses import CurrentAddress
from harness.remote.faults import is_broken_seal, is_connection_error, translate, was_never_sent
from harness.remote.pinning import pin
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError
from vm.machine import GuestAddress

OPERATION_SECONDS = 10
"""How long the guest may hold one Receive without output; the deadline is looked at in between."""

READ_SLACK_SECONDS = 10
"""How much longer than the operation timeout the host waits for the answer itself."""

IDLE_SECONDS = 60
"""http.sys drops a connection that was idle for about 120 s; what must not be sent twice goes over a new one earlier."""

_T = TypeVar("_T")
_UNEXPECTED = (ParseError, StopIteration, AssertionError, KeyError, ValueError)
"""What pywinrm raises when the answer is not the XML that it expects."""

ANY_FAILURE: tuple[type[Exception], ...] = (
    WinRMError,
    WinRMTransportError,
    InvalidCredentialsError,
    SpnegoError,
    OSError,
    *_UNEXPECTED,
)
"""Everything that one exchange can end with; requests' exceptions are OSErrors, too."""


class Session:
    """One thread's session: pywinrm's `Protocol`, the shell that commands share, and who uses them.

    A sealed session is numbered and belongs to one TCP connection, so no two threads may use it at once.

    Args:
        address: where the guest answers now.
        machine: the machine's name, for messages.
        log: told of every renewal.
        make: makes the `Protocol` for an address.
    """

    def __init__(
        self,
        address: CurrentAddress,
        *,
        machine: str,
        log: Log,
        make: Callable[[GuestAddress], Any],
    ) -> None:
        self._address = address
        self._machine = machine
        self._log = log
        self._make = make
        self._made_for = address.get()
        self._used = time.monotonic()
        self.protocol = make(self._made_for)
        self.shell: str | None = None
        self.owner = threading.current_thread()

    def request(
        self,
        operation: Callable[[Any], _T],
        doing: str,
        deadline: Deadline,
        *,
        repeatable: bool,
        longest_seconds: int = OPERATION_SECONDS,
    ) -> _T:
        """One exchange, resent once where it is safe.

        A request that broke the seal was never carried out, nor was one that found no connection: any of them may be
        resent in a new session. A connection that broke during the request leaves open whether it was: only
        `repeatable` ones (Receive, Signal, Delete) are resent.
        """
        if not repeatable and time.monotonic() - self._used > IDLE_SECONDS:
            self.drop()
        for attempt in (1, 2):
            self.set_timeouts(deadline, longest_seconds)
            try:
                result = operation(self.protocol)
            except WinRMOperationTimeoutError:
                self._used = time.monotonic()
                raise
            except ANY_FAILURE as error:
                lost = is_connection_error(error) or _lost_seal(error)
                where, moved = self._address.where, False
                if lost or is_broken_seal(error):
                    moved = self._renew()
                again = is_broken_seal(error) or (repeatable and lost) or (moved and was_never_sent(error))
                if attempt == 2 or not again or deadline.passed:
                    if deadline.passed and is_connection_error(error):
                        raise DeadlineExceededError(
                            f"{where} did not answer in time while {doing}",
                            hint="does the machine run? ./inv vm.start",
                            machine=self._machine,
                        ) from error
                    raise translate(error, doing, machine=self._machine, where=where) from error
                self._log.write(f"connection renewed after '{error}' while {doing}")
            else:
                self._used = time.monotonic()
                return result
        raise AssertionError("unreachable")

    def drop(self) -> None:
        """Close the connection; the next request makes another one and logs on anew."""
        self.protocol.transport.close_session()

    def set_timeouts(self, deadline: Deadline, longest_seconds: int = OPERATION_SECONDS) -> None:
        """Have the next requests end by the deadline, and each after `longest_seconds` at the latest."""
        # pywinrm reads both attributes anew for every request.
        operation = max(1, math.ceil(min(deadline.remaining, longest_seconds)))
        self.protocol.operation_timeout_sec = operation
        self.protocol.transport.read_timeout_sec = operation + READ_SLACK_SECONDS

    def _renew(self) -> bool:
        """Give up the session; the next request makes another. True when the guest has another address by now."""
        self.drop()
        address = self._address.refresh()
        if address == self._made_for:
            return False
        self.protocol, self._made_for = self._make(address), address
        self._log.write(f"the guest answers at {self._address.where} now")
        return True


def make_protocol(address: GuestAddress, *, machine: str) -> Any:
    """pywinrm's `Protocol` for an address; connects to nothing yet.

    Raises:
        ConfigurationError: the pinned certificate cannot be read.
        GuestError: it has expired.
    """
    transport: Any = address.winrm_transport
    no_authorities: Any = None
    pinned = address.certificate if address.winrm_scheme == "https" else None
    protocol = Protocol(
        endpoint=f"{address.winrm_scheme}://{address.host}:{address.winrm_port}/wsman",
        transport=transport,
        username=address.credentials.username,
        password=address.credentials.password,
        # The default would take the authorities to trust from the environment.
        ca_trust_path=no_authorities,
        # Not ignored: a pinned certificate is compared as a whole, below.
        server_cert_validation="ignore" if pinned else "validate",
        operation_timeout_sec=OPERATION_SECONDS,
        read_timeout_sec=OPERATION_SECONDS + READ_SLACK_SECONDS,
        # The default would send the guest's traffic through whatever HTTP_PROXY names.
        proxy=None,
    )
    if pinned is not None:
        pin(protocol.transport, pinned, machine=machine)
    return protocol


def _lost_seal(error: BaseException) -> bool:
    """The answer could not be unsealed: the connection is unusable, the request may have been carried out."""
    return isinstance(error, SpnegoError)
