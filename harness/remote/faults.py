"""What goes wrong between host and guest, and what each fault means to a user.

Codes: MS-WSMV and winerror.h; the meanings as they were met in practice (unknown shell after a restart, leaked shells
and commands behind the quota faults, the UAC token filter behind 'access denied').
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import requests.exceptions
import urllib3.exceptions
from winrm.exceptions import InvalidCredentialsError, WinRMError, WinRMTransportError, WSManFaultError

from vm.errors import GuestError


@dataclass(frozen=True, slots=True)
class RemoteFailure:
    """One thing that goes wrong on the way to a guest.

    `code` is the number in WSManFault/@Code, None where there is none; `pattern` is a regular expression that finds the
    failure in what is printed; `cause` reads after a colon; `cure` is the command or the one thing to do.
    """

    cause: str
    cure: str
    code: int | None = None
    pattern: str = ""


OPERATION_TIMED_OUT = 2150858793
SHELL_NOT_FOUND = 2150858843
ENVELOPE_TOO_LARGE = (2150858790, 2150858824)
INPUT_CLOSED = (109, 232, 2147942509, 2147942632, 2150859147)
"""Answers to input for a command that has ended: broken pipe, pipe closing (as Win32 codes and HRESULTs), closed stream."""

_LEAKED = "or free what was left over: Restart-Service WinRM"
_GOING_DOWN = (
    "the guest is shutting down or its WinRM service was stopped; run the command again when it is up"
)


def _quota(code: int, what: str, name: str, where: str, value: int) -> RemoteFailure:
    """A quota: its name in `winrm get winrm/config`, and the command that raises it."""
    return RemoteFailure(
        f"its quota of {what} is used up ({name})",
        f'in the guest: winrm set winrm/config{where} @{{{name}="{value}"}}, {_LEAKED}',
        code,
        f"0x{code:08X}|{name}",
    )


FAILURES: tuple[RemoteFailure, ...] = (
    RemoteFailure(
        "the shell is gone", "the guest was restarted or restored; run the command again", SHELL_NOT_FOUND
    ),
    RemoteFailure(
        "the user may not use WinRM",
        "put the user into 'Administrators' and set LocalAccountTokenFilterPolicy to 1 in the guest",
        5,
    ),
    _quota(2150859173, "shells", "MaxShellsPerUser", "/winrs", 100),
    _quota(2150859236, "shells for this user", "MaxShellsPerUser", "/winrs", 100),
    _quota(2150859174, "operations", "MaxConcurrentOperations", "/service", 4294967295),
    _quota(2150859240, "operations for this user", "MaxConcurrentOperationsPerUser", "/service", 4294967295),
    _quota(2150859241, "commands in a shell", "MaxProcessesPerShell", "/winrs", 100),
    _quota(
        2150859175, "what this user may do at once", "MaxConcurrentOperationsPerUser", "/service", 4294967295
    ),
    _quota(2150859176, "what all users may do at once", "MaxConcurrentOperations", "/service", 4294967295),
    _quota(2150859179, "users with a shell", "MaxConcurrentUsers", "/winrs", 100),
    RemoteFailure(
        "a quota is used up",
        f"compare 'winrm get winrm/config' in the guest with its defaults, {_LEAKED}",
        2150858815,
    ),
    *(
        RemoteFailure(
            "the message was larger than it accepts (MaxEnvelopeSizekb)",
            'in the guest: winrm set winrm/config @{MaxEnvelopeSizekb="500"}',
            code,
        )
        for code in ENVELOPE_TOO_LARGE
    ),
    RemoteFailure(
        "the input stream was closed already",
        "the command had ended before all of its input was sent",
        2150859147,
    ),
    RemoteFailure(
        "it did not understand the message",
        "compare 'winrm id' in the guest: WinRM 3.0 is needed",
        2150858817,
    ),
    RemoteFailure("the operation was aborted", _GOING_DOWN, 995),
    RemoteFailure("the operation was cancelled", _GOING_DOWN, 1223),
    RemoteFailure("the service closed the stream", _GOING_DOWN, 2150859230),
)
"""Faults of WinRM by their number."""

PINNED = RemoteFailure(
    "the certificate shown there is not the one that belongs to this machine",
    "something else listens there, or the guest was made anew: export its certificate again and name it in"
    " 'certificate'",
    pattern="certificate .* is not the one that belongs to this machine",
)
EXPIRED = RemoteFailure(
    "the machine's certificate is not valid at the present time",
    "is the host's clock right? Else make a certificate in the guest that is valid, give it to the HTTPS listener and"
    " export it again",
    pattern="certificate .* (has expired|is not valid yet)",
)
NOT_TLS = RemoteFailure(
    "there is no HTTPS at this port",
    "the listener for HTTPS has the port 5986 by default; 'winrm enumerate winrm/config/listener' in the guest shows"
    " it",
    pattern="does not answer with TLS",
)
NO_NTLM = RemoteFailure(
    "NTLM is switched off in the guest, as newer versions of Windows have it",
    'use HTTPS: scheme = "https" with the transport "basic" and the pinned certificate',
    pattern="does not accept NTLM",
)
CONNECTION_FAILURES: tuple[RemoteFailure, ...] = (PINNED, EXPIRED, NOT_TLS, NO_NTLM)
"""Failures before WinRM says anything."""

STATUSES: Mapping[int, RemoteFailure] = MappingProxyType(
    {
        404: RemoteFailure(
            "nothing in the guest serves WinRM at this port",
            "in the guest: Enable-PSRemoting -SkipNetworkProfileCheck -Force",
            pattern="HTTP status 404",
        ),
        500: RemoteFailure(
            "unencrypted messages are refused by default",
            "use the transport 'ntlm'",
            pattern="HTTP status 500",
        ),
        503: RemoteFailure(
            "the WinRM service does not run, or has too much to do",
            "wait until the guest has booted, or in the guest: Restart-Service WinRM",
            pattern="HTTP status 503",
        ),
    }
)
"""Answers of the web server in front of WinRM."""

_BY_CODE: Mapping[int, RemoteFailure] = MappingProxyType(
    {failure.code: failure for failure in FAILURES if failure.code is not None}
)

_NOT_TLS_WORDS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "record layer failure")
"""What OpenSSL says of an answer that is not TLS."""

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


class NoNtlmError(LogonError):
    """The guest offers no NTLM at all: no other password and no waiting will change that."""


class StatusError(GuestError):
    """The web server in front of WinRM answered with a status (500, 503) instead of WinRM with a message."""


def is_connection_error(error: BaseException) -> bool:
    """True when the connection broke during the request, so that the request may or may not have been carried out."""
    return isinstance(error, _CONNECTION_ERRORS)


def was_never_sent(error: BaseException) -> bool:
    """True when no connection came about, so that the request cannot have been carried out."""
    return any(
        isinstance(part, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)
        for part in _parts(error)
    )


def fault_code(error: BaseException) -> int | None:
    """The number of a WinRM fault; None for every other failure."""
    return error.wsman_fault_code if isinstance(error, WSManFaultError) else None


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
            hint="check the machine's user and password; if the machine is ours, its state may be stale: ./inv vm.stop, then run the command again",
            machine=machine,
        )
    if isinstance(error, WSManFaultError):
        code = error.wsman_fault_code
        if code is None:
            return GuestError(f"WinRM failed while {doing}: {error.reason.strip()}", machine=machine)
        known = _BY_CODE.get(code)
        what = known.cause if known else error.reason.strip().rstrip(".")
        hint = known.cure if known else None
        kind = ShellGoneError if code == SHELL_NOT_FOUND else GuestError
        return kind(
            f"WinRM in the guest failed while {doing}: {what} (fault 0x{code:08X})",
            hint=hint,
            machine=machine,
        )
    if isinstance(error, WinRMTransportError):
        known = STATUSES.get(error.code)
        return StatusError(
            f"WinRM in the guest answered with HTTP status {error.code} while {doing}",
            hint=f"{known.cause}: {known.cure}" if known else None,
            machine=machine,
        )
    if isinstance(error, PermissionError):
        # What requests_ntlm raises when there is no challenge.
        return NoNtlmError(
            f"the guest does not accept NTLM, seen while {doing}", hint=NO_NTLM.cure, machine=machine
        )
    if isinstance(error, requests.exceptions.SSLError):
        return _refused_by_tls(error, doing, machine, where)
    if is_connection_error(error):
        return _lost(doing, machine, where)
    if isinstance(error, WinRMError):
        return GuestError(f"WinRM failed while {doing}: {error}", machine=machine)
    causes = [error]
    return GuestError(
        f"the guest answered something that is not WinRM while {doing}",
        hint=f"is it WinRM that listens at {where}?",
        machine=machine,
        causes=causes,
    )


def _refused_by_tls(error: BaseException, doing: str, machine: str, where: str) -> GuestError:
    if "ingerprint" in str(error):
        return GuestError(
            f"the certificate at {where} is not the one that belongs to this machine, seen while {doing}",
            hint=PINNED.cure,
            machine=machine,
        )
    if any(word in str(error) for word in _NOT_TLS_WORDS):
        return GuestError(
            f"the guest at {where} does not answer with TLS while {doing}",
            hint=NOT_TLS.cure,
            machine=machine,
            causes=[error],
        )
    return _lost(doing, machine, where)


def _lost(doing: str, machine: str, where: str) -> GuestError:
    return ConnectionLostError(
        f"the connection to {where} was lost while {doing}",
        hint="the guest may have crashed or restarted: ./inv vm.start brings it back",
        machine=machine,
    )


def _parts(error: BaseException) -> Iterator[BaseException]:
    """An error of requests, the one of urllib3 in it, and the reason in that."""
    current: object = error
    while isinstance(current, BaseException):
        yield current
        current = getattr(current, "reason", None) or (current.args[0] if current.args else None)
