"""HRESULTs as callers of fltlib see them: the mapping from NTSTATUS, and what each one means in a sentence.

Sources: facts section 9 (rule H1 and its table), `fltWinError.h` for the names of the filter facility.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from harness.client import ntstatus

S_OK: Final = 0x00000000
E_FAIL: Final = 0x80004005
INVALID_FUNCTION: Final = 0x80070001
FILE_NOT_FOUND: Final = 0x80070002
ACCESS_DENIED: Final = 0x80070005
INVALID_HANDLE: Final = 0x80070006
NOT_SUPPORTED: Final = 0x80070032
INVALID_PARAMETER: Final = 0x80070057
SEM_TIMEOUT: Final = 0x80070079
INSUFFICIENT_BUFFER: Final = 0x8007007A
MORE_DATA: Final = 0x800700EA
WAIT_TIMEOUT: Final = 0x80070102
NO_MORE_ITEMS: Final = 0x80070103
ARITHMETIC_OVERFLOW: Final = 0x80070216
OPERATION_ABORTED: Final = 0x800703E3
IO_PENDING: Final = 0x800703E5
INVALID_SERVICE_CONTROL: Final = 0x8007041C
SERVICE_ALREADY_RUNNING: Final = 0x80070420
SERVICE_DOES_NOT_EXIST: Final = 0x80070424
SERVICE_CANNOT_ACCEPT_CTRL: Final = 0x80070425
SERVICE_NOT_ACTIVE: Final = 0x80070426
CONNECTION_COUNT_LIMIT: Final = 0x800704D6
REVISION_MISMATCH: Final = 0x8007051A
PRIVILEGE_NOT_HELD: Final = 0x80070522
NO_SYSTEM_RESOURCES: Final = 0x800705AA
FLT_DELETING_OBJECT: Final = 0x801F000B
FLT_DO_NOT_DETACH: Final = 0x801F0010
FLT_FILTER_NOT_FOUND: Final = 0x801F0013
FLT_NO_WAITER_FOR_REPLY: Final = 0x801F0020

_FACILITY_FILTER_STATUS: Final = 0x1C
_FACILITY_FILTER_HRESULT: Final = 0x001F0000


@dataclass(frozen=True, slots=True)
class Description:
    """What an HRESULT is called, what it means, and what to look at; `advice` is empty when there is none."""

    name: str
    explanation: str
    advice: str = ""


def from_win32(error: int) -> int:
    """`HRESULT_FROM_WIN32` for a Win32 error code below 65536."""
    return 0x80070000 | (error & 0xFFFF) if error else S_OK


def from_ntstatus(status: int) -> int:
    """The HRESULT that fltlib returns for an NTSTATUS (rule H1)."""
    status &= 0xFFFFFFFF
    if status == ntstatus.SUCCESS:
        return S_OK
    if status == ntstatus.FLT_BUFFER_TOO_SMALL:
        return INSUFFICIENT_BUFFER
    facility = (status >> 16) & 0x0FFF
    if facility == _FACILITY_FILTER_STATUS:
        return (status & 0x80000000) | _FACILITY_FILTER_HRESULT | (status & 0xFFFF)
    if facility:
        return E_FAIL
    if status == ntstatus.TIMEOUT:
        return WAIT_TIMEOUT
    return from_win32(ntstatus.to_win32(status))


def failed(hresult: int) -> bool:
    """The `FAILED` macro."""
    return bool(hresult & 0x80000000)


def describe(hresult: int) -> Description:
    """Name, meaning and advice for an HRESULT; an unknown one is described by its number and its facility."""
    hresult &= 0xFFFFFFFF
    known = _DESCRIPTIONS.get(hresult)
    if known is not None:
        return known
    facility = (hresult >> 16) & 0x1FFF
    if facility == 0x1F:
        named = _FILTER_NAMES.get(hresult & 0xFFFF)
        if named is not None:
            return Description(f"ERROR_FLT_{named}", _as_words(named))
    if facility == 7:
        return Description(f"WIN32_{hresult & 0xFFFF}", f"Windows answered with error {hresult & 0xFFFF}")
    return Description(f"0x{hresult:08X}", f"Windows answered with HRESULT 0x{hresult:08X}")


def _as_words(name: str) -> str:
    return f"the filter manager answered '{name.replace('_', ' ').lower()}'"


_FILTER_NAMES: Final = MappingProxyType(
    {
        0x01: "NO_HANDLER_DEFINED",
        0x02: "CONTEXT_ALREADY_DEFINED",
        0x03: "INVALID_ASYNCHRONOUS_REQUEST",
        0x04: "DISALLOW_FAST_IO",
        0x05: "INVALID_NAME_REQUEST",
        0x06: "NOT_SAFE_TO_POST_OPERATION",
        0x07: "NOT_INITIALIZED",
        0x08: "FILTER_NOT_READY",
        0x09: "POST_OPERATION_CLEANUP",
        0x0A: "INTERNAL_ERROR",
        0x0B: "DELETING_OBJECT",
        0x0C: "MUST_BE_NONPAGED_POOL",
        0x0D: "DUPLICATE_ENTRY",
        0x0E: "CBDQ_DISABLED",
        0x0F: "DO_NOT_ATTACH",
        0x10: "DO_NOT_DETACH",
        0x11: "INSTANCE_ALTITUDE_COLLISION",
        0x12: "INSTANCE_NAME_COLLISION",
        0x13: "FILTER_NOT_FOUND",
        0x14: "VOLUME_NOT_FOUND",
        0x15: "INSTANCE_NOT_FOUND",
        0x16: "CONTEXT_ALLOCATION_NOT_FOUND",
        0x17: "INVALID_CONTEXT_REGISTRATION",
        0x18: "NAME_CACHE_MISS",
        0x19: "NO_DEVICE_OBJECT",
        0x1A: "VOLUME_ALREADY_MOUNTED",
        0x1B: "ALREADY_ENLISTED",
        0x1C: "CONTEXT_ALREADY_LINKED",
        0x20: "NO_WAITER_FOR_REPLY",
        0x23: "REGISTRATION_BUSY",
        0x24: "WCOS_NOT_SUPPORTED",
    }
)

_DESCRIPTIONS: Final = MappingProxyType(
    {
        S_OK: Description("S_OK", "it succeeded"),
        E_FAIL: Description("E_FAIL", "the driver answered with a status that has no Win32 equivalent"),
        INVALID_FUNCTION: Description(
            "ERROR_INVALID_FUNCTION",
            "the port does not take this request",
            "a driver without a message callback refuses everything that is sent to it",
        ),
        FILE_NOT_FOUND: Description(
            "ERROR_FILE_NOT_FOUND",
            "there is no port or filter of that name",
            "check with 'fltmc filters' that the filter is loaded, and compare the port's name letter by letter",
        ),
        0x80070003: Description(
            "ERROR_PATH_NOT_FOUND",
            "the directory in the port's name does not exist",
            "a port's name usually has a single backslash at its start",
        ),
        ACCESS_DENIED: Description(
            "ERROR_ACCESS_DENIED",
            "the port's security descriptor does not admit this user",
            "run the client as SYSTEM or as an elevated administrator",
        ),
        INVALID_HANDLE: Description(
            "ERROR_INVALID_HANDLE",
            "the connection has ended, or the handle was closed",
            "the filter was unloaded or dropped the client; connect again",
        ),
        NOT_SUPPORTED: Description(
            "ERROR_NOT_SUPPORTED",
            "the port does not support this request",
            "a driver without a message callback refuses everything that is sent to it",
        ),
        INVALID_PARAMETER: Description(
            "ERROR_INVALID_PARAMETER",
            "an argument or the connection context was refused",
            "compare the context's size and fields with the driver's protocol header",
        ),
        SEM_TIMEOUT: Description("ERROR_SEM_TIMEOUT", "the driver let the request time out"),
        INSUFFICIENT_BUFFER: Description(
            "ERROR_INSUFFICIENT_BUFFER",
            "the buffer is too small for the message",
            "the buffer must hold the message and 16 bytes of header",
        ),
        0x8007007B: Description("ERROR_INVALID_NAME", "the port's name is not a valid object name"),
        0x800700A1: Description(
            "ERROR_BAD_PATHNAME", "the port's name has a bad syntax", "a port's name starts with a backslash"
        ),
        0x800700B7: Description("ERROR_ALREADY_EXISTS", "something of that name exists already"),
        0x800700C1: Description(
            "ERROR_BAD_EXE_FORMAT",
            "the driver's image is not valid for this system",
            "check that the driver was built for the machine's architecture",
        ),
        MORE_DATA: Description("ERROR_MORE_DATA", "the reply was longer than what the driver waits for"),
        WAIT_TIMEOUT: Description("WAIT_TIMEOUT", "the time for the request passed"),
        NO_MORE_ITEMS: Description("ERROR_NO_MORE_ITEMS", "there is nothing more to list"),
        ARITHMETIC_OVERFLOW: Description(
            "ERROR_ARITHMETIC_OVERFLOW",
            "the connection context is too large",
            "at most 65511 bytes fit into the request that opens a port",
        ),
        0x80070241: Description(
            "ERROR_INVALID_IMAGE_HASH",
            "Windows does not trust the driver's signature",
            "turn test signing on and trust the test certificate in Root and TrustedPublisher",
        ),
        OPERATION_ABORTED: Description("ERROR_OPERATION_ABORTED", "the request was cancelled"),
        IO_PENDING: Description("ERROR_IO_PENDING", "the request waits for a message"),
        0x800703E6: Description("ERROR_NOACCESS", "a buffer is not accessible memory"),
        SERVICE_ALREADY_RUNNING: Description("ERROR_SERVICE_ALREADY_RUNNING", "the filter is loaded already"),
        INVALID_SERVICE_CONTROL: Description(
            "ERROR_INVALID_SERVICE_CONTROL", "the driver does not let its service be stopped"
        ),
        SERVICE_DOES_NOT_EXIST: Description(
            "ERROR_SERVICE_DOES_NOT_EXIST",
            "no service of that name is installed",
            "list the services of drivers with 'sc query type= driver state= all'",
        ),
        SERVICE_CANNOT_ACCEPT_CTRL: Description(
            "ERROR_SERVICE_CANNOT_ACCEPT_CTRL", "the service is being stopped already"
        ),
        SERVICE_NOT_ACTIVE: Description("ERROR_SERVICE_NOT_ACTIVE", "the service does not run"),
        0x80070490: Description("ERROR_NOT_FOUND", "there was nothing to cancel"),
        CONNECTION_COUNT_LIMIT: Description(
            "ERROR_CONNECTION_COUNT_LIMIT",
            "the port has as many clients as the driver allows",
            "close another client first; a slot is free again when its disconnect callback has returned",
        ),
        REVISION_MISMATCH: Description(
            "ERROR_REVISION_MISMATCH",
            "client and driver speak different versions of the protocol",
            "deploy the client library that belongs to the loaded driver",
        ),
        PRIVILEGE_NOT_HELD: Description(
            "ERROR_PRIVILEGE_NOT_HELD",
            "the caller lacks SeLoadDriverPrivilege",
            "run elevated; the privilege must also be enabled in the token",
        ),
        NO_SYSTEM_RESOURCES: Description(
            "ERROR_NO_SYSTEM_RESOURCES", "the driver or the kernel has no memory for the request"
        ),
        0x800707D1: Description("ERROR_BAD_DRIVER", "the driver's image is not valid"),
        FLT_DELETING_OBJECT: Description(
            "ERROR_FLT_DELETING_OBJECT", "the filter or its port is being taken down", "connect again later"
        ),
        FLT_DO_NOT_DETACH: Description("ERROR_FLT_DO_NOT_DETACH", "the filter refuses to be unloaded now"),
        FLT_FILTER_NOT_FOUND: Description(
            "ERROR_FLT_FILTER_NOT_FOUND",
            "no filter of that name is loaded",
            "list the filters with 'fltmc filters'",
        ),
        FLT_NO_WAITER_FOR_REPLY: Description(
            "ERROR_FLT_NO_WAITER_FOR_REPLY",
            "nobody waits for this reply",
            "reply once, in time, and only to messages whose header states a reply length",
        ),
    }
)
