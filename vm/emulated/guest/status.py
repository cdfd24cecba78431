"""NTSTATUS, Win32 and HRESULT as the inbox tools report them, with the system's message texts.

Mapping: facts H1 and the tables of filter-ports.md section 9; texts: winerror.h and fltWinError.h.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

STATUS_SUCCESS = 0
_FACILITY_FILTER_MANAGER = 0x1C
_STATUS_TIMEOUT = 0x102
_STATUS_FLT_BUFFER_TOO_SMALL = 0x801C0001
_E_FAIL = 0x80004005
_ERROR_MR_MID_NOT_FOUND = 317

ERROR_GEN_FAILURE = 31

_WIN32_OF_STATUS: Mapping[int, int] = {
    0x00000102: 258,
    0x00000103: 997,
    0x80000002: 998,
    0x80000005: 234,
    0x8000001A: 259,
    0xC0000001: 31,
    0xC0000005: 998,
    0xC0000008: 6,
    0xC000000D: 87,
    0xC0000010: 1,
    0xC0000017: 8,
    0xC0000022: 5,
    0xC0000023: 122,
    0xC0000024: 6,
    0xC0000033: 123,
    0xC0000034: 2,
    0xC0000035: 183,
    0xC0000037: 6,
    0xC000003A: 3,
    0xC000003B: 161,
    0xC000004B: 5,
    0xC0000056: 5,
    0xC0000059: 1306,
    0xC0000061: 1314,
    0xC000007B: 193,
    0xC0000095: 534,
    0xC000009A: 1450,
    0xC00000B5: 121,
    0xC00000BB: 50,
    0xC00000E5: 1359,
    0xC00000EF: 87,
    0xC00000F1: 87,
    0xC000010E: 1056,
    0xC0000120: 995,
    0xC000012F: 193,
    0xC0000130: 193,
    0xC0000135: 126,
    0xC0000138: 182,
    0xC0000139: 127,
    0xC0000221: 193,
    0xC0000225: 1168,
    0xC000022B: 193,
    0xC000023A: 1229,
    0xC0000246: 1238,
    0xC000026C: 2001,
    0xC0000365: 647,
    0xC000036B: 1275,
    0xC0000428: 577,
    0xC0000603: 2148204812,
}
"""RtlNtStatusToDosError where the tools can meet it; anything else reads ERROR_MR_MID_NOT_FOUND."""

_WIN32_OF_ERRNO: Mapping[int, int] = {
    errno.ENOENT: 2,
    errno.ENOTDIR: 3,
    errno.EACCES: 5,
    errno.EPERM: 5,
    errno.EISDIR: 5,
    errno.EROFS: 19,
    errno.EBUSY: 32,
    errno.EEXIST: 183,
    errno.ENOSPC: 112,
    errno.ENOTEMPTY: 145,
    errno.EXDEV: 17,
    errno.EINVAL: 87,
    errno.ENAMETOOLONG: 206,
}

_MESSAGES: Mapping[int, str] = {
    0: "The operation completed successfully.",
    1: "Incorrect function.",
    2: "The system cannot find the file specified.",
    3: "The system cannot find the path specified.",
    5: "Access is denied.",
    6: "The handle is invalid.",
    8: "Not enough memory resources are available to process this command.",
    13: "The data is invalid.",
    15: "The system cannot find the drive specified.",
    17: "The system cannot move the file to a different disk drive.",
    19: "The media is write protected.",
    32: "The process cannot access the file because it is being used by another process.",
    31: "A device attached to the system is not functioning.",
    50: "The request is not supported.",
    80: "The file exists.",
    87: "The parameter is incorrect.",
    112: "There is not enough space on the disk.",
    121: "The semaphore timeout period has expired.",
    122: "The data area passed to a system call is too small.",
    123: "The filename, directory name, or volume label syntax is incorrect.",
    126: "The specified module could not be found.",
    127: "The specified procedure could not be found.",
    145: "The directory is not empty.",
    161: "The specified path is invalid.",
    182: "The operating system cannot run %1.",
    183: "Cannot create a file when that file already exists.",
    193: "%1 is not a valid Win32 application.",
    206: "The filename or extension is too long.",
    234: "More data is available.",
    258: "The wait operation timed out.",
    259: "No more data is available.",
    267: "The directory name is invalid.",
    317: "The system cannot find message text for message number 0x%1 in the message file for %2.",
    534: "Arithmetic result exceeded 32 bits.",
    577: (
        "Windows cannot verify the digital signature for this file. A recent hardware or software change might have "
        "installed a file that is signed incorrectly or damaged, or that might be malicious software from an unknown "
        "source."
    ),
    647: "{Driver Entry Failed} The driver %hs failed its initialization.",
    995: "The I/O operation has been aborted because of either a thread exit or an application request.",
    997: "Overlapped I/O operation is in progress.",
    998: "Invalid access to memory location.",
    1052: "The requested control is not valid for this service.",
    1056: "An instance of the service is already running.",
    1058: (
        "The service cannot be started, either because it is disabled or because it has no enabled devices "
        "associated with it."
    ),
    1060: "The specified service does not exist as an installed service.",
    1062: "The service has not been started.",
    1072: "The specified service has been marked for deletion.",
    1073: "The specified service already exists.",
    1078: "The name is already in use as either a service name or a service display name.",
    1115: "A system shutdown is in progress.",
    1116: "Unable to abort the system shutdown because no shutdown was in progress.",
    1168: "Element not found.",
    1190: "A system shutdown has already been scheduled.",
    1229: "An operation was attempted on a nonexistent network connection.",
    1238: (
        "A connection to the server could not be made because the limit on the number of concurrent connections for "
        "this account has been reached."
    ),
    1275: "This driver has been blocked from loading",
    1306: "Indicates two revision levels are incompatible.",
    1314: "A required privilege is not held by the client.",
    1359: "An internal error occurred.",
    1450: "Insufficient system resources exist to complete the requested service.",
    2001: "The specified driver is invalid.",
}

_FILTER_MESSAGES: Mapping[int, str] = {
    0x01: "A handler was not defined by the filter for this operation.",
    0x02: "A context is already defined for this object.",
    0x03: "Asynchronous requests are not valid for this operation.",
    0x04: "Disallow the Fast IO path for this operation.",
    0x05: ("An invalid name request was made. The name requested cannot be retrieved at this time."),
    0x06: (
        "Posting this operation to a worker thread for further processing is not safe at this time because it could "
        "lead to a system deadlock."
    ),
    0x07: "The Filter Manager was not initialized when a filter tried to register.",
    0x08: (
        "The filter is not ready for attachment to volumes because it has not finished initializing "
        "(FltStartFiltering has not been called)."
    ),
    0x09: "The filter must cleanup any operation specific context at this time because it is being removed.",
    0x0A: "The Filter Manager had an internal error from which it cannot recover.",
    0x0B: "The object specified for this action is in the process of being deleted.",
    0x0C: "Non-paged pool must be used for this type of context.",
    0x0D: "A duplicate handler definition has been provided for an operation.",
    0x0E: "The callback data queue has been disabled.",
    0x0F: "Do not attach the filter to the volume at this time.",
    0x10: "Do not detach the filter from the volume at this time.",
    0x11: "An instance already exists at this altitude on the volume specified.",
    0x12: "An instance already exists with this name on the volume specified.",
    0x13: "The system could not find the filter specified.",
    0x14: "The system could not find the volume specified.",
    0x15: "The system could not find the instance specified.",
    0x16: "No registered context allocation definition was found for the given request.",
    0x17: "An invalid parameter was specified during context registration.",
    0x18: "The name requested was not found in Filter Manager's name cache and could not be retrieved from the file system.",
    0x19: "The requested device object does not exist for the given volume.",
    0x1A: "The specified volume is already mounted.",
    0x20: "No waiter is present for the filter's reply to this message.",
}


def win32_of_ntstatus(status: int) -> int:
    """RtlNtStatusToDosError, as `sc` reports a failed start."""
    if status == STATUS_SUCCESS:
        return 0
    return _WIN32_OF_STATUS.get(status, _ERROR_MR_MID_NOT_FOUND)


def hresult_of_ntstatus(status: int) -> int:
    """The HRESULT that fltlib makes of an NTSTATUS (fact H1), as `fltmc` prints it."""
    if status == STATUS_SUCCESS:
        return 0
    facility = (status >> 16) & 0xFFF
    if status == _STATUS_FLT_BUFFER_TOO_SMALL:
        return 0x8007007A
    if facility == _FACILITY_FILTER_MANAGER:
        # Severity of a failed HRESULT is one bit; 0xC01C00nn becomes 0x801F00nn.
        return (0x80000000 if status & 0x80000000 else 0) | 0x1F0000 | (status & 0xFFFF)
    if facility:
        return _E_FAIL
    return hresult_of_win32(win32_of_ntstatus(status))


def hresult_of_win32(code: int) -> int:
    """HRESULT_FROM_WIN32."""
    return 0 if code == 0 else code if code & 0x80000000 else 0x80070000 | (code & 0xFFFF)


def win32_of_errno(number: int | None) -> int:
    """The Win32 code for an error of the host's file system; ERROR_GEN_FAILURE for what has no counterpart."""
    return _WIN32_OF_ERRNO.get(number or 0, ERROR_GEN_FAILURE)


def message_of_win32(code: int) -> str:
    """The system's text for a Win32 code; the placeholder Windows tools print when there is none."""
    return _MESSAGES.get(code, f"The system cannot find message text for message number 0x{code:x}.")


def message_of_hresult(hresult: int) -> str:
    """The system's text for an HRESULT of fltlib."""
    if hresult >> 16 == 0x801F:
        return _FILTER_MESSAGES.get(hresult & 0xFFFF, f"Unknown filter manager error 0x{hresult:08x}.")
    if hresult >> 16 == 0x8007:
        return message_of_win32(hresult & 0xFFFF)
    if hresult == _E_FAIL:
        return "Unspecified error"
    return f"Unknown error 0x{hresult:08x}."
