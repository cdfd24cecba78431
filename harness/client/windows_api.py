"""The Windows functions that the client uses, with their prototypes, and the structures that go through them.

Sizes and offsets are those of facts Appendix A and of the public headers, x64; a test computes them on every system.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_ubyte, c_uint16, c_uint32, c_uint64, c_void_p, c_wchar_p
from types import MappingProxyType
from typing import Any, Final

INVALID_HANDLE_VALUE: Final = 0xFFFFFFFFFFFFFFFF
FLT_PORT_FLAG_SYNC_HANDLE: Final = 1

WAIT_OBJECT_0: Final = 0
WAIT_TIMEOUT: Final = 258
INFINITE: Final = 0xFFFFFFFF
DUPLICATE_SAME_ACCESS: Final = 2

FILTER_AGGREGATE_STANDARD_INFORMATION: Final = 2
INSTANCE_AGGREGATE_STANDARD_INFORMATION: Final = 3
FILTER_VOLUME_STANDARD_INFORMATION: Final = 1

TOKEN_ASSIGN_PRIMARY: Final = 0x0001
TOKEN_DUPLICATE: Final = 0x0002
TOKEN_IMPERSONATE: Final = 0x0004
TOKEN_QUERY: Final = 0x0008
TOKEN_ADJUST_PRIVILEGES: Final = 0x0020
DISABLE_MAX_PRIVILEGE: Final = 0x1
SE_PRIVILEGE_ENABLED: Final = 0x2
WIN_BUILTIN_ADMINISTRATORS_SID: Final = 26
SECURITY_MAX_SID_SIZE: Final = 68

PROCESS_SUSPEND_RESUME: Final = 0x0800

SC_MANAGER_CONNECT: Final = 0x0001
SERVICE_QUERY_STATUS: Final = 0x0004
SERVICE_STOP: Final = 0x0020
SERVICE_CONTROL_STOP: Final = 1
SERVICE_STOPPED: Final = 1


class FilterMessageHeader(ctypes.Structure):
    """FILTER_MESSAGE_HEADER: the payload follows at 16 (fact R4)."""

    _fields_ = (("ReplyLength", c_uint32), ("MessageId", c_uint64))


class FilterReplyHeader(ctypes.Structure):
    """FILTER_REPLY_HEADER."""

    _fields_ = (("Status", c_int32), ("MessageId", c_uint64))


class Overlapped(ctypes.Structure):
    """OVERLAPPED."""

    _fields_ = (
        ("Internal", c_uint64),
        ("InternalHigh", c_uint64),
        ("Offset", c_uint32),
        ("OffsetHigh", c_uint32),
        ("hEvent", c_void_p),
    )


class UnicodeString(ctypes.Structure):
    """UNICODE_STRING; lengths in bytes."""

    _fields_ = (("Length", c_uint16), ("MaximumLength", c_uint16), ("Buffer", c_void_p))


class ObjectAttributes(ctypes.Structure):
    """OBJECT_ATTRIBUTES."""

    _fields_ = (
        ("Length", c_uint32),
        ("RootDirectory", c_void_p),
        ("ObjectName", ctypes.POINTER(UnicodeString)),
        ("Attributes", c_uint32),
        ("SecurityDescriptor", c_void_p),
        ("SecurityQualityOfService", c_void_p),
    )


class IoStatusBlock(ctypes.Structure):
    """IO_STATUS_BLOCK."""

    _fields_ = (("Status", c_int64), ("Information", c_uint64))


class SidAndAttributes(ctypes.Structure):
    """SID_AND_ATTRIBUTES."""

    _fields_ = (("Sid", c_void_p), ("Attributes", c_uint32))


class Luid(ctypes.Structure):
    """LUID."""

    _fields_ = (("LowPart", c_uint32), ("HighPart", c_int32))


class TokenPrivileges(ctypes.Structure):
    """TOKEN_PRIVILEGES with one privilege."""

    _fields_ = (("PrivilegeCount", c_uint32), ("Luid", Luid), ("Attributes", c_uint32))


class ServiceStatus(ctypes.Structure):
    """SERVICE_STATUS."""

    _fields_ = (
        ("dwServiceType", c_uint32),
        ("dwCurrentState", c_uint32),
        ("dwControlsAccepted", c_uint32),
        ("dwWin32ExitCode", c_uint32),
        ("dwServiceSpecificExitCode", c_uint32),
        ("dwCheckPoint", c_uint32),
        ("dwWaitHint", c_uint32),
    )


class FilterAggregateStandard(ctypes.Structure):
    """FILTER_AGGREGATE_STANDARD_INFORMATION of a minifilter; name offsets count from the start of the structure."""

    _fields_ = (
        ("NextEntryOffset", c_uint32),
        ("Flags", c_uint32),
        ("MiniFilterFlags", c_uint32),
        ("FrameID", c_uint32),
        ("NumberOfInstances", c_uint32),
        ("FilterNameLength", c_uint16),
        ("FilterNameBufferOffset", c_uint16),
        ("FilterAltitudeLength", c_uint16),
        ("FilterAltitudeBufferOffset", c_uint16),
    )


class InstanceAggregateStandard(ctypes.Structure):
    """INSTANCE_AGGREGATE_STANDARD_INFORMATION of a minifilter."""

    _fields_ = (
        ("NextEntryOffset", c_uint32),
        ("Flags", c_uint32),
        ("MiniFilterFlags", c_uint32),
        ("FrameID", c_uint32),
        ("VolumeFileSystemType", c_uint32),
        ("InstanceNameLength", c_uint16),
        ("InstanceNameBufferOffset", c_uint16),
        ("AltitudeLength", c_uint16),
        ("AltitudeBufferOffset", c_uint16),
        ("VolumeNameLength", c_uint16),
        ("VolumeNameBufferOffset", c_uint16),
        ("FilterNameLength", c_uint16),
        ("FilterNameBufferOffset", c_uint16),
        ("SupportedFeatures", c_uint32),
    )


class FilterVolumeStandard(ctypes.Structure):
    """FILTER_VOLUME_STANDARD_INFORMATION; the name follows at 0x12."""

    _fields_ = (
        ("NextEntryOffset", c_uint32),
        ("Flags", c_uint32),
        ("FrameID", c_uint32),
        ("FileSystemType", c_uint32),
        ("FilterVolumeNameLength", c_uint16),
        ("FilterVolumeName", c_uint16),
    )


FLTFL_IS_LEGACY_FILTER: Final = 0x2
"""In `Flags` of the aggregate structures: a legacy filter, whose part of the union is another."""

FILE_SYSTEM_NAMES: Final = MappingProxyType(
    {0: "unknown", 1: "RAW", 2: "NTFS", 3: "FAT", 0x16: "EXFAT", 0x1C: "REFS"}
)

_HANDLE: Final = c_void_p
_OUT: Final = c_void_p
"""Any pointer that is passed with `byref` or as a buffer."""

PROTOTYPES: Final[MappingProxyType[str, dict[str, tuple[Any, ...]]]] = MappingProxyType(
    {
        # Name: result, then arguments. HRESULT and NTSTATUS come back as signed 32 bit.
        "fltlib": {
            "FilterConnectCommunicationPort": (c_int32, c_wchar_p, c_uint32, c_void_p, c_uint16, c_void_p, _OUT),
            "FilterGetMessage": (c_int32, _HANDLE, c_void_p, c_uint32, c_void_p),
            "FilterReplyMessage": (c_int32, _HANDLE, c_void_p, c_uint32),
            "FilterSendMessage": (c_int32, _HANDLE, c_void_p, c_uint32, c_void_p, c_uint32, _OUT),
            "FilterLoad": (c_int32, c_wchar_p),
            "FilterUnload": (c_int32, c_wchar_p),
            "FilterAttach": (c_int32, c_wchar_p, c_wchar_p, c_wchar_p, c_uint32, c_void_p),
            "FilterAttachAtAltitude": (c_int32, c_wchar_p, c_wchar_p, c_wchar_p, c_wchar_p, c_uint32, c_void_p),
            "FilterDetach": (c_int32, c_wchar_p, c_wchar_p, c_wchar_p),
            "FilterFindFirst": (c_int32, c_int32, c_void_p, c_uint32, _OUT, _OUT),
            "FilterFindNext": (c_int32, _HANDLE, c_int32, c_void_p, c_uint32, _OUT),
            "FilterFindClose": (c_int32, _HANDLE),
            "FilterInstanceFindFirst": (c_int32, c_wchar_p, c_int32, c_void_p, c_uint32, _OUT, _OUT),
            "FilterInstanceFindNext": (c_int32, _HANDLE, c_int32, c_void_p, c_uint32, _OUT),
            "FilterInstanceFindClose": (c_int32, _HANDLE),
            "FilterVolumeFindFirst": (c_int32, c_int32, c_void_p, c_uint32, _OUT, _OUT),
            "FilterVolumeFindNext": (c_int32, _HANDLE, c_int32, c_void_p, c_uint32, _OUT),
            "FilterVolumeFindClose": (c_int32, _HANDLE),
            "FilterGetDosName": (c_int32, c_wchar_p, c_void_p, c_uint32),
        },
        "kernel32": {
            "CreateEventW": (_HANDLE, c_void_p, c_int32, c_int32, c_wchar_p),
            "WaitForSingleObject": (c_uint32, _HANDLE, c_uint32),
            "GetOverlappedResult": (c_int32, _HANDLE, c_void_p, _OUT, c_int32),
            "CancelIoEx": (c_int32, _HANDLE, c_void_p),
            "CloseHandle": (c_int32, _HANDLE),
            "DuplicateHandle": (c_int32, _HANDLE, _HANDLE, _HANDLE, _OUT, c_uint32, c_int32, c_uint32),
            "GetCurrentProcess": (_HANDLE,),
            "OpenProcess": (_HANDLE, c_uint32, c_int32, c_uint32),
            "QueryDosDeviceW": (c_uint32, c_wchar_p, c_void_p, c_uint32),
        },
        "ntdll": {
            "NtCreateFile": (
                c_int32, _OUT, c_uint32, c_void_p, c_void_p, c_void_p, c_uint32, c_uint32, c_uint32, c_uint32,
                c_void_p, c_uint32,
            ),
            "NtReadFile": (
                c_int32, _HANDLE, _HANDLE, c_void_p, c_void_p, c_void_p, c_void_p, c_uint32, c_void_p, c_void_p,
            ),
            "NtWriteFile": (
                c_int32, _HANDLE, _HANDLE, c_void_p, c_void_p, c_void_p, c_void_p, c_uint32, c_void_p, c_void_p,
            ),
            "NtSetInformationFile": (c_int32, _HANDLE, c_void_p, c_void_p, c_uint32, c_int32),
            "NtQueryInformationFile": (c_int32, _HANDLE, c_void_p, c_void_p, c_uint32, c_int32),
            "NtQueryDirectoryFile": (
                c_int32, _HANDLE, _HANDLE, c_void_p, c_void_p, c_void_p, c_void_p, c_uint32, c_int32, c_ubyte,
                c_void_p, c_ubyte,
            ),
            "NtFlushBuffersFile": (c_int32, _HANDLE, c_void_p),
            "NtSetSecurityObject": (c_int32, _HANDLE, c_uint32, c_void_p),
            "NtSuspendProcess": (c_int32, _HANDLE),
            "NtResumeProcess": (c_int32, _HANDLE),
        },
        "advapi32": {
            "OpenProcessToken": (c_int32, _HANDLE, c_uint32, _OUT),
            "CreateWellKnownSid": (c_int32, c_int32, c_void_p, c_void_p, _OUT),
            "CreateRestrictedToken": (
                c_int32, _HANDLE, c_uint32, c_uint32, c_void_p, c_uint32, c_void_p, c_uint32, c_void_p, _OUT,
            ),
            "ImpersonateLoggedOnUser": (c_int32, _HANDLE),
            "RevertToSelf": (c_int32,),
            "LookupPrivilegeValueW": (c_int32, c_wchar_p, c_wchar_p, _OUT),
            "AdjustTokenPrivileges": (c_int32, _HANDLE, c_int32, c_void_p, c_uint32, c_void_p, c_void_p),
            "OpenSCManagerW": (_HANDLE, c_wchar_p, c_wchar_p, c_uint32),
            "OpenServiceW": (_HANDLE, _HANDLE, c_wchar_p, c_uint32),
            "ControlService": (c_int32, _HANDLE, c_uint32, _OUT),
            "QueryServiceStatus": (c_int32, _HANDLE, _OUT),
            "CloseServiceHandle": (c_int32, _HANDLE),
        },
    }
)  # fmt: skip


class Libraries:
    """The four libraries, each an object whose attributes are the functions; `last_error` as `GetLastError`.

    Made by `load` on Windows. Tests pass objects of their own.
    """

    def __init__(self, fltlib: Any, kernel32: Any, ntdll: Any, advapi32: Any, last_error: Any) -> None:
        self.fltlib = fltlib
        self.kernel32 = kernel32
        self.ntdll = ntdll
        self.advapi32 = advapi32
        self.last_error = last_error


def load() -> Libraries:
    """The real libraries with their prototypes set; raises `OSError` where there are none."""
    loader = getattr(ctypes, "WinDLL", None)
    get_last_error = getattr(ctypes, "get_last_error", None)
    if loader is None or get_last_error is None:
        raise OSError("fltlib.dll is there on Windows only")
    loaded: dict[str, Any] = {}
    for library, functions in PROTOTYPES.items():
        loaded[library] = loader(f"{library}.dll", use_last_error=True)
        for name, (result, *arguments) in functions.items():
            function = getattr(loaded[library], name)
            function.restype = result
            function.argtypes = arguments
    return Libraries(**loaded, last_error=get_last_error)
