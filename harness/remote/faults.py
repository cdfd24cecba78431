"""What goes wrong between host and guest, and what each fault means to a user.

Codes: MS-WSMV and winerror.h; the meanings as they were met in practice (unknown shell after a restart, leaked shells
and commands behind the quota faults, the UAC token filter behind 'access denied').
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import requests.exceptions
from winrm.exceptions import InvalidCredentialsError, WinRMError, WinRMTransportError, WSManFaultError

from vm.errors import GuestError

OPERATION_TIMED_OUT = 2150858793
SHELL_NOT_FOUND = 2150858843

_LEAKED_SHELLS = "the guest has no room for another shell; restart its WinRM service (Restart-Service WinRM)"
_LEAKED_COMMANDS = (
    "commands were left running in the guest; restart its WinRM service (Restart-Service WinRM)"
)
_GOING_DOWN = (
    "the guest is shutting down or its WinRM service was stopped; run the command again when it is up"
)

_FAULTS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        SHELL_NOT_FOUND: ("the shell is gone", "the guest was restarted or restored; run the command again"),
        5: (
            "the user may not use WinRM",
            "put the user into 'Administrators' and set LocalAccountTokenFilterPolicy to 1 in the guest",
        ),
        2150859173: ("its quota of shells is used up", _LEAKED_SHELLS),
        2150859236: ("its quota of shells for this user is used up", _LEAKED_SHELLS),
        2150859174: ("its quota of operations is used up", _LEAKED_COMMANDS),
        2150859240: ("its quota of operations for this user is used up", _LEAKED_COMMANDS),
        2150859241: ("its quota of commands in a shell is used up", _LEAKED_COMMANDS),
        2150859175: ("its quota for this user is used up", _LEAKED_COMMANDS),
        2150859176: ("its quota for the system is used up", _LEAKED_COMMANDS),
        2150859179: ("its quota of shell users is used up", _LEAKED_SHELLS),
        2150858815: ("a quota is used up", _LEAKED_COMMANDS),
        2150858790: ("the message was larger than it accepts", "raise MaxEnvelopeSizekb in 'winrm/config'"),
        2150858824: ("the message was larger than it accepts", "raise MaxEnvelopeSizekb in 'winrm/config'"),
        2150859147: (
            "the input stream was closed already",
            "the command had ended before all of its input was sent",
        ),
        2150858817: (
            "it did not understand the message",
            "compare 'winrm id' in the guest: WinRM 3.0 is needed",
        ),
        995: ("the operation was aborted", _GOING_DOWN),
        1223: ("the operation was cancelled", _GOING_DOWN),
        2150859230: ("the service closed the stream", _GOING_DOWN),
    }
)

_CONNECTION_ERRORS = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    ConnectionError,
    TimeoutError,
)


class ShellGoneError(GuestError):
    """The guest does not know the shell any more: it was restarted, restored, or the shell timed out."""


class ConnectionLostError(GuestError):
    """The connection broke while a request was under way; whether the guest has acted on it is not known."""


class LogonError(GuestError):
    """The guest refused the user name and password."""


def is_connection_error(error: BaseException) -> bool:
    """True when the connection broke during the request, so that the request may or may not have been carried out."""
    return isinstance(error, _CONNECTION_ERRORS)


def is_broken_seal(error: BaseException) -> bool:
    """True for HTTP 400 without a fault: the sealed message came over a connection that was not the context's.

    Such a request was never carried out; a new session and the same request mend it.
    """
    return isinstance(error, WinRMTransportError) and error.code == 400


def translate(error: BaseException, doing: str, *, machine: str, where: str) -> GuestError:
    """The error as the user meets it.

    Args:
        error: what pywinrm, requests or a socket raised.
        doing: what was being done, as it reads after 'while'.
        machine: name of the machine.
        where: host and port, shown when the guest cannot be reached.
    """
    causes: Sequence[BaseException] = ()
    if isinstance(error, InvalidCredentialsError):
        return LogonError(
            f"the guest refused the user name or password while {doing}",
            hint="the machine's state may be stale: ./inv vm.stop, then run the command again",
            machine=machine,
        )
    if isinstance(error, WSManFaultError):
        code = error.wsman_fault_code
        if code is None:
            return GuestError(f"WinRM failed while {doing}: {error.reason.strip()}", machine=machine)
        what, hint = _FAULTS.get(code, (error.reason.strip().rstrip("."), None))
        kind = ShellGoneError if code == SHELL_NOT_FOUND else GuestError
        return kind(
            f"WinRM in the guest failed while {doing}: {what} (fault 0x{code:08X})",
            hint=hint,
            machine=machine,
        )
    if isinstance(error, WinRMTransportError):
        return GuestError(
            f"WinRM in the guest answered with HTTP status {error.code} while {doing}",
            hint="unencrypted messages are refused by default: use the transport 'ntlm'"
            if error.code == 500
            else None,
            machine=machine,
        )
    if is_connection_error(error):
        return ConnectionLostError(
            f"the connection to {where} was lost while {doing}",
            hint="the guest may have crashed or restarted: ./inv vm.start brings it back",
            machine=machine,
        )
    if isinstance(error, WinRMError):
        return GuestError(f"WinRM failed while {doing}: {error}", machine=machine)
    causes = [error]
    return GuestError(
        f"the guest answered something that is not WinRM while {doing}",
        hint=f"is it WinRM that listens at {where}?",
        machine=machine,
        causes=causes,
    )
