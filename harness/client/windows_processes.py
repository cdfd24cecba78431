"""Suspend and resume another process on Windows."""

from __future__ import annotations

from harness.client import windows_api
from harness.client.errors import FileError
from harness.client.windows_api import PROCESS_SUSPEND_RESUME, Libraries


def suspend(process_id: int, api: Libraries | None = None) -> None:
    """NtSuspendProcess: stop every thread of a process; raises `OSError`."""
    _call("NtSuspendProcess", process_id, api or windows_api.load())


def resume(process_id: int, api: Libraries | None = None) -> None:
    """NtResumeProcess: undo one `suspend`; raises `OSError`."""
    _call("NtResumeProcess", process_id, api or windows_api.load())


def _call(function: str, process_id: int, api: Libraries) -> None:
    handle = api.kernel32.OpenProcess(PROCESS_SUSPEND_RESUME, 0, process_id)
    if not handle:
        raise OSError(f"OpenProcess failed for process {process_id} with error {api.last_error()}")
    try:
        status = int(getattr(api.ntdll, function)(handle)) & 0xFFFFFFFF
    finally:
        api.kernel32.CloseHandle(handle)
    if status:
        raise FileError(status, f"{function} on process {process_id}")
