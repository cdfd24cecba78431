"""The binding to the emulated machine: each call is one user-mode service, its NTSTATUS mapped as fltlib does it.

The services and their arguments are those of docs/architecture.md.
"""

from __future__ import annotations

import math
from typing import Any

from harness.client import hresult as hr
from harness.client import ntstatus
from harness.client.binding import (
    CONTEXT_BYTES_MAXIMUM,
    OPERATION_SECONDS,
    Completion,
    FilterInformation,
    InstanceInformation,
    VolumeInformation,
)
from harness.client.emulated_wire import Session
from harness.client.errors import FileError, port_error


class EmulatedGet:
    """One FilterGetMessage that the emulated kernel holds."""

    def __init__(self, binding: EmulatedBinding, handle: int, operation: int) -> None:
        self._binding = binding
        self._handle = handle
        self._operation = operation
        self._completion: Completion | None = None

    def wait(self, seconds: float | None) -> Completion | None:
        """See `PendingGet.wait`; the completion is kept, so that it can be asked for again."""
        if self._completion is None:
            milliseconds = None if seconds is None else math.ceil(seconds * 1000)
            status, values = self._binding.call(
                "wait_operation",
                seconds=None if seconds is None else seconds + OPERATION_SECONDS,
                operation=self._operation,
                timeout=milliseconds,
            )
            if status in (ntstatus.TIMEOUT, ntstatus.PENDING):
                return None
            information = int(values.get("information", 0))
            # A completion travels as a Win32 error (GetOverlappedResult), not through fltlib: fact H2.
            failed = not ntstatus.succeeded(status)
            hresult = hr.from_win32(ntstatus.to_win32(status)) if failed else hr.S_OK
            data = b"" if failed else bytes(values.get("data", b""))
            self._completion = Completion(hresult, information, data)
        return self._completion

    def cancel(self) -> bool:
        """See `PendingGet.cancel`."""
        if self._completion is not None:
            return False
        status, _ = self._binding.call("cancel", handle=self._handle, operation=self._operation)
        return ntstatus.succeeded(status)


class EmulatedBinding:
    """`Binding` over the user-mode services of an emulated machine.

    Args:
        address: `127.0.0.1:<port>:<token>`.
    """

    def __init__(self, address: str) -> None:
        self._session = Session(address)

    def call(
        self, service: str, *, seconds: float | None = OPERATION_SECONDS, **arguments: Any
    ) -> tuple[int, dict[str, Any]]:
        """One service: its NTSTATUS and its values. `seconds` is how long the answer may take."""
        return self._session.call(service, arguments, seconds=seconds)

    @property
    def thread_id(self) -> int:
        """The calling thread's id in the emulated machine."""
        return self._session.thread_id

    def disconnect(self) -> None:
        """End this process as far as the machine can see: all of its handles are closed."""
        self._session.close()

    # Ports.

    def connect(self, name: str, context: bytes | None, context_size: int, *, synchronous: bool) -> int:
        # What fltlib itself refuses, before anything reaches the kernel (facts C13, C14).
        if (context is None) != (context_size == 0):
            raise port_error(hr.INVALID_PARAMETER, "FilterConnectCommunicationPort")
        if context_size > CONTEXT_BYTES_MAXIMUM:
            raise port_error(hr.ARITHMETIC_OVERFLOW, "FilterConnectCommunicationPort")
        values = self._port(
            "FilterConnectCommunicationPort",
            "connect_port",
            name=name,
            context=context,
            context_size=context_size,
            synchronous=synchronous,
        )
        return int(values["handle"])

    def begin_get(self, handle: int, size: int) -> EmulatedGet:
        values = self._port("FilterGetMessage", "get_message", handle=handle, size=size)
        return EmulatedGet(self, handle, int(values["operation"]))

    def get(self, handle: int, size: int) -> bytes:
        values = self._port("FilterGetMessage", "get_message", seconds=None, handle=handle, size=size)
        if "operation" not in values:
            return bytes(values["data"])
        # No OVERLAPPED on an asynchronous handle: fltlib waits on the file handle itself (fact G12).
        completion = EmulatedGet(self, handle, int(values["operation"])).wait(None)
        assert completion is not None
        if completion.hresult != hr.S_OK:
            raise port_error(completion.hresult, "FilterGetMessage", information=completion.information)
        return completion.data

    def reply(self, handle: int, data: bytes, size: int) -> None:
        self._port("FilterReplyMessage", "reply_message", handle=handle, data=data, size=size)

    def send(
        self, handle: int, data: bytes | None, size: int, output_size: int, *, output_null: bool
    ) -> bytes:
        values = self._port(
            "FilterSendMessage",
            "send_message",
            handle=handle,
            input=data,
            input_size=size,
            output_size=output_size,
            output_null=output_null,
        )
        return bytes(values.get("data", b""))

    def cancel(self, handle: int) -> bool:
        status, _ = self.call("cancel", handle=handle, operation=None)
        return ntstatus.succeeded(status)

    def close(self, handle: int) -> None:
        status, _ = self.call("close", handle=handle)
        if not ntstatus.succeeded(status):
            raise port_error(hr.from_ntstatus(status), "CloseHandle")

    def duplicate(self, handle: int) -> int:
        return int(self._port("DuplicateHandle", "duplicate", handle=handle)["handle"])

    # The Filter Manager.

    def filter_load(self, name: str) -> None:
        self._port("FilterLoad", "filter_load", name=name)

    def filter_unload(self, name: str) -> None:
        self._port("FilterUnload", "filter_unload", name=name)

    def service_stop(self, name: str) -> None:
        # Not fltlib's: the service control manager answers with a Win32 error.
        error = int(self._port("ControlService", "service_stop", name=name)["error"])
        if error:
            raise port_error(hr.from_win32(error), "ControlService")

    def filter_attach(
        self, name: str, volume: str, instance: str | None = None, altitude: str | None = None
    ) -> str:
        operation = "FilterAttach" if altitude is None else "FilterAttachAtAltitude"
        values = self._port(
            operation, "filter_attach", filter=name, volume=volume, instance=instance, altitude=altitude
        )
        return str(values.get("instance", instance or ""))

    def filter_detach(self, name: str, volume: str, instance: str | None = None) -> None:
        self._port("FilterDetach", "filter_detach", filter=name, volume=volume, instance=instance)

    def filters(self) -> list[FilterInformation]:
        return [
            FilterInformation(str(o["name"]), str(o["altitude"]), int(o["instances"]), int(o.get("frame", 0)))
            for o in self._port("FilterFindFirst", "list_filters")["filters"]
        ]

    def instances(self) -> list[InstanceInformation]:
        return [
            InstanceInformation(
                str(o["instance"]),
                str(o["filter"]),
                str(o["volume"]),
                str(o["altitude"]),
                int(o.get("frame", 0)),
            )
            for o in self._port("FilterInstanceFindFirst", "list_instances")["instances"]
        ]

    def volumes(self) -> list[VolumeInformation]:
        return [
            VolumeInformation(o["dos_name"], str(o["device_name"]), str(o["file_system"]))
            for o in self._port("FilterVolumeFindFirst", "list_volumes")["volumes"]
        ]

    # Files.

    def create_file(
        self, path: str, access: int, share: int, disposition: int, options: int, attributes: int
    ) -> tuple[int, int]:
        values = self._file(
            f"create '{path}'",
            "create_file",
            path=path,
            access=access,
            share=share,
            disposition=disposition,
            options=options,
            attributes=attributes,
        )
        return int(values["handle"]), int(values["information"])

    def read_file(self, handle: int, offset: int | None, length: int) -> bytes:
        status, values = self.call("read_file", handle=handle, offset=offset, length=length)
        if status == ntstatus.END_OF_FILE:
            return b""
        if not ntstatus.succeeded(status):
            raise FileError(status, "read")
        return bytes(values.get("data", b""))

    def write_file(self, handle: int, offset: int | None, data: bytes) -> int:
        return int(self._file("write", "write_file", handle=handle, offset=offset, data=data)["written"])

    def set_information(self, handle: int, information_class: int, data: bytes) -> None:
        arguments = {"handle": handle, "class": information_class, "data": data}
        self._file(f"set information class {information_class}", "set_information", **arguments)

    def query_information(self, handle: int, information_class: int, length: int) -> bytes:
        arguments = {"handle": handle, "class": information_class, "length": length}
        values = self._file(f"query information class {information_class}", "query_information", **arguments)
        return bytes(values["data"])

    def query_directory(self, handle: int, pattern: str | None) -> list[tuple[str, int, int, int]]:
        entries: list[tuple[str, int, int, int]] = []
        restart = True
        while True:
            status, values = self.call("query_directory", handle=handle, pattern=pattern, restart=restart)
            if status in (ntstatus.NO_MORE_FILES, ntstatus.NO_SUCH_FILE):
                return entries
            if not ntstatus.succeeded(status):
                raise FileError(status, "query directory")
            batch = values["entries"]
            if not batch:
                return entries
            entries += [(str(n), int(a), int(s), int(i)) for n, a, s, i in batch]
            restart = False

    def flush(self, handle: int) -> None:
        self._file("flush", "flush", handle=handle)

    def set_security(self, handle: int, information: int, descriptor: bytes) -> None:
        self._file(
            "set security", "set_security", handle=handle, information=information, descriptor=descriptor
        )

    # The thread and the machine.

    def impersonate(self, level: str) -> None:
        status, _ = self.call("impersonate", level=level)
        if not ntstatus.succeeded(status):
            raise port_error(hr.from_ntstatus(status), "ImpersonateLoggedOnUser")

    def device_path(self, path: str) -> str:
        drive, rest = path[:2], path[2:]
        for volume in self.volumes():
            if volume.dos_name is not None and volume.dos_name.upper() == drive.upper():
                return volume.device_name + rest
        raise ValueError(f"'{drive}' is not a volume that filters see")

    def scratch_root(self) -> str:
        return "D:"

    def _port(
        self, operation: str, service: str, *, seconds: float | None = OPERATION_SECONDS, **arguments: Any
    ) -> dict[str, Any]:
        status, values = self.call(service, seconds=seconds, **arguments)
        if not ntstatus.succeeded(status):
            raise port_error(
                hr.from_ntstatus(status), operation, information=int(values.get("information", 0))
            )
        return values

    def _file(self, operation: str, service: str, **arguments: Any) -> dict[str, Any]:
        status, values = self.call(service, **arguments)
        if not ntstatus.succeeded(status):
            raise FileError(status, operation)
        return values
