"""The binding to Windows: ctypes over `fltlib.dll`, with overlapped requests that each have an event of their own."""

from __future__ import annotations

import ctypes
import math
import tempfile
import threading
from ctypes import byref, c_uint32, c_uint64
from pathlib import Path
from typing import Any, Final

from harness.client import hresult as hr
from harness.client import windows_api, windows_filters, windows_services, windows_token
from harness.client.binding import (
    OPERATION_SECONDS,
    Completion,
    FilterInformation,
    InstanceInformation,
    VolumeInformation,
)
from harness.client.errors import port_error
from harness.client.windows_api import (
    DUPLICATE_SAME_ACCESS,
    FLT_PORT_FLAG_SYNC_HANDLE,
    INFINITE,
    WAIT_TIMEOUT,
    Libraries,
    Overlapped,
)
from harness.client.windows_files import WindowsFiles

_NAME_CHARACTERS: Final = 256
_ERROR_NOT_FOUND: Final = 1168


class WindowsGet:
    """One overlapped FilterGetMessage. Its buffer and OVERLAPPED belong to the kernel until it has completed."""

    def __init__(self, binding: WindowsBinding, handle: int, size: int) -> None:
        self._binding = binding
        self._api = binding.api
        self._handle = handle
        self._lock = threading.Lock()
        self._completion: Completion | None = None
        self._buffer = ctypes.create_string_buffer(max(1, size))
        event = self._api.kernel32.CreateEventW(None, 1, 0, None)
        if not event:
            raise port_error(hr.from_win32(self._api.last_error()), "CreateEvent")
        self._event = int(event)
        self._overlapped = Overlapped(hEvent=self._event)
        binding.in_flight.add(self)
        result = self._post(size)
        # Anything but ERROR_IO_PENDING is a refusal: nothing is pending, nothing will complete (facts G10, G20).
        if result != hr.IO_PENDING:
            self._release()
            raise port_error(result, "FilterGetMessage")

    def wait(self, seconds: float | None) -> Completion | None:
        """See `PendingGet.wait`."""
        milliseconds = INFINITE if seconds is None else min(math.ceil(seconds * 1000), INFINITE - 1)
        if self._completion is None:
            if self._api.kernel32.WaitForSingleObject(self._event, milliseconds) == WAIT_TIMEOUT:
                return None
            self._complete()
        return self._completion

    def cancel(self) -> bool:
        """See `PendingGet.cancel`."""
        if self._completion is not None:
            return False
        return self._binding.cancel_io(self._handle, byref(self._overlapped))

    def _post(self, size: int) -> int:
        def post() -> int:
            arguments = (self._handle, self._buffer, size, byref(self._overlapped))
            return int(self._api.fltlib.FilterGetMessage(*arguments)) & 0xFFFFFFFF

        return self._binding.run("FilterGetMessage", post)

    def _complete(self) -> None:
        with self._lock:
            if self._completion is not None:
                return
            transferred = c_uint32()
            # With an event in the OVERLAPPED the handle is not looked at, so it may have been closed meanwhile.
            succeeded = self._api.kernel32.GetOverlappedResult(
                self._handle, byref(self._overlapped), byref(transferred), 0
            )
            if succeeded:
                data = self._buffer.raw[: transferred.value]
                self._completion = Completion(hr.S_OK, transferred.value, data)
            else:
                error = hr.from_win32(self._api.last_error())
                self._completion = Completion(error, int(self._overlapped.InternalHigh), b"")
            self._release()

    def _release(self) -> None:
        self._api.kernel32.CloseHandle(self._event)
        self._binding.in_flight.discard(self)


class WindowsBinding(WindowsFiles):
    """`Binding` over the libraries of Windows.

    Args:
        libraries: for tests; the real ones when not given.
    """

    def __init__(self, libraries: Libraries | None = None) -> None:
        super().__init__(libraries or windows_api.load())
        self.api = self._api
        self.in_flight: set[WindowsGet] = set()
        """Requests that the kernel holds: they must stay in memory although nobody may want their answer."""
        self._privileged = False

    @property
    def thread_id(self) -> int:
        return self.run("the thread's id", threading.get_native_id)

    # Ports.

    def connect(self, name: str, context: bytes | None, context_size: int, *, synchronous: bool) -> int:
        if context_size > 0xFFFF:
            # The parameter is a WORD: a larger size would arrive cut, as another one.
            raise port_error(hr.ARITHMETIC_OVERFLOW, "FilterConnectCommunicationPort")
        buffer = None if context is None else ctypes.create_string_buffer(context, max(1, len(context)))
        options = FLT_PORT_FLAG_SYNC_HANDLE if synchronous else 0
        handle = c_uint64()
        self._hresult(
            "FilterConnectCommunicationPort", name, options, buffer, context_size, None, byref(handle)
        )
        return handle.value

    def begin_get(self, handle: int, size: int) -> WindowsGet:
        return WindowsGet(self, handle, size)

    def get(self, handle: int, size: int) -> bytes:
        # Without an OVERLAPPED the function does not tell how much came: the header does not either, so the whole
        # buffer is returned, and the message's own size says where it ends.
        buffer = ctypes.create_string_buffer(max(1, size))
        self._hresult("FilterGetMessage", handle, buffer, size, None, seconds=None)
        return buffer.raw[:size]

    def reply(self, handle: int, data: bytes, size: int) -> None:
        self._hresult("FilterReplyMessage", handle, _buffer(data, size), size)

    def send(
        self, handle: int, data: bytes | None, size: int, output_size: int, *, output_null: bool
    ) -> bytes:
        source = None if data is None else _buffer(data, size)
        target = None if output_null else ctypes.create_string_buffer(max(1, output_size))
        returned = c_uint32()
        self._hresult("FilterSendMessage", handle, source, size, target, output_size, byref(returned))
        return b"" if target is None else target.raw[: min(returned.value, output_size)]

    def cancel(self, handle: int) -> bool:
        return self.cancel_io(handle, None)

    def cancel_io(self, handle: int, overlapped: Any) -> bool:
        """CancelIoEx; False when there was nothing to cancel, or the handle is closed already."""
        if self.api.kernel32.CancelIoEx(handle, overlapped):
            return True
        error = self.api.last_error()
        if error in (_ERROR_NOT_FOUND, 6):
            return False
        raise port_error(hr.from_win32(error), "CancelIoEx")

    def close(self, handle: int) -> None:
        # With a deadline: cleanup runs the filters' callbacks, and those can hang.
        self._win32("CloseHandle", handle)

    def duplicate(self, handle: int) -> int:
        process = self.api.kernel32.GetCurrentProcess()
        copy = c_uint64()
        self._win32("DuplicateHandle", process, handle, process, byref(copy), 0, 0, DUPLICATE_SAME_ACCESS)
        return copy.value

    # The Filter Manager.

    def filter_load(self, name: str) -> None:
        self._enable_privilege()
        self._hresult("FilterLoad", name)

    def filter_unload(self, name: str) -> None:
        self._enable_privilege()
        self._hresult("FilterUnload", name)

    def service_stop(self, name: str) -> None:
        def stop() -> None:
            windows_services.stop(self.api, name, seconds=OPERATION_SECONDS)

        self.run("ControlService", stop, seconds=2 * OPERATION_SECONDS)

    def filter_attach(
        self, name: str, volume: str, instance: str | None = None, altitude: str | None = None
    ) -> str:
        created = ctypes.create_string_buffer(_NAME_CHARACTERS * 2)
        size = ctypes.sizeof(created)
        if altitude is None:
            self._hresult("FilterAttach", name, volume, instance, size, created)
        else:
            self._hresult("FilterAttachAtAltitude", name, volume, altitude, instance, size, created)
        return created.raw.decode("utf-16-le", "surrogatepass").partition("\0")[0]

    def filter_detach(self, name: str, volume: str, instance: str | None = None) -> None:
        self._hresult("FilterDetach", name, volume, instance)

    def filters(self) -> list[FilterInformation]:
        return self.run("FilterFindFirst", lambda: windows_filters.filters(self.api))

    def instances(self) -> list[InstanceInformation]:
        return self.run("FilterInstanceFindFirst", lambda: windows_filters.instances(self.api))

    def volumes(self) -> list[VolumeInformation]:
        return self.run("FilterVolumeFindFirst", lambda: windows_filters.volumes(self.api))

    # The thread and the machine.

    def impersonate(self, level: str) -> None:
        if level == "restricted":
            self.run("impersonation", lambda: windows_token.impersonate_restricted(self.api))
        elif level == "none":
            self.run("impersonation", lambda: windows_token.revert(self.api))
        else:
            raise ValueError(f"'{level}' is no level of impersonation")

    def device_path(self, path: str) -> str:
        buffer = ctypes.create_string_buffer(_NAME_CHARACTERS * 2)
        drive = path[:2]
        if not self.api.kernel32.QueryDosDeviceW(drive, buffer, _NAME_CHARACTERS):
            raise port_error(hr.from_win32(self.api.last_error()), f"QueryDosDevice '{drive}'")
        return buffer.raw.decode("utf-16-le", "surrogatepass").partition("\0")[0] + path[2:]

    def scratch_root(self) -> str:
        # Resolved, because a temporary directory may have a short name in it, and filters report long ones.
        return str(Path(tempfile.gettempdir()).resolve())

    def _enable_privilege(self) -> None:
        if not self._privileged:
            self.run("privileges", lambda: windows_token.enable_load_driver_privilege(self.api))
            self._privileged = True

    def _hresult(self, function: str, *arguments: Any, seconds: float | None = OPERATION_SECONDS) -> None:
        entry = getattr(self.api.fltlib, function)
        result = self.run(function, lambda: int(entry(*arguments)), seconds=seconds) & 0xFFFFFFFF
        if hr.failed(result):
            raise port_error(result, function)

    def _win32(self, function: str, *arguments: Any) -> None:
        entry = getattr(self.api.kernel32, function)

        def call() -> int:
            # The last error belongs to the thread that made the call.
            return 0 if entry(*arguments) else int(self.api.last_error()) or 31

        error = self.run(function, call)
        if error:
            raise port_error(hr.from_win32(error), function)


def _buffer(data: bytes, size: int) -> Any:
    """A buffer with `data` in it that is never smaller than the size that will be stated."""
    return ctypes.create_string_buffer(data, max(1, len(data), size))
