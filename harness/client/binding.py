"""The door to the operating system: what every binding offers, and which one this process uses.

On Windows it is ctypes over `fltlib.dll` and `ntdll.dll`; when `DOWNLINK_EMULATED` is set it is the emulated machine.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass, field
from typing import Final, Protocol

ENVIRONMENT_VARIABLE: Final = "DOWNLINK_EMULATED"
"""`127.0.0.1:<port>:<token>` of the emulated machine's user-mode services."""

PATIENCE_VARIABLE: Final = "DOWNLINK_PATIENCE_SECONDS"

OPERATION_SECONDS: Final = float(os.environ.get(PATIENCE_VARIABLE) or 10.0)
"""How long a request that should not wait for anybody may take before it counts as hung. Only broken drivers need it;
a very slow machine may be given more by the environment variable."""

CONTEXT_BYTES_MAXIMUM: Final = 0xFFE7
"""Largest connection context on x64: the length of an extended attribute less its own head (fact C13)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """How a pending request ended.

    Attributes:
        hresult: S_OK, or why it failed.
        information: bytes transferred; for a buffer that is too small, what is needed where the system tells (S18).
        data: the buffer's first `information` bytes, header included; empty after a failure.
    """

    hresult: int
    information: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class FilterInformation:
    """One loaded filter."""

    name: str
    altitude: str
    instances: int
    frame: int = 0


@dataclass(frozen=True, slots=True)
class InstanceInformation:
    """One instance of a filter on a volume; `volume` as the Filter Manager names it."""

    instance: str
    filter: str
    volume: str
    altitude: str
    frame: int = 0


@dataclass(frozen=True, slots=True)
class VolumeInformation:
    """One volume; `dos_name` is "D:" or None, `device_name` "\\Device\\HarddiskVolume2"."""

    dos_name: str | None
    device_name: str
    file_system: str


class PendingGet(Protocol):
    """One overlapped FilterGetMessage."""

    def wait(self, seconds: float | None) -> Completion | None:
        """The completion, or None if the request is still pending after `seconds` (None: wait without limit)."""
        ...

    def cancel(self) -> bool:
        """CancelIoEx on this request; False when it had completed already. The completion is still to be fetched."""
        ...


class Binding(Protocol):
    """Port functions raise `errors.PortError`, file functions `errors.FileError`; handles are plain integers."""

    @property
    def thread_id(self) -> int:
        """Id of the thread that makes the calling thread's requests, as a driver sees it."""
        ...

    def connect(self, name: str, context: bytes | None, context_size: int, *, synchronous: bool) -> int:
        """FilterConnectCommunicationPort."""
        ...

    def begin_get(self, handle: int, size: int) -> PendingGet:
        """FilterGetMessage with an OVERLAPPED that has its own event."""
        ...

    def get(self, handle: int, size: int) -> bytes:
        """FilterGetMessage without OVERLAPPED; blocks. For synchronous handles (fact G12)."""
        ...

    def reply(self, handle: int, data: bytes, size: int) -> None:
        """FilterReplyMessage with `size` as the buffer's stated size."""
        ...

    def send(
        self, handle: int, data: bytes | None, size: int, output_size: int, *, output_null: bool
    ) -> bytes:
        """FilterSendMessage; the returned bytes of the output buffer."""
        ...

    def cancel(self, handle: int) -> bool:
        """CancelIoEx on every request of this process on the handle; False when there was none."""
        ...

    def close(self, handle: int) -> None:
        """CloseHandle; `handle` may be a port or a file."""
        ...

    def duplicate(self, handle: int) -> int:
        """DuplicateHandle within this process, same access."""
        ...

    def filter_load(self, name: str) -> None: ...

    def filter_unload(self, name: str) -> None:
        """FilterUnload: the filter may refuse (fact X10)."""
        ...

    def service_stop(self, name: str) -> None:
        """ControlService(SERVICE_CONTROL_STOP) on a filter's service, until it has stopped: the filter is unloaded
        and may not refuse (fact X10). It is loaded again by `filter_load`."""
        ...

    def filter_attach(
        self, name: str, volume: str, instance: str | None = None, altitude: str | None = None
    ) -> str:
        """FilterAttach, or FilterAttachAtAltitude when an altitude is given; the name of the instance made."""
        ...

    def filter_detach(self, name: str, volume: str, instance: str | None = None) -> None: ...

    def filters(self) -> list[FilterInformation]: ...

    def instances(self) -> list[InstanceInformation]: ...

    def volumes(self) -> list[VolumeInformation]: ...

    def create_file(
        self, path: str, access: int, share: int, disposition: int, options: int, attributes: int
    ) -> tuple[int, int]:
        """NtCreateFile with the NT numbers; the handle and the Information of the I/O status block.

        `path` is "D:\\dir\\name", with any drive letter, or a device path "\\Device\\...".
        """
        ...

    def read_file(self, handle: int, offset: int | None, length: int) -> bytes: ...

    def write_file(self, handle: int, offset: int | None, data: bytes) -> int: ...

    def set_information(self, handle: int, information_class: int, data: bytes) -> None: ...

    def query_information(self, handle: int, information_class: int, length: int) -> bytes: ...

    def query_directory(self, handle: int, pattern: str | None) -> list[tuple[str, int, int, int]]:
        """All entries from the start: (name, attributes, size in bytes, file id)."""
        ...

    def flush(self, handle: int) -> None: ...

    def set_security(self, handle: int, information: int, descriptor: bytes) -> None: ...

    def impersonate(self, level: str) -> None:
        """ "restricted": this thread goes on without its Administrators group; "none": as the process again."""
        ...

    def device_path(self, path: str) -> str:
        """ "D:\\dir" as the driver sees it: "\\Device\\HarddiskVolume2\\dir"."""
        ...

    def scratch_root(self) -> str:
        """A directory on a filtered volume below which suites may make directories of their own."""
        ...


_lock = threading.Lock()
_chosen: list[Binding] = []


def current() -> Binding:
    """The binding of this process, made on first use.

    Raises:
        OSError: neither Windows nor an emulated machine is there.
    """
    with _lock:
        if not _chosen:
            _chosen.append(_make())
        return _chosen[0]


def _make() -> Binding:
    address = os.environ.get(ENVIRONMENT_VARIABLE)
    if address:
        from harness.client.emulated import EmulatedBinding

        return EmulatedBinding(address)
    if sys.platform == "win32":
        from harness.client.windows import WindowsBinding

        return WindowsBinding()
    raise OSError(
        f"there is no filter manager here: this is not Windows and '{ENVIRONMENT_VARIABLE}' is not set; "
        "run the suite with './inv test'"
    )
