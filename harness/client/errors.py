"""What the client library raises: failures of the port, failures of file operations, and the end of the machine."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from harness.client import hresult as hr
from harness.client import ntstatus


class PortError(OSError):
    """An operation on a filter communication port, or on the Filter Manager, failed.

    Attributes:
        hresult: unsigned 32 bit, as fltlib returned it.
        name: the HRESULT's name, for example "ERROR_INVALID_HANDLE".
        explanation: what it means here, one clause.
        operation: the fltlib function, for example "FilterGetMessage".
        information: bytes transferred or wanted where the request had completed (fact S18), else 0.
    """

    def __init__(self, hresult: int, operation: str, *, information: int = 0) -> None:
        description = hr.describe(hresult)
        self.hresult = hresult & 0xFFFFFFFF
        self.name = description.name
        self.explanation = description.explanation
        self.advice = description.advice
        self.operation = operation
        self.information = information
        hint = f"; {description.advice}" if description.advice else ""
        super().__init__(
            f"{operation} failed with 0x{self.hresult:08X} ({self.name}): {self.explanation}{hint}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.hresult, self.operation, self.information)


class DisconnectedError(PortError):
    """The connection has ended: the filter was unloaded, dropped the client, or the handle was closed (0x80070006)."""


class AccessDeniedError(PortError):
    """The port's security descriptor does not admit the caller (0x80070005)."""


class NotFoundError(PortError):
    """No such port, filter, volume, instance or service."""


class ConnectionLimitError(PortError):
    """The port has as many clients as the driver allows (0x800704D6)."""


class CancelledError(PortError):
    """The request was cancelled (0x800703E3)."""


class BufferTooSmallError(PortError):
    """The buffer does not hold the message and its header (0x8007007A)."""


class NoWaiterError(PortError):
    """Nobody waits for this reply (0x801F0020)."""


class InvalidParameterError(PortError):
    """An argument or the connection context was refused (0x80070057)."""


class RevisionMismatchError(PortError):
    """Client and driver speak different versions of the protocol (0x8007051A)."""


class NotPermittedError(PortError):
    """The port takes no such request: it is one-way (0x80070001 or 0x80070032)."""


class FileError(OSError):
    """A file operation failed.

    Attributes:
        status: NTSTATUS, unsigned 32 bit.
        name: its name, for example "STATUS_SHARING_VIOLATION".
        operation: what was tried, for example "create 'D:\\a.txt'".
    """

    def __init__(self, status: int, operation: str) -> None:
        self.status = status & 0xFFFFFFFF
        self.name = ntstatus.name(status)
        self.operation = operation
        super().__init__(f"{operation} failed with 0x{self.status:08X} ({self.name})")

    def __reduce__(self) -> tuple[object, ...]:
        return FileError, (self.status, self.operation)


class OperationTimeoutError(TimeoutError):
    """A request was not answered within its deadline: something in the kernel waits that should not."""


class MachineGoneError(ConnectionError):
    """The emulated machine ended while it was asked: it crashed, restarted or was stopped."""


_CLASSES: Final = MappingProxyType(
    {
        hr.INVALID_HANDLE: DisconnectedError,
        hr.ACCESS_DENIED: AccessDeniedError,
        hr.FILE_NOT_FOUND: NotFoundError,
        hr.FLT_FILTER_NOT_FOUND: NotFoundError,
        0x801F0014: NotFoundError,
        0x801F0015: NotFoundError,
        hr.SERVICE_DOES_NOT_EXIST: NotFoundError,
        hr.CONNECTION_COUNT_LIMIT: ConnectionLimitError,
        hr.OPERATION_ABORTED: CancelledError,
        hr.INSUFFICIENT_BUFFER: BufferTooSmallError,
        hr.FLT_NO_WAITER_FOR_REPLY: NoWaiterError,
        hr.INVALID_PARAMETER: InvalidParameterError,
        hr.REVISION_MISMATCH: RevisionMismatchError,
        hr.INVALID_FUNCTION: NotPermittedError,
        hr.NOT_SUPPORTED: NotPermittedError,
    }
)


def port_error(hresult: int, operation: str, *, information: int = 0) -> PortError:
    """The exception for an HRESULT: one of the subclasses for the frequent ones, else `PortError` itself."""
    kind = _CLASSES.get(hresult & 0xFFFFFFFF, PortError)
    return kind(hresult, operation, information=information)


def check(hresult: int, operation: str) -> None:
    """Raise the exception for a failure HRESULT; do nothing for success."""
    if hr.failed(hresult):
        raise port_error(hresult, operation)


def _rebuild(hresult: int, operation: str, information: int) -> PortError:
    return port_error(hresult, operation, information=information)
